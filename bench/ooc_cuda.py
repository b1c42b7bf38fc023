#!/usr/bin/env python3
"""File to file under a device budget: streamcqsa beside ooc_torch.py, on one GPU.

One head of --n tokens in /dev/shm, bfloat16. For each budget both programs run --reps times,
alternating. Told are medians: seconds from open files to written output, and for ours
the seconds of the kernel, those before the first launch, the rate over the rest of the
run as a share of the kernel's own, and the most device memory that the driver saw the
process hold, less what a context takes.

  ooc_cuda.py --bin bin/streamcqsa --n 2000000 --budgets 4GiB,512MiB,128MiB
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time

import torch

HERE = os.path.dirname(os.path.abspath(__file__))


class Watch(threading.Thread):
    """Samples how much of the device's memory is in use, by anyone."""

    def __init__(self):
        super().__init__(daemon=True)
        free, total = torch.cuda.mem_get_info()
        self.base, self.most, self.stop = total - free, 0, False

    def run(self):
        while not self.stop:
            free, total = torch.cuda.mem_get_info()
            self.most = max(self.most, total - free - self.base)
            time.sleep(0.01)

    def end(self):
        self.stop = True
        self.join()
        return self.most


def ours(binary, dir, budget, extra):
    w = Watch()
    w.start()
    out = subprocess.run([binary, "run", "--json", "--device", "cuda", "--dtype", "bf16", "--layout", "bhnd", "--mem-budget", budget,
                          "-o", f"{dir}/o.npy", *sum(([f"--{n}", f"{dir}/{n}.npy"] for n in "qkv"), []), *extra],
                         check=True, capture_output=True, text=True).stdout
    lines = [json.loads(x) for x in out.splitlines()]
    plan = next(x for x in lines if x["type"] == "plan")
    return plan, lines[-1], w.end()


def peer(dir, budget):
    out = subprocess.run([sys.executable, os.path.join(HERE, "ooc_torch.py"), "--mem-budget", str(budget), "--dtype", "bf16", "-o", f"{dir}/p.npy",
                          "--device", "cuda", *sum(([f"--{n}", f"{dir}/{n}.npy"] for n in "qkv"), [])], check=True, capture_output=True, text=True).stdout
    return json.loads(out.splitlines()[-1])


def size(s):
    return int(float(s[:-3]) * {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}[s[-3:]])


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--bin", default="bin/streamcqsa")
    ap.add_argument("--n", type=int, default=2000000)
    ap.add_argument("--d", type=int, default=128)
    ap.add_argument("--budgets", default="4GiB,512MiB,128MiB")
    ap.add_argument("--reps", type=int, default=3)
    ap.add_argument("--dir", default="/dev/shm/streamcqsa-bench")
    ap.add_argument("--no-peer", action="store_true")
    a = ap.parse_args()
    subprocess.run([a.bin, "gen", "--shape", f"1,1,{a.n},{a.d}", "--dtype", "bf16", "--seed", "1", "--force", a.dir], check=True, stdout=subprocess.DEVNULL)
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}; N = {a.n}, D = {a.d}, bf16")
    print("| budget | division | seconds | kernel s | to first launch s | rest / kernel's rate | device MiB: planned | seen | PyTorch s | PyTorch / ours |")
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for budget in a.budgets.split(","):
        mine, theirs = [], []
        for _ in range(a.reps):
            mine.append(ours(a.bin, a.dir, budget, []))
            if not a.no_peer:
                theirs.append(peer(a.dir, size(budget))["seconds"])
        total = statistics.median(s["seconds"]["total"] for _, s, _ in mine)
        kernel = statistics.median(s["seconds"]["kernel"] for _, s, _ in mine)
        first = statistics.median(s["start_to_first_kernel"] for _, s, _ in mine)
        plan, s, _ = mine[0]
        seen = max(m for _, _, m in mine)
        d = plan["division"]
        other = statistics.median(theirs) if theirs else float("nan")
        print(f"| {budget} | {d.get('kind', '')} {d.get('query_chunks', '')} x {d.get('key_chunks', '')} | {total:.2f} | {kernel:.2f} | {first:.2f} | "
              f"{kernel / (total - first):.2f} | {s['memory_total'] / 2**20:.0f} | {seen / 2**20:.0f} | {other:.2f} | {other / total:.2f} |", flush=True)


if __name__ == "__main__":
    main()
