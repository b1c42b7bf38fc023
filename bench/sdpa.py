#!/usr/bin/env python3
"""The kernel beside PyTorch's: scaled_dot_product_attention on the CPU, tensors in
memory, against the kernel of a streamcqsa run that holds everything.

  bench/sdpa.py --torch-python VENV/bin/python [--sizes 4096,8192,16384,32768] [--dims 64,128]

Both get the same inputs and the same number of threads, and take turns. PyTorch's
time is that of the call alone; streamcqsa's is what its kernel took in a run that
loads everything before it begins, as PyTorch's tensors are there before the call, and
beside it the whole run from file to file, with the sync of its output. Medians of --reps. Shares
are of the float32 multiply-adds that the machine does in registers, measured before
and after: what PyTorch leaves of them is the room there is. The error is of O against
float64 NumPy on 32 sampled rows, relative Frobenius norm, each program's output as it
gives it. OMP_PROC_BIND=true in the environment puts PyTorch's threads on CPUs of
their own, as streamcqsa's are.
"""
import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))

ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
ap.add_argument("--binary", default=os.path.join(HERE, "..", "bin", "streamcqsa"))
ap.add_argument("--torch-python", required=True, help="a Python that has torch")
ap.add_argument("--sizes", default="4096,8192,16384,32768", help="tokens")
ap.add_argument("--dims", default="64,128")
ap.add_argument("--heads", type=int, default=1)
ap.add_argument("--modes", default="f32,bf16,bf16-fast")
ap.add_argument("--causal", action="store_true")
ap.add_argument("--reps", type=int, default=5)
ap.add_argument("--threads", type=int, default=os.cpu_count())
a = ap.parse_args()

# One process keeps PyTorch loaded: a line in, "D N dtype path", a line out, seconds.
PEER = r"""
import sys, time, numpy as np, torch
torch.set_num_threads(int(sys.argv[1])); causal = sys.argv[2] == "1"
print(torch.__version__, flush=True)
for line in sys.stdin:
    path, dtype = line.split()
    def load(x):
        m = np.load(f"{path}/{x}.npy")
        return torch.from_numpy(m.copy()) if dtype == "f32" else torch.from_numpy(m.view(np.int16).copy()).view(torch.bfloat16)
    q, k, v = map(load, "qkv")
    with torch.inference_mode():
        torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
        t = time.perf_counter()
        o = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
        t = time.perf_counter() - t
    np.save(f"{path}/o-torch.npy", o.float().numpy())
    print(t, flush=True)
"""


def widen(x):
    return x.astype(np.float64) if x.dtype == np.float32 else (x.view(np.uint16).astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def exact(path, n, d, rows):
    q, k, v = (widen(np.load(f"{path}/{x}.npy")[0, 0]) for x in "qkv")
    s = q[rows] @ k.T / np.sqrt(d)
    if a.causal:
        s[np.arange(n)[None, :] > rows[:, None]] = -np.inf
    p = np.exp(s - s.max(1, keepdims=True))
    return p @ v / p.sum(1, keepdims=True)


def error(o, want):
    return np.linalg.norm(o - want) / np.linalg.norm(want)


def run(mode, path):
    cmd = [a.binary, "run", "--json", "-q", "--device", "cpu", "--layout", "bhnd", "--mem-budget", "8GiB", "--divide", "rows", "--chunks", 1, "--threads", a.threads, "-o", path + "/o.npy"]
    for x in "qkv":
        cmd += ["--" + x, f"{path}/{x}.npy"]
    if mode != "f32":
        cmd += ["--dtype", "bf16"]
    if mode == "bf16-fast":
        cmd += ["--precision", "fast"]
    if a.causal:
        cmd += ["--causal"]
    if os.path.exists(path + "/o.npy"):
        os.remove(path + "/o.npy")
    r = subprocess.run(list(map(str, cmd)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if r.returncode:
        sys.exit(r.stderr)
    s = json.loads(r.stdout.splitlines()[-1])
    return s["kernel_flops_per_second"], s["flops_per_second"]


def peak_flops():
    """What the machine does in registers: of its best moments."""
    r = subprocess.run([a.binary, "bench", "--json", "--save=false", "--tokens", "256", "--seconds", "0.2", "--threads", str(a.threads)], check=True, stdout=subprocess.PIPE)
    return json.loads(r.stdout)["peak_flops"]


def main():
    peer = subprocess.Popen([a.torch_python, "-c", PEER, str(a.threads), "01"[a.causal]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    print("PyTorch %s, %d threads, H = %d%s" % (peer.stdout.readline().strip(), a.threads, a.heads, ", causal" if a.causal else ""))
    print()
    peak, results = peak_flops(), []
    for mode in a.modes.split(","):
        dtype = mode.split("-")[0]
        for d in map(int, a.dims.split(",")):
            for n in map(int, a.sizes.split(",")):
                path = tempfile.mkdtemp(prefix="streamcqsa-sdpa-")
                try:
                    subprocess.run([a.binary, "gen", "--shape", f"1,{a.heads},{n},{d}", "--dtype", dtype, "--seed", "1", path], check=True, stdout=subprocess.DEVNULL)
                    flops = 4 * a.heads * n * n * d / (2 if a.causal else 1)
                    ours, whole, theirs = [], [], []
                    for _ in range(a.reps):
                        k, w = run(mode, path)
                        ours.append(k)
                        whole.append(w)
                        peer.stdin.write(f"{path} {dtype}\n")
                        peer.stdin.flush()
                        theirs.append(flops / float(peer.stdout.readline()))
                    rows = np.linspace(0, n - 1, 32).astype(int)
                    want = exact(path, n, d, rows)
                    mine = error(widen(np.load(path + "/o.npy")[0, 0])[rows], want)
                    torchs = error(np.load(path + "/o-torch.npy")[0, 0][rows], want)
                    k, w, t = map(statistics.median, (ours, whole, theirs))
                    results.append((mode, d, n, k, w, t, mine, torchs))
                    print("%s D = %d, N = %d: %.2f x" % (mode, d, n, k / t), file=sys.stderr, flush=True)
                finally:
                    shutil.rmtree(path)
    peer.stdin.close()
    peak = max(peak, peak_flops())
    print("Multiply-adds: %.1f GFLOP/s" % (peak / 1e9))
    print()
    print("| type | D | N | kernel GFLOP/s | share | file to file | PyTorch | share | kernel / PyTorch | error | PyTorch's |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for mode, d, n, k, w, t, mine, torchs in results:
        share = lambda x: "%.0f%%" % (100 * x / peak)
        print("| %s | %d | %d | %.1f | %s | %.1f | %.1f | %s | %.2f | %.1e | %.1e |" % (mode, d, n, k / 1e9, share(k), w / 1e9, t / 1e9, share(t), k / t, mine, torchs))


main()
