#!/usr/bin/env python3
"""Writes the golden files of this directory with the reference writers.

    python3 -m venv venv
    venv/bin/pip install numpy==2.4.6 ml_dtypes==0.6.0 safetensors==0.8.0
    venv/bin/python make_golden.py

Element i of every numeric array is (i - 5) / 4, which all types hold exactly.
"""

import io
import pathlib
import warnings

import ml_dtypes
import numpy as np
import safetensors.numpy

here = pathlib.Path(__file__).parent


def ramp(shape, dtype):
    n = int(np.prod(shape, dtype=np.int64))
    return ((np.arange(n) - 5) / 4).reshape(shape).astype(dtype)


def npy(name, a, version=None, **kw):
    with open(here / name, "wb") as f, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the versions, which are the point
        np.lib.format.write_array(f, a, version=version, **kw)


# Can be read.
npy("f32.npy", ramp((2, 3), "<f4"))
npy("f16.npy", ramp((1, 2, 3, 4), "<f2"))
npy("bf16.npy", ramp((3, 4), ml_dtypes.bfloat16))
npy("bf16_as_u2.npy", ramp((3, 4), ml_dtypes.bfloat16).view("<u2"))
npy("scalar.npy", ramp((), "<f4"))
npy("vector.npy", ramp((5,), "<f4"))
npy("empty.npy", ramp((0, 3), "<f4"))
npy("v2.npy", ramp((2, 3), "<f4"), version=(2, 0))
npy("v3.npy", ramp((2, 3), "<f4"), version=(3, 0))
# A header that ends one byte before a multiple of 64, and one that ends on it,
# to which NumPy adds 64 more. The extent of 0 keeps the files small.
for pad in (1, 64):
    for ones in range(32):
        for digits in range(10):
            buf = io.BytesIO()
            a = ramp((1,) * ones + (10**digits, 0), "<f4")
            np.save(buf, a)
            if buf.getvalue().endswith(b"}" + b" " * (20 + pad) + b"\n"):
                npy(f"pad{pad}.npy", a)

# Can't: each has a sentence of its own.
npy("big_endian.npy", ramp((2, 3), ">f4"))
npy("fortran.npy", np.asfortranarray(ramp((2, 3), "<f4")))
npy("f64.npy", ramp((2, 3), "<f8"))
npy("i64.npy", ramp((2, 3), "<i8"))
npy("structured.npy", np.zeros(2, dtype=[("a", "<f4"), ("b", "<i2", (2,))]))
npy("object.npy", np.array([None, 1], dtype=object), allow_pickle=True)
npy("fp8.npy", ramp((2, 3), ml_dtypes.float8_e5m2))

bf16, fp8 = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn
for name, tensors, metadata in [
    (
        "qkv",
        {
            "q": ramp((2, 3), bf16),
            "k": ramp((2, 3), "<f2"),
            "v.\u00e9\"\U0001f600\n": ramp((2, 3), "<f4"),
            "none": ramp((0, 4), "<f4"),
            "f8": ramp((3,), fp8),
        },
        {"note": 'a "quoted" \u00e9 <&>'},
    ),
    ("o_lse", {"o": ramp((3, 4), bf16), "lse": ramp((3,), "<f4"), "h": ramp((1,), "<f2")}, {"base": "e"}),
    ("one", {"only": ramp((2, 2), "<f4")}, None),
    ("f64", {"x": ramp((3,), "<f8"), "y": ramp((4,), "<f4")}, None),
]:
    safetensors.numpy.save_file(tensors, here / f"{name}.safetensors", metadata)

# Elements only, after 7 bytes that are not.
(here / "bf16_at7.bin").write_bytes(b"header!" + ramp((3, 4), ml_dtypes.bfloat16).tobytes())
