"""What the tests share: the binary, a float64 reference, and how errors are measured.

Tensors are kept as [B, H, N, D] arrays of the type under test; a layout is given
to them only when they are written to a file. The reference is the definition,
evaluated in float64 by NumPy from the very values that the file holds.
"""
import os
import shutil
import subprocess
import tempfile
import unittest

import numpy as np
from ml_dtypes import bfloat16

DTYPES = {"f32": np.dtype(np.float32), "f16": np.dtype(np.float16), "bf16": np.dtype(bfloat16)}

# How a [B, H, N, D] array becomes one of a layout.
LAYOUTS = {
    "bhnd": lambda a: a,
    "bnhd": lambda a: a.transpose(0, 2, 1, 3),
    "hnd": lambda a: a[0],
    "nhd": lambda a: a[0].transpose(1, 0, 2),
    "nd": lambda a: a[0, 0],
}


def to_layout(a, layout):
    return np.ascontiguousarray(LAYOUTS[layout](a))


def lse_to_layout(lse, layout):
    """lse is [B, H, N]; its layout is that of O without the last axis."""
    return to_layout(lse[..., None], layout)[..., 0]


def make(shape, dtype="f32", seed=0, spread=1.0):
    """Q, K, V of shape (B, H, Hkv, Nq, Nk, D, Dv), rounded to dtype."""
    b, h, hkv, nq, nk, d, dv = shape
    rng = np.random.default_rng(seed)
    sizes = ((b, h, nq, d), (b, hkv, nk, d), (b, hkv, nk, dv))
    return tuple((spread * rng.standard_normal(s)).astype(np.float32).astype(DTYPES[dtype]) for s in sizes)


def attention(q, k, v, scale=None, causal=None):
    """O [B, H, Nq, Dv] and the natural-log lse [B, H, Nq], in float64.

    causal is None, "top-left" or "bottom-right". A row that sees no key has
    O = 0 and lse = -inf.
    """
    q, k, v = (np.asarray(a, dtype=np.float64) for a in (q, k, v))
    group = q.shape[1] // k.shape[1]
    k, v = (np.repeat(a, group, axis=1) for a in (k, v))
    nq, nk = q.shape[2], k.shape[2]
    s = np.matmul(q, k.transpose(0, 1, 3, 2)) * (q.shape[3] ** -0.5 if scale is None else scale)
    if causal is not None:
        shift = nk - nq if causal == "bottom-right" else 0
        s = np.where(np.arange(nk)[None, :] <= np.arange(nq)[:, None] + shift, s, -np.inf)
    m = s.max(axis=-1, keepdims=True)
    p = np.exp(s - np.where(np.isneginf(m), 0, m))
    total = p.sum(axis=-1, keepdims=True)
    o = np.matmul(p, v) / np.where(total == 0, 1, total)
    with np.errstate(divide="ignore"):
        return o, (m + np.log(total))[..., 0]


class Case(unittest.TestCase):
    """A test with a directory of its own, and the binary."""

    def setUp(self):
        self.binary = os.environ.get("STREAMCQSA")
        if not self.binary:
            self.fail("STREAMCQSA is not set: it is the path of the binary under test (interop/run.sh sets it)")
        self.dir = tempfile.mkdtemp(prefix="streamcqsa-interop-")
        self.addCleanup(shutil.rmtree, self.dir)
        # Flags have twins in the environment, which must not reach the tests.
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("STREAMCQSA_")}

    def path(self, name):
        return os.path.join(self.dir, name)

    def read_bytes(self, name):
        with open(self.path(name), "rb") as f:
            return f.read()

    def run_raw(self, *args):
        return subprocess.run([self.binary, *map(str, args)], cwd=self.dir, env=self.env, timeout=300,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run_ok(self, *args):
        r = self.run_raw(*args)
        self.assertEqual(r.returncode, 0, "%s\n%s%s" % (" ".join(map(str, args)), r.stdout, r.stderr))
        left = [f for f in os.listdir(self.dir) if f.endswith((".partial", ".state"))]
        self.assertEqual(left, [], "files left behind")
        return r

    def attend(self, *flags, q="q.npy", k="k.npy", v="v.npy", o="o.npy", lse="lse.npy", budget="64MiB"):
        """streamcqsa run on files of this test's directory."""
        args = ["run", "--q", q, "--k", k, "--v", v, "-o", o, "--mem-budget", budget, "--quiet", "--threads", 2]
        if lse:
            args += ["--lse", lse]
        return self.run_ok(*args, *flags)

    def save(self, q, k, v, layout="bhnd"):
        """Writes q.npy, k.npy and v.npy."""
        for name, a in (("q", q), ("k", k), ("v", v)):
            np.save(self.path(name + ".npy"), to_layout(a, layout))

    def load(self, name, dtype="f32"):
        """Reads an array that streamcqsa wrote; NumPy alone doesn't know bfloat16."""
        a = np.load(self.path(name), allow_pickle=False)
        return a.view(bfloat16) if dtype == "bf16" else a

    def assert_output(self, got, want, dtype, msg=None):
        """got, of the output type, is want, in float64, up to rounding.

        f32: 1e-6 of its norm. 16 bits: hardly more than what rounding the exact
        result costs, so that the arithmetic shows nowhere.
        """
        self.assertEqual(got.dtype, DTYPES[dtype], msg)
        self.assertEqual(got.shape, want.shape, msg)
        self.assertTrue(np.isfinite(got.astype(np.float64)).all(), "%s: not finite" % msg)
        error = np.linalg.norm((got.astype(np.float64) - want).ravel())
        if dtype == "f32":
            allowed = 1e-6 * np.linalg.norm(want.ravel())
        else:
            rounded = want.astype(np.float32).astype(DTYPES[dtype]).astype(np.float64)
            allowed = 1.02 * np.linalg.norm((rounded - want).ravel())
        self.assertLessEqual(error, allowed, "%s: error of O" % msg)

    def assert_lse(self, got, want, msg=None):
        """got is want up to a few units in the last place of float32."""
        self.assertEqual(got.dtype, np.float32, msg)
        self.assertEqual(got.shape, want.shape, msg)
        empty = np.isneginf(want)
        np.testing.assert_array_equal(np.isneginf(got), empty, "%s: rows that see no key" % msg)
        got, want = got[~empty].astype(np.float64), want[~empty]
        self.assertTrue(np.isfinite(got).all(), "%s: lse is not finite" % msg)
        worst = (np.abs(got - want) / np.maximum(1, np.abs(want))).max(initial=0)
        self.assertLessEqual(worst, 1e-6, "%s: error of lse" % msg)

    def check(self, q, k, v, *flags, layout="bhnd", dtype="f32", out=None, scale=None, causal=None, msg=None, **files):
        """Saves q, k, v as .npy, runs, and compares O and lse with the reference."""
        self.save(q, k, v, layout)
        flags = ["--layout", layout, *flags]
        if dtype == "bf16":
            flags += ["--dtype", "bf16"]
        if out:
            flags += ["--out-dtype", out]
        if scale is not None:
            flags += ["--scale", repr(float(scale))]
        if causal:
            flags += ["--causal", "--causal-align", causal]
        self.attend(*flags, **files)
        want, lse = attention(q, k, v, scale, causal)
        msg = msg or " ".join(map(str, flags))
        self.assert_output(self.load("o.npy", out or dtype), to_layout(want, layout), out or dtype, msg)
        self.assert_lse(self.load("lse.npy"), lse_to_layout(lse, layout), msg)
