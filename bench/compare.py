#!/usr/bin/env python3
"""streamcqsa against what a user would write: the same files, the same memory
budget, the same number of threads.

  bench/compare.py --torch-python VENV/bin/python [--quick]

Peers: ooc_torch.py (PyTorch, on the CPU) and blocked_numpy.py (NumPy). Inputs
come from streamcqsa gen. Repetitions are interleaved, so that a machine that is
slow for a while is slow for everybody; medians are printed as a Markdown table.

- seconds: as each program reports them, from open files to written output.
  streamcqsa's include the sync of its output to the disk, which the peers don't
  do; the peers' leave out the start of Python.
- CPU s: processor time over the same stretch, of all threads. On a machine that
  others use too it says more than seconds.
- error: of O against float64 NumPy on 32 sampled rows, relative Frobenius norm.

The budget is a quarter of the bytes of Q, K, V and O, but at least 1 MiB, unless
--budget says otherwise. It covers streamcqsa's whole working set, the arrays
that the NumPy program holds, and the tiles of the PyTorch program (not what
PyTorch allocates inside its kernel).

Needs NumPy for the error column; threadpoolctl, if there, names NumPy's BLAS.
"""
import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile

try:
    import numpy as np
except ImportError:
    sys.exit("compare.py needs NumPy; interop/run.sh leaves a Python that has it: .cache/interop-venv/bin/python")

HERE = os.path.dirname(os.path.abspath(__file__))

ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
ap.add_argument("--binary", default=os.path.join(HERE, "..", "bin", "streamcqsa"))
ap.add_argument("--sizes", default="8192,16384,32768,65536", help="tokens")
ap.add_argument("--bf16-sizes", default="16384", help="tokens of the bf16 cases")
ap.add_argument("--queries", type=int, help="so many queries over N keys; default N")
ap.add_argument("--d", type=int, default=64)
ap.add_argument("--reps", type=int, default=3)
ap.add_argument("--threads", type=int, default=os.cpu_count())
ap.add_argument("--budget", type=int, help="bytes; default a quarter of the tensors, at least 1 MiB")
ap.add_argument("--causal", action="store_true")
ap.add_argument("--torch-python", help="a Python that has torch; without it PyTorch is left out")
ap.add_argument("--numpy-python", default=sys.executable)
ap.add_argument("--quick", action="store_true", help="small sizes, one repetition: does everything run")
ap.add_argument("--dir", help="where to put the files (default: a temporary directory)")
ap.add_argument("--json", help="write every measurement to this file, a line each")
a = ap.parse_args()
if a.queries and a.causal:
    ap.error("--causal is of as many queries as keys: leave --queries out")
if a.quick:
    a.sizes, a.bf16_sizes, a.reps = "2048,4096", "2048", 1


def child_env(**more):
    """Settings that slow OpenBLAS down, or say how many threads, must not leak in."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("STREAMCQSA_", "OPENBLAS_", "OMP_", "MKL_"))}
    env.update({k: str(v) for k, v in more.items()})
    return env


def call(args, env):
    r = subprocess.run([str(x) for x in args], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if r.returncode:
        sys.exit("%s\nexit code %d\n%s" % (" ".join(map(str, args)), r.returncode, r.stderr))
    return r.stdout


def streamcqsa(files, out, budget, dtype):
    before = os.times()
    args = [a.binary, "run", "--device", "cpu", *files, "-o", out, "--mem-budget", "%dB" % budget, "--layout", "bhnd", "--threads", a.threads, "--json"]
    lines = call(args + (["--dtype", "bf16"] if dtype == "bf16" else []) + (["--causal"] if a.causal else []), child_env())
    after = os.times()
    docs = {d["type"]: d for d in map(json.loads, lines.splitlines())}
    d = docs["plan"]["division"]
    return {"seconds": docs["summary"]["seconds"]["total"],
            "cpu_seconds": after.children_user + after.children_system - before.children_user - before.children_system,
            "how": "%s, %d chunks" % (d["kind"], d["query_chunks"]), "report": docs["summary"]}


def peer(script, python, more, env):
    def run(files, out, budget, dtype):
        args = [python, os.path.join(HERE, script), *files, "-o", out, "--mem-budget", budget, *more]
        r = json.loads(call(args + (["--dtype", "bf16"] if dtype == "bf16" else []) + (["--causal"] if a.causal else []), env))
        return {"seconds": r["seconds"], "cpu_seconds": r["cpu_seconds"], "how": "tiles of %d" % r["tile"], "report": r}
    return run


PROGRAMS = {"streamcqsa": streamcqsa}
if a.torch_python:
    # Threads that wait without spinning cost nothing on an idle machine and spare a shared one.
    PROGRAMS["PyTorch"] = peer("ooc_torch.py", a.torch_python, ["--device", "cpu"], child_env(OMP_NUM_THREADS=a.threads, OMP_WAIT_POLICY="PASSIVE"))
PROGRAMS["NumPy"] = peer("blocked_numpy.py", a.numpy_python, ["--workers", a.threads], child_env(OPENBLAS_NUM_THREADS=1, OMP_NUM_THREADS=1))


def load(path, dtype):
    x = np.load(path, mmap_mode="r")[0, 0]
    return x.view(np.uint16) if dtype == "bf16" else x


def widen(x, dtype):
    return (x.astype(np.uint32) << 16).view(np.float32).astype(np.float64) if dtype == "bf16" else x.astype(np.float64)


def queries(n):
    return a.queries or n


def sampled(directory, dtype, n):
    """Up to 32 rows of the exact O, in float64 from the files."""
    q = queries(n)
    rows = np.sort(np.random.default_rng(n).choice(q, min(32, q), replace=False))
    q, k, v = (load(os.path.join(directory, x + ".npy"), dtype) for x in "qkv")
    s = widen(q[rows], dtype) @ widen(k, dtype).T / np.sqrt(a.d)
    if a.causal:
        s[np.arange(n)[None, :] > rows[:, None]] = -np.inf
    p = np.exp(s - s.max(axis=1, keepdims=True))
    return rows, (p @ widen(v, dtype)) / p.sum(axis=1, keepdims=True)


def cpu_name():
    try:
        with open("/proc/cpuinfo") as f:
            for line in f:
                if line.startswith("model name"):
                    return line.split(":")[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def main():
    cases = [(int(n), "f32") for n in a.sizes.split(",") if n] + [(int(n), "bf16") for n in a.bf16_sizes.split(",") if n]
    log = open(a.json, "w") if a.json else None
    top = a.dir or tempfile.mkdtemp(prefix="streamcqsa-bench-")
    os.makedirs(top, exist_ok=True)
    table, notes = [], {}
    try:
        for n, dtype in cases:
            d = os.path.join(top, "%s-%d" % (dtype, n))
            call([a.binary, "gen", "--shape", "1,1,1,%d,%d,%d,%d" % (queries(n), n, a.d, a.d), "--dtype", dtype, "--seed", 1, "--force", d], child_env())
            files = [x for t in "qkv" for x in ("--" + t, os.path.join(d, t + ".npy"))]
            budget = a.budget or max(1 << 20, n * a.d * (2 if dtype == "bf16" else 4))
            rows, want = sampled(d, dtype, n)
            flops = 4 * a.d * (n * (n + 1) / 2 if a.causal else queries(n) * n)
            found = {name: [] for name in PROGRAMS}
            errors = {}
            for rep in range(a.reps):
                for name, run in PROGRAMS.items():
                    out = os.path.join(d, name + ".npy")
                    r = run(files, out, budget, dtype)
                    found[name].append(r)
                    got = widen(load(out, dtype)[rows], dtype)
                    errors[name] = np.linalg.norm(got - want) / np.linalg.norm(want)
                    os.remove(out)
                    if log:
                        log.write(json.dumps({"program": name, "n": n, "dtype": dtype, "rep": rep, "budget": budget, "error": errors[name], **r}) + "\n")
                        log.flush()
                    print("%s %s %d: %.3f s" % (name, dtype, n, r["seconds"]), file=sys.stderr)
            ours = {k: statistics.median(r[k] for r in found["streamcqsa"]) for k in ("seconds", "cpu_seconds")}
            for name, runs in found.items():
                sec, cpu = (statistics.median(r[k] for r in runs) for k in ("seconds", "cpu_seconds"))
                table.append("| %s | %d | %.3g | %s | %s | %.3f | %.1f | %.3f | %.2f | %.2f | %.1e |" % (
                    dtype, n, budget / 2**20, name, runs[0]["how"], sec, flops / sec / 1e9, cpu, sec / ours["seconds"], cpu / ours["cpu_seconds"], errors[name]))
            for name, runs in found.items():
                report = runs[0]["report"]
                if name == "NumPy":
                    notes[name] = "NumPy %s, %s" % (report["numpy"], "; ".join(report.get("blas", ["BLAS unknown: no threadpoolctl"])))
                elif name == "PyTorch":
                    notes[name] = "PyTorch " + report["torch"]
            shutil.rmtree(d)
    finally:
        if not a.dir:
            shutil.rmtree(top, ignore_errors=True)
        if log:
            log.close()
    version = call([a.binary, "version"], child_env()).splitlines()[0]
    print("%s. %s, %d threads, load average %.1f at the end. %s. B = H = 1, D = %d%s. Medians of %d interleaved repetitions." % (
        version, cpu_name(), a.threads, os.getloadavg()[0], ", ".join(notes.values()), a.d, ", causal" if a.causal else "", a.reps))
    print()
    print("| type | N | budget MiB | program | how | seconds | GFLOP/s | CPU s | seconds / ours | CPU s / ours | error |")
    print("|---|---:|---:|---|---|---:|---:|---:|---:|---:|---:|")
    print("\n".join(table))


if __name__ == "__main__":
    main()
