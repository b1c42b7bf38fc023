"""Every kind of problem against the definition in float64 NumPy."""
import itertools
import json
import unittest

import numpy as np

from support import DTYPES, Case, attention, make, to_layout

ALIGN = ("top-left", "bottom-right")


class Layouts(Case):
    def test_all(self):
        for dtype in DTYPES:
            for layout, shape in {
                "bhnd": (2, 4, 2, 45, 70, 24, 16), "bnhd": (2, 4, 2, 45, 70, 24, 16), "hnd": (1, 4, 2, 45, 70, 24, 16),
                "nhd": (1, 4, 2, 45, 70, 24, 16), "nd": (1, 1, 1, 45, 70, 24, 16),
            }.items():
                with self.subTest(dtype=dtype, layout=layout):
                    self.check(*make(shape, dtype, seed=1), layout=layout, dtype=dtype)

    def test_divided(self):
        for layout in ("bhnd", "bnhd", "hnd", "nhd"):
            for divide in (("cqs", 7), ("rows", 3)):
                with self.subTest(layout=layout, divide=divide):
                    shape = (1, 4, 2, 150, 170, 24, 16)
                    self.check(*make(shape, seed=2), "--divide", divide[0], "--chunks", divide[1], layout=layout, causal="bottom-right")

    def test_a_layout_is_never_guessed(self):
        self.save(*make((1, 8, 8, 8, 8, 16, 16), seed=3))
        r = self.run_raw("run", "--q", "q.npy", "--k", "k.npy", "--v", "v.npy", "-o", "o.npy", "--mem-budget", "64MiB")
        self.assertEqual(r.returncode, 2, r.stderr)
        self.assertIn("--layout", r.stderr)

    def test_the_layout_matters(self):
        # H = N: both readings are possible, and they differ.
        q, k, v = make((1, 8, 8, 8, 8, 16, 16), seed=4)
        self.check(q, k, v, layout="bhnd")
        a = self.load("o.npy")
        self.save(q, k, v)
        self.attend("--layout", "bnhd")
        self.assertGreater(np.abs(a - self.load("o.npy")).max(), 0.1)


class Heads(Case):
    def test_shared_kv_heads(self):
        # Query head h uses KV head h // (Hq/Hkv): np.repeat, not np.tile.
        for h, hkv in ((8, 8), (8, 4), (8, 1), (9, 3), (14, 2)):
            with self.subTest(h=h, hkv=hkv):
                self.check(*make((2, h, hkv, 40, 50, 16, 24), seed=5))

    def test_repeat_is_not_tile(self):
        q, k, v = make((1, 4, 2, 30, 30, 16, 16), seed=6)
        self.check(q, k, v)
        tiled = attention(q, np.tile(k, (1, 2, 1, 1)), np.tile(v, (1, 2, 1, 1)))[0]
        self.assertGreater(np.abs(self.load("o.npy") - tiled).max(), 0.1)

    def test_widths(self):
        for d, dv in itertools.product((1, 8, 33, 128, 192), (1, 16, 65, 128)):
            with self.subTest(d=d, dv=dv):
                self.check(*make((1, 2, 1, 33, 70, d, dv), "bf16", seed=7), dtype="bf16")


class Causal(Case):
    def test_both_alignments(self):
        for nq, nk in ((96, 96), (50, 130), (130, 50), (1, 77), (77, 1), (257, 255)):
            for causal in ALIGN:
                for divide in ((), ("--divide", "cqs", "--chunks", 7), ("--divide", "rows", "--chunks", 4)):
                    with self.subTest(nq=nq, nk=nk, causal=causal, divide=divide):
                        self.check(*make((1, 2, 1, nq, nk, 16, 8), seed=8), *divide, causal=causal)

    def test_rows_that_see_no_key(self):
        q, k, v = make((1, 2, 2, 100, 60, 16, 16), "bf16", seed=9)
        self.check(q, k, v, dtype="bf16", causal="bottom-right")
        o, lse = self.load("o.npy", "bf16"), self.load("lse.npy")
        self.assertFalse(o[:, :, :40].view(np.uint16).any(), "O of rows that see no key is not +0")
        self.assertTrue(np.isneginf(lse[:, :, :40]).all())
        self.assertTrue(np.isfinite(lse[:, :, 40:]).all())

    def test_alignment_must_be_said(self):
        self.save(*make((1, 1, 1, 10, 20, 8, 8), seed=10))
        r = self.run_raw("run", "--q", "q.npy", "--k", "k.npy", "--v", "v.npy", "-o", "o.npy", "--mem-budget", "64MiB",
                         "--layout", "bhnd", "--causal")
        self.assertEqual(r.returncode, 2, r.stderr)
        self.assertIn("--causal-align", r.stderr)

    def test_square_needs_no_alignment(self):
        q, k, v = make((1, 1, 1, 64, 64, 8, 8), seed=11)
        self.save(q, k, v)
        self.attend("--layout", "bhnd", "--causal")
        self.assert_output(self.load("o.npy"), attention(q, k, v, causal="top-left")[0], "f32")


class Long(Case):
    """Past 65,536 rows, where 16-bit counters of rows or blocks end."""

    def test_many_keys(self):
        for dtype in ("f32", "bf16"):
            with self.subTest(dtype):
                self.check(*make((1, 1, 1, 24, 150_001, 16, 16), dtype, seed=32), dtype=dtype, budget="4MiB")

    def test_many_queries(self):
        self.check(*make((1, 1, 1, 150_001, 24, 16, 16), seed=33), layout="nd", budget="4MiB")

    def test_many_queries_causal(self):
        self.check(*make((1, 1, 1, 100_001, 40, 16, 16), seed=34), causal="bottom-right", budget="4MiB")


class Scale(Case):
    def test_scale(self):
        for scale in (1.0, 0.03125, 0.2, 1e-30, 0.0, -0.5):
            with self.subTest(scale):
                self.check(*make((1, 2, 2, 60, 90, 16, 16), seed=12), scale=scale)

    def test_scores_in_the_thousands(self):
        # exp(lse) is not a float32, nor a float64.
        for dtype in DTYPES:
            with self.subTest(dtype):
                self.check(*make((1, 2, 2, 80, 200, 16, 16), dtype, seed=13, spread=30), dtype=dtype, scale=1.0)

    def test_values_far_from_zero(self):
        q, k, v = make((1, 2, 2, 80, 200, 16, 16), seed=14)
        self.check(q, k, v + np.float32(1000))


class Special(Case):
    """NaN and infinity reach the rows that they reach in float64, and no other."""

    @staticmethod
    def by_rows(q, k, v, causal):
        """The definition, one row at a time: a key that a row does not see takes
        no part, not even as 0 * NaN."""
        o = np.zeros(q.shape[:3] + v.shape[3:])
        q, k, v = (a.astype(np.float64) for a in (q, k, v))
        shift = k.shape[2] - q.shape[2] if causal == "bottom-right" else 0
        with np.errstate(invalid="ignore"):
            for h in range(q.shape[1]):
                for i in range(q.shape[2]):
                    n = min(max(i + shift + 1, 0), k.shape[2]) if causal else k.shape[2]
                    if n:
                        s = k[0, h, :n] @ q[0, h, i] * q.shape[3] ** -0.5
                        p = np.exp(s - s.max())
                        o[0, h, i] = (p[:, None] * v[0, h, :n]).sum(axis=0) / p.sum()
        return o

    def test_nan_and_infinity(self):
        for value in (np.nan, np.inf, -np.inf):
            for where in "qkv":
                for causal in (None, "top-left", "bottom-right"):
                    for dtype, divide in (("f32", ("cqs", 7)), ("bf16", ("rows", 3))):
                        with self.subTest(value=value, where=where, causal=causal, dtype=dtype, divide=divide):
                            tensors = dict(zip("qkv", make((1, 2, 2, 60, 75, 16, 16), dtype, seed=30)))
                            tensors[where][0, 1, 33, 5] = value
                            self.save(*tensors.values())
                            flags = ("--causal", "--causal-align", causal) if causal else ()
                            flags += ("--dtype", "bf16") if dtype == "bf16" else ()
                            self.attend("--layout", "bhnd", "--divide", divide[0], "--chunks", divide[1], *flags)
                            got, want = self.load("o.npy", dtype).astype(np.float64), self.by_rows(*tensors.values(), causal)
                            np.testing.assert_allclose(got, want, rtol=0.01, atol=0.01)  # NaN and inf where they belong

    def test_all_scores_minus_infinity_but_one(self):
        q, k, v = make((1, 1, 1, 20, 40, 8, 8), seed=31)
        q[:] = np.abs(q)
        k[0, 0, :, 0] = -np.inf
        k[0, 0, 17, 0] = 1
        self.save(q, k, v)
        self.attend("--layout", "bhnd", "--divide", "cqs", "--chunks", 7)
        np.testing.assert_allclose(self.load("o.npy"), np.broadcast_to(v[:, :, 17:18], (1, 1, 20, 8)), rtol=2e-7)


class Division(Case):
    SHAPES = ((1, 2, 1, 500, 500, 32, 32), (2, 1, 1, 301, 700, 16, 40))

    def test_cqs(self):
        for shape in self.SHAPES:
            for chunks in (3, 7, 13, 21):
                for causal in (None, "bottom-right"):
                    with self.subTest(shape=shape, chunks=chunks, causal=causal):
                        self.check(*make(shape, seed=15), "--divide", "cqs", "--chunks", chunks, causal=causal)

    def test_cqs_of_types(self):
        for dtype in DTYPES:
            for out in ("f32", dtype):
                with self.subTest(dtype=dtype, out=out):
                    self.check(*make(self.SHAPES[1], dtype, seed=16), "--divide", "cqs", "--chunks", 7, dtype=dtype, out=out)

    def test_cqs_in_depth(self):
        for depth in (2, 3):
            with self.subTest(depth):
                self.check(*make(self.SHAPES[0], seed=17), "--divide", "cqs", "--chunks", 7, "--depth", depth, causal="top-left")

    def test_more_chunks_than_tokens(self):
        self.check(*make((1, 1, 1, 5, 5, 8, 8), seed=18), "--divide", "cqs", "--chunks", 13)

    def test_rows(self):
        for shape in self.SHAPES:
            for chunks in (1, 2, 5, 16):
                with self.subTest(shape=shape, chunks=chunks):
                    self.check(*make(shape, seed=19), "--divide", "rows", "--chunks", chunks)

    def test_divisions_agree(self):
        q, k, v = make((1, 2, 2, 600, 600, 32, 32), seed=20)
        got = []
        for flags in (("--divide", "rows"), ("--divide", "cqs", "--chunks", 7), ("--divide", "cqs", "--chunks", 13), ("--threads", 1)):
            self.check(q, k, v, *flags)
            got.append(self.load("o.npy"))
        for a in got[1:]:
            np.testing.assert_allclose(a, got[0], rtol=0, atol=1e-6)

    def test_threads_change_no_bit(self):
        q, k, v = make((1, 3, 3, 400, 400, 32, 32), "bf16", seed=21)
        self.save(q, k, v)
        got = []
        for threads in (1, 2, 5):
            self.attend("--layout", "bhnd", "--dtype", "bf16", "--divide", "cqs", "--chunks", 7, "--threads", threads, "--out-dtype", "f32")
            got.append((self.read_bytes("o.npy"), self.read_bytes("lse.npy")))
        self.assertEqual(got[0], got[1])
        self.assertEqual(got[0], got[2])


class Budget(Case):
    SHAPE = (1, 4, 2, 1500, 1700, 64, 64)

    def json_run(self, *flags):
        r = self.run_ok("run", "--q", "q.npy", "--k", "k.npy", "--v", "v.npy", "-o", "o.npy", "--lse", "lse.npy",
                        "--layout", "bhnd", "--threads", 2, "--json", *flags)
        return {d["type"]: d for d in map(json.loads, r.stdout.splitlines())}

    def test_small_budgets(self):
        q, k, v = make(self.SHAPE, seed=22)
        self.save(q, k, v)
        want, lse = attention(q, k, v)
        budgets, budget = [], 16 << 20
        while True:
            r = self.run_raw("plan", "--q", "q.npy", "--k", "k.npy", "--v", "v.npy", "--layout", "bhnd", "--threads", 2,
                             "--mem-budget", "%dB" % budget, "--json")
            if r.returncode == 4:
                break
            self.assertEqual(r.returncode, 0, r.stderr)
            budgets.append(budget)
            budget //= 4
        self.assertGreaterEqual(len(budgets), 3, "only budgets of %s fit" % budgets)
        for budget in budgets:
            with self.subTest(budget):
                docs = self.json_run("--mem-budget", "%dB" % budget)
                self.assert_output(self.load("o.npy"), want, "f32")
                self.assert_lse(self.load("lse.npy"), lse)
                self.assertLessEqual(docs["summary"]["memory_total"], budget)
                self.assertEqual(docs["summary"]["memory_total"], docs["plan"]["memory_total"])

    def test_does_not_fit(self):
        self.save(*make(self.SHAPE, seed=23))
        r = self.run_raw("run", "--q", "q.npy", "--k", "k.npy", "--v", "v.npy", "-o", "o.npy", "--layout", "bhnd", "--mem-budget", "1KiB")
        self.assertEqual(r.returncode, 4, r.stderr)
        self.assertEqual(len(r.stderr.rstrip("\n").split("\n")), 1, r.stderr)

    def test_a_bare_number_is_no_size(self):
        self.save(*make((1, 1, 1, 8, 8, 8, 8), seed=24))
        r = self.run_raw("run", "--q", "q.npy", "--k", "k.npy", "--v", "v.npy", "-o", "o.npy", "--layout", "bhnd", "--mem-budget", "1000000")
        self.assertEqual(r.returncode, 2, r.stderr)

    def test_inputs_are_not_touched(self):
        self.save(*make((1, 2, 2, 300, 300, 16, 16), seed=25))
        before = [self.read_bytes(n + ".npy") for n in "qkv"]
        self.attend("--layout", "bhnd", "--divide", "cqs", "--chunks", 7)
        self.assertEqual([self.read_bytes(n + ".npy") for n in "qkv"], before)


class Verify(Case):
    """verify agrees with NumPy on what is right and what is not."""

    def verify(self, *flags):
        return self.run_raw("verify", "--q", "q.npy", "--k", "k.npy", "--v", "v.npy", "--o", "o.npy", "--lse", "lse.npy",
                            "--layout", "bhnd", "--rows", 0, *flags)

    def test_numpy_s_own_result_passes(self):
        for dtype in DTYPES:
            with self.subTest(dtype):
                q, k, v = make((1, 4, 2, 90, 110, 32, 24), dtype, seed=26)
                self.save(q, k, v)
                o, lse = attention(q, k, v)
                np.save(self.path("o.npy"), to_layout(o.astype(np.float32).astype(DTYPES[dtype]), "bhnd"))
                np.save(self.path("lse.npy"), lse.astype(np.float32))
                r = self.verify(*(("--dtype", "bf16") if dtype == "bf16" else ()))
                self.assertEqual(r.returncode, 0, r.stdout + r.stderr)

    def test_one_wrong_row_fails(self):
        q, k, v = make((1, 4, 2, 90, 110, 32, 24), seed=27)
        self.save(q, k, v)
        o, lse = (a.astype(np.float32) for a in attention(q, k, v))
        for name, change in (("o", o[0, 3, 17]), ("lse", lse[0, 3, 17:18])):
            with self.subTest(name):
                old = change.copy()
                change *= 1.001
                np.save(self.path("o.npy"), o)
                np.save(self.path("lse.npy"), lse)
                change[:] = old
                r = self.verify()
                self.assertEqual(r.returncode, 6, r.stdout + r.stderr)

    def test_nan_fails(self):
        q, k, v = make((1, 1, 1, 40, 40, 8, 8), seed=28)
        self.save(q, k, v)
        o, lse = (a.astype(np.float32) for a in attention(q, k, v))
        o[0, 0, 5, 5] = np.nan
        np.save(self.path("o.npy"), o)
        np.save(self.path("lse.npy"), lse)
        self.assertEqual(self.verify().returncode, 6)


class Gen(Case):
    def test_numpy_and_safetensors_read_it(self):
        from safetensors.numpy import load_file
        shape = (1, 4, 2, 33, 65, 16, 24)
        for dtype in DTYPES:
            with self.subTest(dtype):
                common = ("gen", "--shape", ",".join(map(str, shape)), "--dtype", dtype, "--seed", 5)
                self.run_ok(*common, "--format", "npy", dtype + "-npy")
                self.run_ok(*common, "--format", "safetensors", dtype + "-st")
                st = load_file(self.path(dtype + "-st/qkv.safetensors"))
                q, k, v = (self.load("%s-npy/%s.npy" % (dtype, n), dtype) for n in "qkv")
                for n, a in zip("qkv", (q, k, v)):
                    self.assertEqual((a.dtype, st[n].dtype), (DTYPES[dtype],) * 2)
                    self.assertEqual(a.tobytes(), st[n].tobytes())
                self.assertEqual((q.shape, k.shape, v.shape), ((1, 4, 33, 16), (1, 2, 65, 16), (1, 2, 65, 24)))
                self.check(q, k, v, dtype=dtype)

    def test_numbers_are_normal(self):
        self.run_ok("gen", "--shape", "1,4,2048,64", "--seed", 1, "g")
        for n in "qkv":
            a = self.load("g/%s.npy" % n).astype(np.float64)
            self.assertLess(abs(a.mean()), 5 / a.size ** 0.5)
            self.assertLess(abs(a.std() - 1), 5 / a.size ** 0.5)
            self.assertLess(abs((a ** 4).mean() - 3), 50 / a.size ** 0.5)
            self.assertGreater(np.abs(a).max(), 4)


if __name__ == "__main__":
    unittest.main()
