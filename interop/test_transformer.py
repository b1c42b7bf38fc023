"""A real transformer, whose attention is computed by streamcqsa."""
import unittest

import numpy as np
from ml_dtypes import bfloat16
from safetensors.numpy import load_file, save_file

import minilm
from support import Case, attention, lse_to_layout, to_layout

# Written for this test.
TEXT = """
The harbour master kept two clocks on the wall of her office. One showed the hour that the town kept, and the other
showed the hour of high water, which slipped by fifty minutes every day and so was never where a visitor expected it.
Ships came in by the second clock. A captain who trusted the first would find the sandbar waiting for him, and the
harbour master would note his name in a ledger, in green ink, under the heading "those who were told".

She had learned the tides from her father, who had learned them from a printed table and forty years of mistakes. The
table was right about the moon and wrong about the wind. With three days of wind from the west the water stood a foot
higher than the printers in the capital believed, and with a hard frost and an east wind it hardly came at all. Her
father wrote these corrections in the margin, so that the book grew thick with other people's weather, and when it was
full he began to keep them in his head. That, she thought, was his only real error: a correction that nobody else can
read dies with the man who made it.

So she kept a journal. Every morning she wrote down the predicted height, the measured height, the wind and the
pressure, and every winter she sat with a pencil and looked for the rule that would turn the first number into the
second. She never found one that was good for more than a year. But the journal itself turned out to be what the
engineers wanted when they came to build the new breakwater: eleven thousand mornings, none of them missing, each one
measured by the same hand with the same brass rule. They asked whether she could summarise it for them. She said that
she could not, that a summary was exactly what the printed table had been, and that they would have to read it all.
"""

# The similarities that the documentation of sentence-transformers prints for this model.
SENTENCES = ("The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium.")
SIMILARITIES = [[1.0000, 0.6660, 0.1046], [0.6660, 1.0000, 0.1411], [0.1046, 0.1411, 1.0000]]


class Transformer(Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.model = minilm.Model()
        cls.ids = cls.model.tokens(TEXT)

    def by_streamcqsa(self, q, k, v, layout, *flags, dtype="f32"):
        """O and lse, [B, H, N, D] and [B, H, N], through .npy files."""
        if dtype == "bf16":
            flags += ("--dtype", "bf16")
        self.save(q, k, v, layout)
        self.attend("--layout", layout, *flags)
        # Both layouts of rank 4 are their own inverse.
        return to_layout(self.load("o.npy", dtype), layout), lse_to_layout(self.load("lse.npy"), layout)

    def test_the_text(self):
        self.assertGreater(len(self.ids), 380)
        self.assertLess(len(self.ids), 512)
        self.assertGreater(len(set(self.ids)), 150)

    def test_each_layer(self):
        """Q, K and V of every layer, divided by 7: the attention, and what the
        layer makes of it."""
        x = self.model.embed(self.ids)
        for layer in range(minilm.LAYERS):
            exact = self.model.qkv(x, layer)
            q, k, v = (a.astype(np.float32) for a in exact)
            want, want_lse = attention(q, k, v, scale=1 / np.sqrt(minilm.D))
            after = self.model.after_attention(x, attention(*exact)[0], layer)
            for layout in ("bhnd", "bnhd"):
                with self.subTest(layer=layer, layout=layout):
                    o, lse = self.by_streamcqsa(q, k, v, layout, "--divide", "cqs", "--chunks", 7)
                    self.assert_output(o, want, "f32")
                    self.assert_lse(lse, want_lse)
                    np.testing.assert_allclose(self.model.after_attention(x, o, layer), after, rtol=0, atol=1e-5)
            x = after

    def test_layers_in_one_safetensors_file(self):
        """All layers of a batch of two halves of the text, in bf16, as a model's dump would be."""
        n = len(self.ids) // 2
        x = self.model.embed(np.stack([self.ids[:n], self.ids[n:2 * n]]))
        tensors = {}
        for layer in range(minilm.LAYERS):
            q, k, v = self.model.qkv(x, layer)
            for name, a in (("q", q), ("k", k), ("v", v)):
                tensors["layer.%d.%s" % (layer, name)] = to_layout(a.astype(np.float32).astype(bfloat16), "bnhd")
            x = self.model.after_attention(x, attention(q, k, v)[0], layer)
        save_file(tensors, self.path("dump.safetensors"), metadata={"model": "all-MiniLM-L6-v2"})
        for layer in range(minilm.LAYERS):
            with self.subTest(layer):
                refs = {n: "dump.safetensors:layer.%d.%s" % (layer, n) for n in "qkv"}
                self.attend("--layout", "bnhd", "--divide", "cqs", "--chunks", 7, o="o.safetensors:o", lse="o.safetensors:lse", **refs)
                got = load_file(self.path("o.safetensors"))
                want, lse = attention(*(to_layout(tensors["layer.%d.%s" % (layer, n)], "bnhd") for n in "qkv"))
                self.assert_output(got["o"], to_layout(want, "bnhd"), "bf16")
                self.assert_lse(got["lse"], lse_to_layout(lse, "bnhd"))

    def test_the_whole_model(self):
        """Every attention by streamcqsa, each layer on the result of the last."""
        want = self.model.encode(self.ids, lambda q, k, v, _: attention(q, k, v)[0])
        for divide in (("cqs", 7), ("cqs", 13), ("rows", 3)):
            with self.subTest(divide=divide):
                def attend(q, k, v, layer):
                    q, k, v = (a.astype(np.float32) for a in (q, k, v))
                    return self.by_streamcqsa(q, k, v, ("bhnd", "bnhd")[layer % 2], "--divide", divide[0], "--chunks", divide[1])[0]
                np.testing.assert_allclose(self.model.encode(self.ids, attend), want, rtol=0, atol=1e-6)

    def test_published_similarities(self):
        """The model is the one that its authors documented, to the last digit they print."""
        def attend(q, k, v, layer):
            return self.by_streamcqsa(*(a.astype(np.float32) for a in (q, k, v)), "bnhd")[0]
        e = np.concatenate([self.model.encode(self.model.tokens(s), attend) for s in SENTENCES])
        np.testing.assert_allclose(e @ e.T, SIMILARITIES, rtol=0, atol=0.6e-4)

    def test_attention_in_bfloat16_hardly_moves_the_embedding(self):
        want = self.model.encode(self.ids, lambda q, k, v, _: attention(q, k, v)[0])
        def attend(q, k, v, layer):
            return self.by_streamcqsa(*(a.astype(np.float32).astype(bfloat16) for a in (q, k, v)), "bhnd", dtype="bf16")[0]
        self.assertGreater((self.model.encode(self.ids, attend) * want).sum(), 0.9999)


if __name__ == "__main__":
    unittest.main()
