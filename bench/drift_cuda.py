#!/usr/bin/env python3
"""How errors grow with the number of keys: ours and PyTorch's kernels on a GPU.

1,024 queries over more and more keys, bfloat16, against the definition in float64 (on the
GPU, in blocks of keys). Told are the relative Frobenius error of O, and the mean error
relative to the root mean square of O, which is what sums that drift show; beside them
what rounding the exact result to bfloat16 costs.

  drift_cuda.py --bin bin/streamcqsa --d 128 --keys 8192,131072,1048576,4194304
"""
import argparse
import os
import subprocess
import tempfile

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

QUERIES = 1024


def exact(q, k, v, block=16384):
    """O in float64, with the running maximum of blocks of keys."""
    q = q.double() / q.shape[1] ** 0.5
    m = torch.full((QUERIES, 1), -torch.inf, dtype=torch.float64, device="cuda")
    l, o = torch.zeros_like(m), torch.zeros(QUERIES, v.shape[1], dtype=torch.float64, device="cuda")
    for i in range(0, k.shape[0], block):
        s = q @ k[i:i + block].double().T
        n = torch.maximum(m, s.amax(1, keepdim=True))
        p, f = torch.exp(s - n), torch.exp(m - n)
        l, o, m = l * f + p.sum(1, keepdim=True), o * f + p @ v[i:i + block].double(), n
    return o / l


def errors(o, want):
    e = o.double() - want
    return (e.norm() / want.norm()).item(), (e.mean() / want.pow(2).mean().sqrt()).item()


def save(path, t):
    np.save(path, t[None, None].view(torch.int16).cpu().numpy().view(np.uint16))


def ours(binary, q, k, v, extra, out):
    with tempfile.TemporaryDirectory(dir="/dev/shm") as d:
        for name, t in (("q", q), ("k", k), ("v", v)):
            save(f"{d}/{name}.npy", t)
        subprocess.run([binary, "run", "--quiet", "--device", "cuda", "--dtype", "bf16", "--layout", "bhnd", "-o", f"{d}/o.npy",
                        *sum(([f"--{n}", f"{d}/{n}.npy"] for n in "qkv"), []), *extra], check=True)
        o = np.load(f"{d}/o.npy")[0, 0]
    if out == "bf16":
        return torch.from_numpy(o.view(np.int16)).view(torch.bfloat16).cuda()
    return torch.from_numpy(o).cuda()


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--bin", default="bin/streamcqsa")
    ap.add_argument("--d", type=int, default=128)
    ap.add_argument("--keys", default="8192,131072,1048576,4194304")
    a = ap.parse_args()
    binary = os.path.abspath(a.bin)
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}; D = {a.d}")
    print("| mean(V) | keys | rounding | ours, bf16 | cuDNN | ours, f32 | mean error: ours | cuDNN |\n|---:|---:|---:|---:|---:|---:|---:|---:|")
    for mean in (0, 1):
        for keys in map(int, a.keys.split(",")):
            torch.manual_seed(keys)
            q = torch.randn(QUERIES, a.d, device="cuda", dtype=torch.bfloat16)
            k = torch.randn(keys, a.d, device="cuda", dtype=torch.bfloat16)
            v = (torch.randn(keys, a.d, device="cuda") + mean).to(torch.bfloat16)
            want = exact(q, k, v)
            with sdpa_kernel([SDPBackend.CUDNN_ATTENTION]):
                peer = torch.nn.functional.scaled_dot_product_attention(q[None, None], k[None, None], v[None, None])[0, 0]
            e = errors(ours(binary, q, k, v, [], "bf16"), want)
            wide = errors(ours(binary, q, k, v, ["--out-dtype", "f32"], "f32"), want)
            p, r = errors(peer, want), errors(want.to(torch.bfloat16), want)
            print(f"| {mean} | {keys} | {r[0]:.2e} | {e[0]:.2e} | {p[0]:.2e} | {wide[0]:.2e} | {e[1]:.1e} | {p[1]:.1e} |", flush=True)


if __name__ == "__main__":
    main()
