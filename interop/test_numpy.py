"""What NumPy writes is read, what is written NumPy reads, and the rest is refused."""
import os
import unittest

import numpy as np
from ml_dtypes import bfloat16

from support import DTYPES, Case, attention, lse_to_layout, make, to_layout

SHAPE = (2, 4, 2, 67, 131, 40, 24)


class Read(Case):
    def test_types_saved_by_numpy(self):
        for dtype in ("f32", "f16", "bf16"):
            with self.subTest(dtype):
                self.check(*make(SHAPE, dtype, seed=1), dtype=dtype)

    def test_ml_dtypes_is_saved_as_void(self):
        # What the rest of this file takes for granted.
        np.save(self.path("a.npy"), np.zeros(3, bfloat16))
        self.assertEqual(np.load(self.path("a.npy")).dtype, np.dtype("V2"))

    def test_bfloat16_viewed_as_integers(self):
        q, k, v = make(SHAPE, "bf16", seed=2)
        want, lse = attention(q, k, v)
        for view in (np.uint16, np.int16, np.dtype("V2")):
            with self.subTest(str(view)):
                self.save(*(a.view(view) for a in (q, k, v)))
                self.attend("--layout", "bhnd", "--dtype", "bf16")
                self.assert_output(self.load("o.npy", "bf16"), want, "bf16")
                self.assert_lse(self.load("lse.npy"), lse)

    def test_versions_of_npy(self):
        q, k, v = make(SHAPE, seed=3)
        want, lse = attention(q, k, v)
        for version in ((1, 0), (2, 0), (3, 0)):
            with self.subTest(version):
                for name, a in (("q", q), ("k", k), ("v", v)):
                    with open(self.path(name + ".npy"), "wb") as f:
                        np.lib.format.write_array(f, a, version=version, allow_pickle=False)
                    self.assertEqual(tuple(self.read_bytes(name + ".npy")[6:8]), version)
                self.attend("--layout", "bhnd")
                self.assert_output(self.load("o.npy"), want, "f32")
                self.assert_lse(self.load("lse.npy"), lse)

    def test_each_input_in_a_format_of_its_own(self):
        q, k, v = make((1, 1, 1, 33, 65, 16, 16), seed=4)
        np.save(self.path("q.npy"), q[0, 0])
        with open(self.path("k.npy"), "wb") as f:
            np.lib.format.write_array(f, k[0, 0], version=(2, 0))
        m = np.lib.format.open_memmap(self.path("v.npy"), mode="w+", dtype=np.float32, shape=v[0, 0].shape)
        m[:] = v[0, 0]
        m.flush()
        self.attend()  # rank 2 needs no --layout
        self.assert_output(self.load("o.npy"), attention(q, k, v)[0][0, 0], "f32")

    def test_native_and_little_endian_and_no_native_name(self):
        # '=' and '<' and what astype makes are one and the same in the file.
        q, k, v = make(SHAPE, seed=5)
        self.save(q.astype("=f4"), k.astype("<f4"), v.astype(np.dtype("float32").newbyteorder("<")))
        self.attend("--layout", "bhnd")
        self.assert_output(self.load("o.npy"), attention(q, k, v)[0], "f32")

    def test_odd_sizes(self):
        for shape in ((1, 1, 1, 1, 1, 1, 1), (1, 1, 1, 1, 300, 7, 3), (1, 3, 1, 257, 1, 5, 129), (3, 5, 5, 13, 17, 33, 31)):
            for dtype in ("f32", "f16", "bf16"):
                with self.subTest(shape=shape, dtype=dtype):
                    self.check(*make(shape, dtype, seed=6), dtype=dtype)


class Write(Case):
    def test_header_is_what_numpy_writes(self):
        q, k, v = make(SHAPE, seed=7)
        self.save(q, k, v)
        self.attend("--layout", "bhnd")
        for name, shape in (("o.npy", (2, 4, 67, 24)), ("lse.npy", (2, 4, 67))):
            a = np.load(self.path(name))
            self.assertEqual((a.dtype, a.shape, a.flags.c_contiguous), (np.dtype("<f4"), shape, True))
            np.save(self.path("again.npy"), a)
            self.assertEqual(self.read_bytes(name), self.read_bytes("again.npy"), name + " differs from what np.save makes of it")

    def test_memory_map(self):
        q, k, v = make(SHAPE, seed=8)
        self.save(q, k, v)
        self.attend("--layout", "bhnd")
        self.assert_output(np.asarray(np.load(self.path("o.npy"), mmap_mode="r")), attention(q, k, v)[0], "f32")

    def test_bfloat16_output_can_be_an_input(self):
        q, k, v = make((1, 2, 2, 96, 96, 32, 32), "bf16", seed=9)
        self.check(q, k, v, dtype="bf16")
        o = self.load("o.npy", "bf16")
        os.rename(self.path("o.npy"), self.path("x.npy"))
        self.attend("--layout", "bhnd", "--dtype", "bf16", q="x.npy")
        self.assert_output(self.load("o.npy", "bf16"), attention(o, k, v)[0], "bf16")

    def test_output_types(self):
        for dtype in DTYPES:
            for out in DTYPES:
                with self.subTest(dtype=dtype, out=out):
                    self.check(*make(SHAPE, dtype, seed=10), dtype=dtype, out=out)

    def test_without_lse(self):
        q, k, v = make(SHAPE, seed=11)
        self.save(q, k, v)
        self.attend("--layout", "bhnd", lse=None)
        self.assert_output(self.load("o.npy"), attention(q, k, v)[0], "f32")
        self.assertFalse(os.path.exists(self.path("lse.npy")))

    def test_output_replaces_a_file(self):
        q, k, v = make(SHAPE, seed=12)
        self.save(q, k, v)
        np.save(self.path("o.npy"), np.ones(10_000))
        self.attend("--layout", "bhnd")
        self.assert_output(self.load("o.npy"), attention(q, k, v)[0], "f32")


class Raw(Case):
    def test_tofile_and_fromfile(self):
        for dtype in DTYPES:
            for layout in ("bhnd", "bnhd"):
                with self.subTest(dtype=dtype, layout=layout):
                    q, k, v = make(SHAPE, dtype, seed=13)
                    for name, a in (("q", q), ("k", k), ("v", v)):
                        to_layout(a, layout).tofile(self.path(name + ".bin"))
                    self.attend("--shape", ",".join(map(str, SHAPE)), "--dtype", dtype, "--layout", layout,
                                q="q.bin", k="k.bin", v="v.bin", o="o.bin", lse="lse.bin")
                    want, lse = (to_layout(attention(q, k, v)[0], layout), lse_to_layout(attention(q, k, v)[1], layout))
                    self.assert_output(np.fromfile(self.path("o.bin"), DTYPES[dtype]).reshape(want.shape), want, dtype)
                    self.assert_lse(np.fromfile(self.path("lse.bin"), np.float32).reshape(lse.shape), lse)

    def test_offset(self):
        for offset in (1, 13, 4096):  # bytes: elements need not be aligned
            with self.subTest(offset):
                q, k, v = make(SHAPE, seed=14)
                for name, a in (("q", q), ("k", k), ("v", v)):
                    with open(self.path(name + ".bin"), "wb") as f:
                        f.write(b"\xff" * offset + a.tobytes())
                self.attend("--shape", ",".join(map(str, SHAPE)), "--dtype", "f32", "--layout", "bhnd", "--offset", offset,
                            q="q.bin", k="k.bin", v="v.bin")
                self.assert_output(self.load("o.npy"), attention(q, k, v)[0], "f32")


class Refuse(Case):
    """Exit code 3, one sentence, and not a byte written."""

    def refuse(self, *flags, says=()):
        with open(self.path("o.npy"), "wb") as f:
            f.write(b"what was there before")
        before = sorted(os.listdir(self.dir))
        r = self.run_raw("run", "--q", "q.npy", "--k", "k.npy", "--v", "v.npy", "-o", "o.npy", "--lse", "lse.npy",
                         "--mem-budget", "64MiB", *flags)
        self.assertEqual(r.returncode, 3, r.stderr)
        self.assertEqual(r.stdout, "")
        lines = r.stderr.rstrip("\n").split("\n")
        self.assertEqual(len(lines), 1, "not one sentence: " + r.stderr)
        for word in says:
            self.assertIn(word, lines[0])
        self.assertEqual(sorted(os.listdir(self.dir)), before, "files left behind")
        self.assertEqual(self.read_bytes("o.npy"), b"what was there before")

    def each(self, change, *flags, says=()):
        """Refuses the change of each input alone, and of all."""
        for names in (("q",), ("k",), ("v",), ("q", "k", "v")):
            with self.subTest(names):
                for name, a in zip("qkv", make(SHAPE, seed=15)):
                    np.save(self.path(name + ".npy"), change(a) if name in names else a)
                self.refuse("--layout", "bhnd", *flags, says=(names[0] + ".npy", *says))

    def test_fortran_order(self):
        self.each(np.asfortranarray, says=("ascontiguousarray",))

    def test_big_endian(self):
        self.each(lambda a: a.astype(">f4"), says=(">f4",))

    def test_float64(self):
        self.each(lambda a: a.astype(np.float64), says=("<f8",))

    def test_integers(self):
        self.each(lambda a: a.astype(np.int32), says=("<i4",))

    def test_complex(self):
        self.each(lambda a: a.astype(np.complex64), says=("<c8",))

    def test_objects(self):
        self.each(lambda a: a.astype(object), says=("pickled",))

    def test_structured(self):
        self.each(lambda a: a.view([("x", "<f4")]))

    def test_bfloat16_not_stated(self):
        self.each(lambda a: a.astype(bfloat16), says=("bf16",))
        self.each(lambda a: a.astype(bfloat16).view(np.uint16), says=("bf16",))

    def test_bfloat16_in_fortran_order(self):
        q, k, v = make(SHAPE, "bf16", seed=15)
        for name, a in (("q", q), ("k", np.asfortranarray(k.view(np.uint16))), ("v", v)):
            np.save(self.path(name + ".npy"), a)
        self.refuse("--layout", "bhnd", "--dtype", "bf16", says=("k.npy", "ascontiguousarray"))

    def test_stated_type_is_not_the_file_s(self):
        self.save(*make(SHAPE, "f16", seed=16))
        self.refuse("--layout", "bhnd", "--dtype", "bf16", says=("q.npy",))

    def test_mixed_types(self):
        q, k, v = make(SHAPE, seed=17)
        self.save(q, k.astype(np.float16), v)
        self.refuse("--layout", "bhnd", says=("k.npy",))

    def test_cut_off(self):
        self.save(*make(SHAPE, seed=18))
        for keep in (-1, 200, 100, 11, 7, 0):
            with self.subTest(keep):
                data = self.read_bytes("v.npy")
                with open(self.path("v.npy"), "wb") as f:
                    f.write(data[:keep])
                self.refuse("--layout", "bhnd", says=("v.npy",))

    def test_trailing_bytes(self):
        self.save(*make(SHAPE, seed=19))
        with open(self.path("k.npy"), "ab") as f:
            f.write(b"\0")
        self.refuse("--layout", "bhnd", says=("k.npy",))

    def test_several_arrays_in_one_file(self):
        q, k, v = make(SHAPE, seed=20)
        self.save(q, k, v)
        with open(self.path("q.npy"), "ab") as f:
            np.save(f, q)
        self.refuse("--layout", "bhnd", says=("q.npy",))

    def test_npz(self):
        q, k, v = make(SHAPE, seed=21)
        self.save(q, k, v)
        np.savez(self.path("q.npz"), q=q)
        os.replace(self.path("q.npz"), self.path("q.npy"))
        self.refuse("--layout", "bhnd", says=("q.npy",))

    def test_empty_arrays_and_wrong_ranks(self):
        q, k, v = make(SHAPE, seed=22)
        for bad in (q[:, :, :0], q[..., :0], q[0], q[None], q[0, 0, 0], np.float32(1)):
            with self.subTest(np.shape(bad)):
                self.save(q, k, v)
                np.save(self.path("q.npy"), bad)
                self.refuse("--layout", "bhnd")

    def test_shapes_that_do_not_match(self):
        q, k, v = make(SHAPE, seed=23)
        for bad in ((q[..., :-1], k, v), (q, k[:, :, :-1], v), (q, k, v[:, :1]), (q[:1], k, v), (q[:, :3], k, v)):
            with self.subTest([a.shape for a in bad]):
                self.save(*bad)
                self.refuse("--layout", "bhnd")

    def test_missing_file(self):
        self.save(*make(SHAPE, seed=24))
        os.remove(self.path("k.npy"))
        self.refuse("--layout", "bhnd", says=("k.npy",))


if __name__ == "__main__":
    unittest.main()
