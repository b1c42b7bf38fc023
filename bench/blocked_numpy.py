#!/usr/bin/env python3
"""What a user would write instead of streamcqsa with nothing but NumPy: exact
attention, file to file, in blocks.

The inputs are memory-mapped. A tile of queries keeps its float32 accumulator
while blocks of keys and values pass by (the online softmax), with two matrix
products for each. Tiles and blocks get as large as --mem-budget lets the arrays
be, but not larger than what is fastest. Prints one line of JSON.

  blocked_numpy.py --q Q.npy --k K.npy --v V.npy -o O.npy --mem-budget 2147483648
                   [--causal] [--dtype bf16] [--out-dtype f32] [--workers 2]

Arrays are [B, H, N, D]; 16-bit brain floats are any two-byte type (pass --dtype
bf16). Each worker is a thread with a query tile of its own: NumPy's exp runs on
one core, however many its matrix product uses. Set OPENBLAS_NUM_THREADS=1 with
more than one worker.
"""
import argparse
import json
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

ap = argparse.ArgumentParser()
for n in "qkv":
    ap.add_argument("--" + n, required=True)
ap.add_argument("-o", "--out", required=True)
ap.add_argument("--mem-budget", type=int, required=True, help="bytes")
ap.add_argument("--causal", action="store_true")
ap.add_argument("--dtype", choices=["f32", "f16", "bf16"])
ap.add_argument("--out-dtype", choices=["same", "f32"], default="same")
ap.add_argument("--workers", type=int, default=1)
ap.add_argument("--block", type=int, default=1024, help="largest tile of queries and block of keys")
a = ap.parse_args()

q, k, v = (np.load(p, mmap_mode="r") for p in (a.q, a.k, a.v))
dtype = a.dtype or {"float32": "f32", "float16": "f16"}[str(q.dtype)]
if dtype == "bf16":
    q, k, v = (x.view(np.uint16) for x in (q, k, v))
B, H, N, D = q.shape
Hkv, M, Dv = k.shape[1], k.shape[2], v.shape[3]
scale = np.float32(1 / math.sqrt(D))
out_dtype = "f32" if a.out_dtype == "f32" else dtype


def widen(x):
    if dtype == "bf16":
        return (x.astype(np.uint32) << 16).view(np.float32)
    return x.astype(np.float32)


def narrow(x):
    if out_dtype == "bf16":  # to the nearest, ties to even
        u = x.view(np.uint32)
        return ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype(np.uint16)
    return x.astype({"f32": np.float32, "f16": np.float16}[out_dtype], copy=False)


def tile_bytes(t):
    """What one worker holds: q, acc and the product that is added to it, k and v
    as read and widened, the scores, three numbers a row."""
    return t * ((D + 2 * Dv) * 4 + (D + Dv) * (4 + (0 if dtype == "f32" else 8)) + t * 4 + 12)


T = max(1, min(a.block, max(N, M)))
while T > 16 and a.workers * tile_bytes(T) > a.mem_budget:
    T -= 16

local = threading.local()


def tile(b, h, start):
    """One query tile, all its keys. Returns the products' arithmetic."""
    if not hasattr(local, "scores"):
        local.scores = np.empty(T * T, np.float32)
    end = min(N, start + T)
    rows = end - start
    qt = widen(q[b, h, start:end]) * scale
    acc = np.zeros((rows, Dv), np.float32)
    m = np.full((rows, 1), -np.inf, np.float32)
    l = np.zeros((rows, 1), np.float32)
    flops = 0
    last = end if a.causal else M
    for s in range(0, last, T):
        e = min(last, s + T)
        kt, vt = widen(k[b, h // (H // Hkv), s:e]), widen(v[b, h // (H // Hkv), s:e])
        p = local.scores[: rows * (e - s)].reshape(rows, e - s)
        np.matmul(qt, kt.T, out=p)
        if a.causal and e > start:
            p[np.arange(s, e)[None, :] > np.arange(start, end)[:, None]] = -np.inf
        new = np.maximum(m, p.max(axis=1, keepdims=True))
        p -= new
        np.exp(p, out=p)
        shrink = np.exp(m - new)
        l *= shrink
        l += p.sum(axis=1, keepdims=True)
        acc *= shrink
        acc += p @ vt
        m = new
        flops += 2 * rows * (e - s) * (D + Dv)
    acc /= l
    out[b, h, start:end] = narrow(acc)
    return flops


began, cpu = time.perf_counter(), time.process_time()
out = np.lib.format.open_memmap(a.out, mode="w+", shape=(B, H, N, Dv), dtype={"f32": np.float32, "f16": np.float16, "bf16": np.uint16}[out_dtype])
work = [(b, h, s) for b in range(B) for h in range(H) for s in range(0, N, T)]
if a.workers > 1:
    with ThreadPoolExecutor(a.workers) as pool:
        flops = sum(pool.map(lambda w: tile(*w), work))
else:
    flops = sum(tile(*w) for w in work)
out.flush()
seconds, cpu = time.perf_counter() - began, time.process_time() - cpu

rec = dict(peer="blocked_numpy", numpy=np.__version__, shape=[B, H, N, D], keys=M, causal=a.causal, dtype=dtype, tile=T, workers=a.workers,
           array_bytes=a.workers * tile_bytes(T), seconds=round(seconds, 4), cpu_seconds=round(cpu, 4), gflops=round(flops / seconds / 1e9, 3))
try:
    from threadpoolctl import threadpool_info
    rec["blas"] = ["%s %s %s, %d threads" % (i.get("internal_api"), i.get("version"), i.get("architecture", ""), i.get("num_threads"))
                   for i in threadpool_info() if i.get("user_api") == "blas"]
except ImportError:
    pass
print(json.dumps(rec))
