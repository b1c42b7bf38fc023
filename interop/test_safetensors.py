"""What the safetensors package writes is read, and it reads what is written."""
import json
import os
import struct
import unittest

import numpy as np
import safetensors
from safetensors.numpy import load_file, save, save_file

from support import DTYPES, Case, attention, lse_to_layout, make, to_layout

SHAPE = (2, 6, 3, 61, 127, 24, 40)
NAMES = {"f32": "F32", "f16": "F16", "bf16": "BF16"}


def by_hand(path, tensors, pad=0, metadata=None):
    """Writes (key, array, dtype name) in the given order, the header ended by
    pad spaces, whatever alignment results. The format allows any."""
    header, at = {}, 0
    if metadata is not None:
        header["__metadata__"] = metadata
    for key, a, name in tensors:
        header[key] = {"dtype": name, "shape": list(a.shape), "data_offsets": [at, at + a.nbytes]}
        at += a.nbytes
    text = json.dumps(header).encode() + b" " * pad
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + b"".join(a.tobytes() for _, a, _ in tensors))
    return 8 + len(text)


class SafetensorsCase(Case):
    def attend_keys(self, *flags, file="t.safetensors", **files):
        refs = {"q": file + ":q", "k": file + ":k", "v": file + ":v", "o": "o.safetensors:o", "lse": "o.safetensors:lse"}
        refs.update(files)
        return self.attend(*flags, **refs)

    def assert_result(self, q, k, v, dtype="f32", layout="bhnd", out=None, file="o.safetensors", keys=("o", "lse")):
        got = load_file(self.path(file))
        self.assertEqual(sorted(got), sorted(keys))
        want, lse = attention(q, k, v)
        self.assert_output(got[keys[0]], to_layout(want, layout), out or dtype)
        if len(keys) > 1:
            self.assert_lse(got[keys[1]], lse_to_layout(lse, layout))


class Read(SafetensorsCase):
    def test_types(self):
        for dtype in DTYPES:
            for layout in ("bhnd", "bnhd"):
                with self.subTest(dtype=dtype, layout=layout):
                    q, k, v = make(SHAPE, dtype, seed=1)
                    save_file({"q": to_layout(q, layout), "k": to_layout(k, layout), "v": to_layout(v, layout)}, self.path("t.safetensors"))
                    self.attend_keys("--layout", layout)  # the file says the type, bf16 too
                    self.assert_result(q, k, v, dtype, layout)

    def test_bfloat16_serialized_from_bytes(self):
        q, k, v = make(SHAPE, "bf16", seed=2)
        tensors = {n: {"dtype": "bfloat16", "shape": list(a.shape), "data": a.tobytes()} for n, a in (("q", q), ("k", k), ("v", v))}
        safetensors.serialize_file(tensors, self.path("t.safetensors"), metadata={"format": "np"})
        self.assertEqual(load_file(self.path("t.safetensors"))["q"].tobytes(), q.tobytes())
        self.attend_keys("--layout", "bhnd")
        self.assert_result(q, k, v, "bf16")

    def test_many_tensors_of_all_types_and_metadata(self):
        # A model's file: what is wanted lies between what is not.
        layers = {}
        for i in range(5):
            q, k, v = make(SHAPE, "f16", seed=10 + i)
            layers.update({"layer.%d.q" % i: q, "layer.%d.k" % i: k, "layer.%d.v" % i: v})
        others = {
            "mask": np.ones((3, 5), bool), "ids": np.arange(7, dtype=np.int64), "bytes": np.arange(13, dtype=np.uint8),
            "double": np.zeros((2, 2)), "bf": np.zeros(3, DTYPES["bf16"]), "empty": np.zeros((0, 4), np.float32), "scalar": np.float32(3).reshape(()),
        }
        save_file({**layers, **others}, self.path("m.safetensors"), metadata={"format": "np", "note": 'über "quotes" \\ and \n breaks'})
        for i in (0, 3, 4):
            with self.subTest(layer=i):
                self.attend_keys("--layout", "bhnd", **{n: "m.safetensors:layer.%d.%s" % (i, n) for n in "qkv"})
                self.assert_result(*(layers["layer.%d.%s" % (i, n)] for n in "qkv"), dtype="f16")

    def test_three_files_and_keys_that_need_care(self):
        q, k, v = make(SHAPE, seed=3)
        for name, key, a in (("a", "block:0:query", q), ("b", "ключ/κλειδί", k), ("c", "value with spaces\"", v)):
            save_file({key: a}, self.path(name + ".safetensors"))
        self.attend_keys("--layout", "bhnd", q="a.safetensors:block:0:query", k="b.safetensors:ключ/κλειδί", v='c.safetensors:value with spaces"')
        self.assert_result(q, k, v)

    def test_one_tensor_needs_no_key(self):
        q, k, v = make(SHAPE, seed=4)
        for name, a in (("q", q), ("k", k), ("v", v)):
            save_file({"some." + name: a}, self.path(name + ".safetensors"))
        self.attend("--layout", "bhnd", q="q.safetensors", k="k.safetensors", v="v.safetensors", o="o.safetensors:o", lse="o.safetensors:lse")
        self.assert_result(q, k, v)

    def test_one_tensor_for_q_k_and_v(self):
        x = make((1, 2, 2, 50, 50, 16, 16), seed=5)[0]
        save_file({"x": x}, self.path("t.safetensors"))
        self.attend_keys("--layout", "bhnd", q="t.safetensors:x", k="t.safetensors:x", v="t.safetensors:x")
        self.assert_result(x, x, x)

    def test_unaligned_offsets(self):
        for dtype in DTYPES:
            for pad in range(8):
                with self.subTest(dtype=dtype, pad=pad):
                    q, k, v = make(SHAPE, dtype, seed=6)
                    odd = np.arange(3, dtype=np.uint8)
                    start = by_hand(self.path("t.safetensors"), [("odd", odd, "U8"), ("q", q, NAMES[dtype]), ("odd2", odd, "U8"),
                                                                 ("k", k, NAMES[dtype]), ("v", v, NAMES[dtype])], pad)
                    # The package agrees that this is a file, and what is in it.
                    np.testing.assert_array_equal(load_file(self.path("t.safetensors"))["q"].view(np.uint8), q.view(np.uint8))
                    if pad == 0:
                        offsets = {(start + p) % 4 for p in range(8)}
                        self.assertEqual(len(offsets), 4)
                    self.attend_keys("--layout", "bhnd")
                    self.assert_result(q, k, v, dtype)

    def test_odd_sizes(self):
        for shape in ((1, 1, 1, 1, 1, 1, 1), (1, 3, 1, 7, 5, 3, 11), (1, 1, 1, 129, 513, 63, 65)):
            for dtype in DTYPES:
                with self.subTest(shape=shape, dtype=dtype):
                    q, k, v = make(shape, dtype, seed=7)
                    save_file({"q": q, "k": k, "v": v, "pad": np.zeros(1, np.uint8)}, self.path("t.safetensors"))
                    self.attend_keys("--layout", "bhnd")
                    self.assert_result(q, k, v, dtype)

    def test_npy_and_safetensors_together(self):
        q, k, v = make(SHAPE, "bf16", seed=8)
        np.save(self.path("q.npy"), q)
        save_file({"k": k, "v": v}, self.path("t.safetensors"))
        self.attend_keys("--layout", "bhnd", "--dtype", "bf16", q="q.npy")
        self.assert_result(q, k, v, "bf16")


class Write(SafetensorsCase):
    def setUp(self):
        super().setUp()
        self.qkv = make(SHAPE, "bf16", seed=20)
        save_file(dict(zip("qkv", self.qkv)), self.path("t.safetensors"))

    def test_two_files(self):
        self.attend_keys("--layout", "bhnd", lse="l.safetensors:lse")
        self.assert_result(*self.qkv, dtype="bf16", keys=("o",))
        self.assert_lse(load_file(self.path("l.safetensors"))["lse"], attention(*self.qkv)[1])

    def test_keys(self):
        self.attend_keys("--layout", "bhnd", o="r.safetensors:layer.0:out", lse='r.safetensors:é " \\ lse')
        self.assert_result(*self.qkv, dtype="bf16", file="r.safetensors", keys=("layer.0:out", 'é " \\ lse'))

    def test_output_types(self):
        for out in DTYPES:
            with self.subTest(out):
                self.attend_keys("--layout", "bhnd", "--out-dtype", out)
                self.assert_result(*self.qkv, dtype="bf16", out=out)

    def test_npy_from_safetensors(self):
        self.attend_keys("--layout", "bhnd", o="o.npy", lse="lse.npy")
        want, lse = attention(*self.qkv)
        self.assert_output(self.load("o.npy", "bf16"), want, "bf16")
        self.assert_lse(self.load("lse.npy"), lse)

    def test_metadata_says_the_base_of_lse(self):
        self.attend_keys("--layout", "bhnd")
        with safetensors.safe_open(self.path("o.safetensors"), "numpy") as f:
            self.assertEqual(sorted(f.keys()), ["lse", "o"])
            self.assertEqual(f.get_slice("o").get_dtype(), "BF16")
            self.assertEqual(f.get_slice("lse").get_dtype(), "F32")
            self.assertEqual(f.metadata()["lse_base"], "e")
            np.testing.assert_array_equal(f.get_slice("lse")[1:, :, :5], f.get_tensor("lse")[1:, :, :5])

    def test_data_are_aligned(self):
        self.attend_keys("--layout", "bhnd", o="o.safetensors:x" + "y" * 13)
        with open(self.path("o.safetensors"), "rb") as f:
            length = struct.unpack("<Q", f.read(8))[0]
            self.assertEqual((8 + length) % 8, 0)
            header = json.loads(f.read(length))
        for key, t in header.items():
            if key != "__metadata__":
                self.assertEqual(t["data_offsets"][0] % {"F32": 4, "BF16": 2}[t["dtype"]], 0, key)

    def test_output_feeds_the_next_run(self):
        self.attend_keys("--layout", "bhnd", o="a.safetensors:o", lse=None)
        o = load_file(self.path("a.safetensors"))["o"]
        k, v = make(SHAPE[:5] + (40, 8), "bf16", seed=21)[1:]
        save_file({"k": k, "v": v}, self.path("b.safetensors"))
        self.attend_keys("--layout", "bhnd", q="a.safetensors:o", k="b.safetensors:k", v="b.safetensors:v")
        self.assert_result(o, k, v, "bf16")


class Refuse(SafetensorsCase):
    def refuse(self, *flags, code=3, says=(), **refs):
        files = {"q": "t.safetensors:q", "k": "t.safetensors:k", "v": "t.safetensors:v"}
        files.update(refs)
        before = sorted(os.listdir(self.dir))
        r = self.run_raw("run", "--q", files["q"], "--k", files["k"], "--v", files["v"], "-o", "o.safetensors:o",
                         "--lse", "o.safetensors:lse", "--mem-budget", "64MiB", "--layout", "bhnd", *flags)
        self.assertEqual(r.returncode, code, r.stderr)
        self.assertEqual(len(r.stderr.rstrip("\n").split("\n")), 1, "not one sentence: " + r.stderr)
        for word in says:
            self.assertIn(word, r.stderr)
        self.assertEqual(sorted(os.listdir(self.dir)), before, "files left behind")

    def setUp(self):
        super().setUp()
        self.qkv = make(SHAPE, seed=30)
        save_file(dict(zip("qkv", self.qkv)), self.path("t.safetensors"))

    def test_unknown_key(self):
        self.refuse(k="t.safetensors:keys", says=("t.safetensors", "keys"))

    def test_no_key_of_several(self):
        self.refuse(k="t.safetensors", says=("t.safetensors",))

    def test_other_types(self):
        for a in (np.zeros((2, 3, 127, 24)), np.zeros((2, 3, 127, 24), np.int32), np.zeros((2, 3, 127, 24), bool)):
            with self.subTest(str(a.dtype)):
                save_file({"x": a}, self.path("x.safetensors"))
                self.refuse(k="x.safetensors:x", says=("x.safetensors",))

    def test_mixed_types(self):
        save_file({"x": self.qkv[1].astype(np.float16)}, self.path("x.safetensors"))
        self.refuse(k="x.safetensors:x", says=("x.safetensors",))

    def test_stated_type_is_not_the_file_s(self):
        self.refuse("--dtype", "bf16", says=("t.safetensors",))

    def test_broken_files(self):
        good = save({"x": self.qkv[1]})
        size = struct.unpack("<Q", good[:8])[0]
        for name, data in {
            "empty": b"", "short": good[:7], "header cut off": good[:40], "data cut off": good[:-1], "trailing bytes": good + b"\0",
            "huge header": struct.pack("<Q", 1 << 62) + good[8:], "not JSON": good[:8] + b"x" * size + good[8 + size:],
        }.items():
            with self.subTest(name):
                with open(self.path("x.safetensors"), "wb") as f:
                    f.write(data)
                with self.assertRaises(Exception):  # the package refuses it too
                    load_file(self.path("x.safetensors"))
                self.refuse(k="x.safetensors:x", says=("x.safetensors",))

    def test_output_over_an_input(self):
        before = self.read_bytes("t.safetensors")
        r = self.run_raw("run", "--q", "t.safetensors:q", "--k", "t.safetensors:k", "--v", "t.safetensors:v",
                         "-o", "t.safetensors:o", "--mem-budget", "64MiB", "--layout", "bhnd")
        self.assertEqual(r.returncode, 2, r.stderr)
        self.assertEqual(self.read_bytes("t.safetensors"), before)


if __name__ == "__main__":
    unittest.main()
