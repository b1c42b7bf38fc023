"""PyTorch's tensors in, PyTorch's own attention as the judge, in float64.

Not one of the ordinary tests, since PyTorch is large: interop/run.sh torch
"""
import unittest

import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import scaled_dot_product_attention

from support import Case

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
SHAPE = (2, 6, 3, 70, 150, 32, 32)  # B, H, Hkv, Nq, Nk, D, Dv
FLASH = (0, 2, 1, 3)  # [B, H, N, D] to [B, N, H, D], and back


def make(shape, dtype, seed):
    b, h, hkv, nq, nk, d, dv = shape
    g = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(s, generator=g).to(DTYPES[dtype]) for s in ((b, h, nq, d), (b, hkv, nk, d), (b, hkv, nk, dv)))


def reference(q, k, v, causal=None, scale=None):
    """O by scaled_dot_product_attention, lse by logsumexp, both in float64."""
    q, k, v = q.double(), k.double(), v.double()
    nq, nk = q.shape[2], k.shape[2]
    mask = None
    if causal:
        mask = torch.ones(nq, nk, dtype=torch.bool).tril(nk - nq if causal == "bottom-right" else 0)
    o = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=True)
    s = q @ k.repeat_interleave(q.shape[1] // k.shape[1], dim=1).mT * (q.shape[3] ** -0.5 if scale is None else scale)
    if causal:
        s = s.masked_fill(~mask, float("-inf"))
    return o, s.logsumexp(-1)


class Torch(Case):
    def check(self, q, k, v, *flags, dtype="f32", causal=None, scale=None, flash=False, out=None):
        """flash: the tensors lie as [B, N, H, D]."""
        lay = (lambda a: a.permute(FLASH).contiguous()) if flash else (lambda a: a.contiguous())
        save_file({"q": lay(q), "k": lay(k), "v": lay(v)}, self.path("t.safetensors"), metadata={"format": "pt"})
        flags = ["--layout", "bnhd" if flash else "bhnd", *flags]
        if causal:
            flags += ["--causal", "--causal-align", causal]
        if scale is not None:
            flags += ["--scale", repr(scale)]
        if out:
            flags += ["--out-dtype", out]
        self.attend(*flags, q="t.safetensors:q", k="t.safetensors:k", v="t.safetensors:v", o="o.safetensors:o", lse="o.safetensors:lse")
        got = load_file(self.path("o.safetensors"))
        self.assertEqual(got["o"].dtype, DTYPES[out or dtype])
        o, lse = reference(q, k, v, causal, scale)
        if flash:
            o, lse = o.permute(FLASH), lse.transpose(1, 2)
        self.assertEqual((got["o"].shape, got["lse"].shape), (o.shape, lse.shape))
        error = (got["o"].double() - o).norm()
        if (out or dtype) == "f32":
            allowed = 1e-6 * o.norm()
        else:
            allowed = 1.02 * (o.to(DTYPES[out or dtype]).double() - o).norm()
        self.assertLessEqual(error.item(), allowed.item())
        self.assert_lse(got["lse"].numpy(), lse.numpy())
        return got["o"]

    def test_types_and_layouts(self):
        for dtype in DTYPES:
            for flash in (False, True):
                with self.subTest(dtype=dtype, flash=flash):
                    self.check(*make(SHAPE, dtype, 1), dtype=dtype, flash=flash)

    def test_output_types(self):
        for out in DTYPES:
            with self.subTest(out):
                self.check(*make(SHAPE, "bf16", 2), dtype="bf16", out=out)

    def test_grouped_queries(self):
        # PyTorch's enable_gqa decides which KV head a query head uses.
        for h, hkv in ((8, 1), (8, 2), (6, 6)):
            with self.subTest(h=h, hkv=hkv):
                self.check(*make((1, h, hkv, 50, 60, 16, 16), "f32", 3))

    def test_value_width(self):
        self.check(*make((1, 2, 2, 50, 60, 64, 24), "f16", 4), dtype="f16")

    def test_causal(self):
        for nq, nk, causal in ((100, 100, "top-left"), (100, 100, "bottom-right"), (40, 110, "bottom-right"), (40, 110, "top-left"), (110, 40, "top-left")):
            with self.subTest(nq=nq, nk=nk, causal=causal):
                self.check(*make((1, 2, 2, nq, nk, 16, 16), "f32", 5), causal=causal)

    def test_is_causal_is_top_left(self):
        q, k, v = make((1, 2, 2, 80, 80, 16, 16), "f32", 6)
        o = self.check(q, k, v, causal="top-left")
        want = scaled_dot_product_attention(q.double(), k.double(), v.double(), is_causal=True)
        torch.testing.assert_close(o.double(), want, rtol=0, atol=1e-6)

    def test_scale(self):
        self.check(*make(SHAPE, "f32", 7), scale=0.5)

    def test_divided(self):
        for divide, chunks in (("cqs", 7), ("cqs", 13), ("rows", 4)):
            for causal in (None, "bottom-right"):
                with self.subTest(divide=divide, chunks=chunks, causal=causal):
                    self.check(*make((1, 4, 2, 400, 500, 64, 64), "bf16", 8), "--divide", divide, "--chunks", chunks, dtype="bf16", causal=causal)

    def test_errors_are_those_of_rounding_and_less_than_pytorch_s_own(self):
        q, k, v = make((1, 4, 4, 1024, 1024, 64, 64), "bf16", 9)
        o = self.check(q, k, v, dtype="bf16")
        want, _ = reference(q, k, v)
        theirs = scaled_dot_product_attention(q, k, v)
        self.assertLessEqual((o.double() - want).norm().item(), (theirs.double() - want).norm().item())


if __name__ == "__main__":
    unittest.main()
