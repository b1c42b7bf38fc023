#!/usr/bin/env python3
"""The time of one problem against the memory that it may have: what a resident
run holds, and 1/4, 1/16, 1/64 of it.

  bench/budgets.py [--n 32768] [--divide auto|cqs|rows]

The footprint is what streamcqsa plan says of --divide rows --chunks 1, the run
that loads everything once and holds it. Repetitions are interleaved, medians are
printed as a Markdown table. Bytes are what moved between the files and the
device, as measured; idle is the time in which the kernel had nothing to do. A
budget for which there is no plan is a row that says the smallest one that has.
"""
import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))

ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
ap.add_argument("--binary", default=os.path.join(HERE, "..", "bin", "streamcqsa"))
ap.add_argument("--n", type=int, default=32768, help="tokens")
ap.add_argument("--heads", type=int, default=1)
ap.add_argument("--d", type=int, default=64)
ap.add_argument("--dtype", default="f32", choices=["f32", "f16", "bf16"])
ap.add_argument("--causal", action="store_true")
ap.add_argument("--divide", default="auto", choices=["auto", "cqs", "rows"])
ap.add_argument("--parts", default="1,4,16,64", help="the budget is the footprint divided by each of these")
ap.add_argument("--reps", type=int, default=3)
ap.add_argument("--threads", type=int, default=os.cpu_count())
ap.add_argument("--dir", help="where to put the files (default: a temporary directory)")
a = ap.parse_args()

ENV = {k: v for k, v in os.environ.items() if not k.startswith("STREAMCQSA_")}


def call(*args):
    return subprocess.run([a.binary, *map(str, args)], env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def must(r):
    if r.returncode:
        sys.exit("%s\nexit code %d\n%s" % (" ".join(r.args), r.returncode, r.stderr))
    return r.stdout


def main():
    top = a.dir or tempfile.mkdtemp(prefix="streamcqsa-budgets-")
    try:
        must(call("gen", "--shape", "1,%d,%d,%d" % (a.heads, a.n, a.d), "--dtype", a.dtype, "--seed", 1, "--force", top))
        problem = ["--device", "cpu", "--layout", "bhnd", "--threads", a.threads]
        for t in "qkv":
            problem += ["--" + t, os.path.join(top, t + ".npy")]
        if a.dtype == "bf16":
            problem += ["--dtype", "bf16"]
        if a.causal:
            problem += ["--causal"]
        whole = ["--divide", "rows", "--chunks", 1]
        footprint = json.loads(must(call("plan", *problem, "--mem-budget", "1024GiB", *whole, "--json")))["memory_total"]
        parts = [int(p) for p in a.parts.split(",")]
        runs, refused = {p: [] for p in parts}, {}
        for rep in range(a.reps):
            for p in parts:
                if p in refused:
                    continue
                out = os.path.join(top, "o.npy")
                divide = ["--divide", a.divide] if p > 1 else whole
                r = call("run", *problem, "-o", out, "--mem-budget", "%dB" % (footprint // p), *divide, "--json")
                if r.returncode == 4:
                    refused[p] = r.stderr.strip().replace("streamcqsa: ", "")
                    continue
                docs = {d["type"]: d for d in map(json.loads, must(r).splitlines())}
                os.remove(out)
                runs[p].append(docs)
                print("1/%d: %.3f s" % (p, docs["summary"]["seconds"]["total"]), file=sys.stderr)
    finally:
        if not a.dir:
            shutil.rmtree(top, ignore_errors=True)

    print("B = 1, H = %d, N = %d, D = %d, %s%s, %d threads, load average %.1f at the end. Medians of %d interleaved repetitions." % (
        a.heads, a.n, a.d, a.dtype, ", causal" if a.causal else "", a.threads, os.getloadavg()[0], a.reps))
    print()
    print("| budget | of resident | division | held MiB | seconds | GFLOP/s | kernel s | idle s | MiB in | MiB out | predicted s |")
    print("|---:|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for p in parts:
        size = "%.2f MiB" % (footprint / p / 2**20)
        if p in refused:
            print("| %s | 1/%d | %s | | | | | | | | |" % (size, p, refused[p].replace("|", "/")))
            continue
        plan, summaries = runs[p][0]["plan"], [d["summary"] for d in runs[p]]
        med = lambda f: statistics.median(f(s) for s in summaries)
        d = plan["division"]
        how = "%s, %d x %d chunks" % (d["kind"], d["query_chunks"], d["key_chunks"])
        if d.get("depth", 1) > 1:
            how += ", depth %d" % d["depth"]
        sec = med(lambda s: s["seconds"]["total"])
        print("| %s | 1/%d | %s | %.2f | %.3f | %.1f | %.3f | %.3f | %.1f | %.1f | %.3f |" % (
            size, p, how, summaries[0]["memory_total"] / 2**20, sec, plan["problem"]["flops"] / sec / 1e9,
            med(lambda s: s["seconds"]["kernel"]), med(lambda s: s["seconds"]["kernel_idle"]),
            med(lambda s: s["bytes"]["host_to_device"]) / 2**20, med(lambda s: s["bytes"]["device_to_host"]) / 2**20,
            plan["seconds"]["total"]))


if __name__ == "__main__":
    main()
