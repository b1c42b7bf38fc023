#!/usr/bin/env python3
"""What plan promises beside what run takes, for varied problems in the page cache.

  bench/predict.py [--reps 5] [--only "NAME;NAME"]

Every problem runs --reps times, all of them in turns; before each turn the machine is
measured (streamcqsa bench), into a cache of its own, as its memory changes within
minutes where others use it too. The input files are read before each run. Medians are
printed as a Markdown table. Seconds are from open files to written output. A run during
which other processes took more than a tenth of the processors is repeated (Linux).
"""
import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))

ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
ap.add_argument("--binary", default=os.path.join(HERE, "..", "bin", "streamcqsa"))
ap.add_argument("--reps", type=int, default=5)
ap.add_argument("--threads", type=int, default=os.cpu_count())
ap.add_argument("--only", help="these problems alone")
ap.add_argument("--dir", help="where to put the files (default: a temporary directory)")
a = ap.parse_args()

# name, shape B,H,Hkv,Nq,Nk,D,Dv, type, budget, other flags
PROBLEMS = [
    ("small", "1,2,2,1024,1024,64,64", "f32", "1GiB", []),
    ("resident", "1,1,1,8192,8192,64,64", "f32", "1GiB", []),
    ("resident, wide", "1,1,1,16384,16384,128,128", "f32", "1GiB", []),
    ("causal", "1,1,1,16384,16384,64,64", "f32", "1GiB", ["--causal"]),
    ("small budget", "1,1,1,16384,16384,64,64", "f32", "2MiB", []),
    ("cqs", "1,1,1,16384,16384,64,64", "f32", "6MiB", ["--divide", "cqs", "--chunks", "7"]),
    ("heads", "2,8,8,2048,2048,64,64", "f32", "16MiB", []),
    ("grouped heads", "1,8,2,4096,4096,128,128", "bf16", "64MiB", ["--causal"]),
    ("f16", "1,1,1,8192,8192,128,128", "f16", "1GiB", []),
    ("bf16", "1,1,1,16384,16384,64,64", "bf16", "4MiB", []),
    ("bf16, fast", "1,1,1,16384,16384,128,128", "bf16", "1GiB", ["--precision", "fast"]),
    ("1 query", "1,1,1,1,2097152,128,128", "bf16", "64MiB", []),
    ("4 queries", "1,1,1,4,1048576,64,64", "f32", "64MiB", []),
    ("4 queries, resident", "1,4,1,1,524288,128,128", "f32", "4GiB", []),
    ("16 queries", "1,1,1,16,524288,128,128", "f32", "64MiB", []),
]


def call(env, *args):
    r = subprocess.run([a.binary, *map(str, args)], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if r.returncode:
        sys.exit("%s\nexit code %d\n%s" % (" ".join(r.args), r.returncode, r.stderr))
    return r.stdout


def busy():
    """Seconds of all processors that were not idle."""
    with open("/proc/stat") as f:
        t = list(map(int, f.readline().split()[1:]))
    return (sum(t) - t[3] - t[4]) / os.sysconf("SC_CLK_TCK")


def alone(f, share=0.1):
    """The result of f, repeated until others had no more than a share of the processors."""
    for _ in range(60):
        start, all0, mine0 = time.time(), busy(), resource.getrusage(resource.RUSAGE_CHILDREN)
        result = f()
        mine, took = resource.getrusage(resource.RUSAGE_CHILDREN), time.time() - start
        others = busy() - all0 - (mine.ru_utime + mine.ru_stime - mine0.ru_utime - mine0.ru_stime)
        if others < share * os.cpu_count() * took + 0.02:  # some ticks
            return result
        time.sleep(1)
    sys.exit("other processes keep the processors busy")


def run(env, top, i, problem):
    _, shape, dtype, budget, flags = problem
    files = os.path.join(top, str(i))
    if not os.path.exists(files):
        call(env, "gen", "--shape", shape, "--dtype", dtype, "--seed", 1, files)
    out = os.path.join(files, "o.npy")
    if os.path.exists(out):
        os.remove(out)
    for t in "qkv":  # systems take pages back that nobody used for a while
        with open(os.path.join(files, t + ".npy"), "rb", buffering=0) as f:
            while f.read(1 << 22):
                pass
    args = ["run", "--json", "-q", "--device", "cpu", "--layout", "bhnd", "--threads", a.threads, "--mem-budget", budget, "-o", out, *flags]
    for t in "qkv":
        args += ["--" + t, os.path.join(files, t + ".npy")]
    if dtype == "bf16":
        args += ["--dtype", "bf16"]
    return json.loads(call(env, *args).splitlines()[-1])


def main():
    top = tempfile.mkdtemp(prefix="streamcqsa-predict-", dir=a.dir)
    env = {k: v for k, v in os.environ.items() if not k.startswith("STREAMCQSA_")}
    env["XDG_CACHE_HOME"] = os.path.join(top, "cache")
    only = a.only.split(";") if a.only else None
    problems = [p for p in PROBLEMS if not only or p[0] in only]
    try:
        for i, p in enumerate(problems):
            run(env, top, i, p)  # the files are in the page cache from here
        runs = [[] for _ in problems]
        for _ in range(a.reps):
            alone(lambda: call(env, "bench", "--threads", a.threads), 0.03)
            for i, p in enumerate(problems):
                runs[i].append(alone(lambda: run(env, top, i, p)))
        print("| problem | B,H,Hkv,Nq,Nk,D,Dv | type | flags | predicted s | measured s | predicted / measured |")
        print("|---|---|---|---|---:|---:|---:|")
        close = 0
        for p, r in zip(problems, runs):
            want = statistics.median(x["predicted_seconds"] for x in r)
            got = statistics.median(x["seconds"]["total"] for x in r)
            close += abs(want / got - 1) <= 0.15
            print("| %s | %s | %s | %s | %.4f | %.4f | %.2f |" % (p[0], p[1], p[2], " ".join(["--mem-budget", p[3], *p[4]]), want, got, want / got))
        print("\nWithin 15%%: %d of %d." % (close, len(problems)))
    finally:
        shutil.rmtree(top)


main()
