#!/usr/bin/env python3
"""Our CUDA kernels beside PyTorch's, on one GPU, tensors in its memory, interleaved.

Each repetition times PyTorch's cuDNN and FlashAttention-2 kernels, and then ours through
`streamcqsa bench --device cuda`, for the same shapes. A burst is the median of single
launches after two to warm up; sustained is launches back to back for --seconds, when
power sets the clock. Figures are TFLOP/s by the count 2 (D + Dv) for a query-key pair;
of the repetitions the median is told.

  sdpa_cuda.py --bin bin/streamcqsa --tokens 32768,262144 --reps 3
"""
import argparse
import json
import statistics
import subprocess

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

PAIRS = 1 << 18  # tokens over all heads
DIMS = (64, 64), (128, 128), (192, 128), (256, 256)  # D and Dv


def timed(f, seconds):
    def once(n):
        a, b = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        a.record()
        for _ in range(n):
            f()
        b.record()
        torch.cuda.synchronize()
        return a.elapsed_time(b) / 1e3 / n

    once(2)
    burst = statistics.median(once(1) for _ in range(5))
    return burst, once(max(1, int(seconds / burst)))


def peer(backend, dtype, tokens, d, dv, causal, seconds):
    heads = max(1, PAIRS // tokens)
    q, k, v = (torch.randn(1, heads, tokens, x, device="cuda", dtype=dtype) for x in (d, d, dv))
    flops = 2 * heads * (d + dv) * (tokens * (tokens + 1) / 2 if causal else tokens * tokens)
    with sdpa_kernel([backend]):
        try:
            times = timed(lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal), seconds)
        except RuntimeError as e:
            if "No available kernel" not in str(e):  # for this shape
                raise
            return None
    return [flops / t / 1e12 for t in times]


def ours(binary, tokens, seconds):
    out = subprocess.run([binary, "bench", "--device", "cuda", "--json", "--tokens", str(tokens), "--seconds", str(seconds)],
                         check=True, capture_output=True, text=True).stdout
    return {(r["dtype"] + ">" + r["out_dtype"], r["d"], r["dv"], r["causal"]): [r["burst_flops"] / 1e12, r["sustained_flops"] / 1e12]
            for r in json.loads(out)["kernels"]}


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--bin", default="bin/streamcqsa")
    ap.add_argument("--tokens", default="32768")
    ap.add_argument("--reps", type=int, default=3)
    ap.add_argument("--seconds", type=float, default=0.4)
    ap.add_argument("--json", action="store_true")
    a = ap.parse_args()
    rows = []
    for tokens in map(int, a.tokens.split(",")):
        results = {}
        for _ in range(a.reps):
            for name, backend, dtype, dims in (("cuDNN", SDPBackend.CUDNN_ATTENTION, torch.bfloat16, DIMS),
                                               ("FA2", SDPBackend.FLASH_ATTENTION, torch.bfloat16, DIMS),
                                               ("efficient f32", SDPBackend.EFFICIENT_ATTENTION, torch.float32, ((128, 128),))):
                if tokens > 65536 and name != "cuDNN":
                    continue
                for d, dv in dims:
                    for causal in (False, True):
                        x = peer(backend, dtype, tokens, d, dv, causal, a.seconds)
                        if x:
                            results.setdefault((name, d, dv, causal), []).append(x)
            for (types, d, dv, causal), x in ours(a.bin, tokens, a.seconds).items():
                results.setdefault((types, d, dv, causal), []).append(x)
        for (name, d, dv, causal), x in results.items():
            burst, steady = (statistics.median(y[i] for y in x) for i in range(2))
            rows.append(dict(name=name, tokens=tokens, d=d, dv=dv, causal=causal, burst=round(burst, 1), sustained=round(steady, 1)))
    if a.json:
        print(json.dumps(rows))
        return
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}")
    print("| kernel | N | D | Dv | causal | burst | sustained | burst / cuDNN | sustained / cuDNN |\n|---|---:|---:|---:|---|---:|---:|---:|---:|")
    base = {(r["tokens"], r["d"], r["dv"], r["causal"]): r for r in rows if r["name"] == "cuDNN"}
    for r in rows:
        b = base.get((r["tokens"], r["d"], r["dv"], r["causal"]))
        ratios = [f"{r[k] / b[k]:.2f}" for k in ("burst", "sustained")] if b else ["", ""]
        print(f"| {r['name']} | {r['tokens']} | {r['d']} | {r['dv']} | {'yes' if r['causal'] else 'no'} | {r['burst']:.0f} | {r['sustained']:.0f} | {ratios[0]} | {ratios[1]} |")


if __name__ == "__main__":
    main()
