#!/usr/bin/env python3
"""What a user would write instead of streamcqsa: exact out-of-core attention in PyTorch.

A query tile stays on the device with its float32 accumulator; key/value windows stream
through two pinned buffers on a copy stream; partial results merge by log-sum-exp on the
device. File to file (.npy in, .npy out), under --mem-budget bytes of device memory.

The inner kernel is PyTorch's own (cuDNN or FlashAttention-2 on CUDA, the flash kernel on
the CPU), so the comparison with streamcqsa is between streaming strategies and kernels
that are both good. Prints one line of JSON.

  ooc_torch.py --q Q.npy --k K.npy --v V.npy -o O.npy --mem-budget 2147483648 [--causal]
               [--dtype bf16] [--device cuda|cpu] [--backend cudnn|flash|auto]

Arrays are [B, H, N, D]; 16-bit brain floats are stored as uint16 (pass --dtype bf16).
"""
import argparse, json, math, time, warnings
import numpy as np
import torch

warnings.filterwarnings("ignore", message="The given NumPy array is not writable")

ap = argparse.ArgumentParser()
for n in "qkv":
    ap.add_argument("--" + n, required=True)
ap.add_argument("-o", "--out", required=True)
ap.add_argument("--mem-budget", type=int, required=True)
ap.add_argument("--causal", action="store_true")
ap.add_argument("--dtype", choices=["f32", "f16", "bf16"])
ap.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
ap.add_argument("--backend", choices=["auto", "cudnn", "flash"], default="auto")
ap.add_argument("--out-dtype", choices=["same", "f32"], default="same")
ap.add_argument("--max-query-tiles", type=int, default=0, help="stop early; seconds are then for that part")
a = ap.parse_args()

TORCH = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def load(path):
    m = np.load(path, mmap_mode="r")
    if a.dtype == "bf16":
        m = m.view(np.uint16) if m.dtype != np.uint16 else m
    return m


q, k, v = load(a.q), load(a.k), load(a.v)
B, H, N, D = q.shape
Hk, M, Dv = k.shape[1], k.shape[2], v.shape[3]
G = H // Hk
dt = TORCH[a.dtype] if a.dtype else {"float32": torch.float32, "float16": torch.float16}[str(q.dtype)]
es = torch.empty((), dtype=dt).element_size()
dev = torch.device(a.device)
cuda = dev.type == "cuda"
scale = 1 / math.sqrt(D)


def to_torch(x):
    t = torch.from_numpy(np.ascontiguousarray(x))
    return t.view(dt) if t.dtype != dt else t


def partial(qt, kt, vt, causal):
    """-> out [1,h,n,Dv], lse [1,h,n] float32."""
    if not cuda:
        o, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(qt, kt, vt, 0.0, causal, scale=scale)[:2]
        return o, (lse if lse.shape[1] == qt.shape[1] else lse.transpose(1, 2))
    if dt == torch.float32:
        n = qt.shape[2]
        o, lse = torch.ops.aten._scaled_dot_product_efficient_attention(qt, kt, vt, None, True, 0.0, causal, scale=scale)[:2]
        return o, lse[:, :, :n]
    if a.backend in ("auto", "cudnn"):
        r = torch.ops.aten._scaled_dot_product_cudnn_attention(qt, kt, vt, None, True, 0.0, causal, False, scale=scale)
        return r[0], r[1].reshape(qt.shape[:3])
    r = torch.ops.aten._scaled_dot_product_flash_attention(qt, kt, vt, 0.0, causal, False, scale=scale)
    return r[0], r[1][:, :, : qt.shape[2]]


# Tile sizes: Tq and Tk equal, from the budget. Per token: q, acc, out, and two windows of k and v.
per_q = D * es + Dv * 4 * 2 + Dv * es + 16
per_k = 2 * (D + Dv) * es
T = int(0.9 * a.mem_budget / (per_q + per_k)) // 256 * 256
T = max(256, min(T, max(N, M)))
t0, cpu0 = time.perf_counter(), time.process_time()
od = np.float32 if (a.out_dtype == "f32" or dt == torch.float32) else (np.float16 if dt == torch.float16 else np.uint16)
out = np.lib.format.open_memmap(a.out, mode="w+", dtype=od, shape=(B, H, N, Dv))
moved = 0
if cuda:
    copy = torch.cuda.Stream()
    pin = [[torch.empty((T, d), dtype=dt).pin_memory() for d in (D, Dv)] for _ in range(2)]
    buf = [[torch.empty((1, 1, T, d), dtype=dt, device=dev) for d in (D, Dv)] for _ in range(2)]
    done = [torch.cuda.Event() for _ in range(2)]
    landed = [torch.cuda.Event() for _ in range(2)]
    torch.cuda.reset_peak_memory_stats()
flops = 0
tiles = 0
for b in range(B):
    for h in range(H):
        hk = h // G
        for qs in range(0, N, T):
            if a.max_query_tiles and tiles >= a.max_query_tiles:
                break
            tiles += 1
            qe = min(N, qs + T)
            qt = to_torch(q[b, h, qs:qe])[None, None].to(dev)
            moved += qt.numel() * es
            acc = lse = None
            end = qe if a.causal else M
            wins = [(s, min(end, s + T)) for s in range(0, end, T)]

            def fetch(i):
                s, e = wins[i]
                slot = i % 2
                if not cuda:
                    return to_torch(k[b, hk, s:e])[None, None], to_torch(v[b, hk, s:e])[None, None]
                landed[slot].synchronize()
                for j, src in enumerate((k, v)):
                    pin[slot][j][: e - s].copy_(to_torch(src[b, hk, s:e]))
                with torch.cuda.stream(copy):
                    copy.wait_event(done[slot])
                    for j in range(2):
                        buf[slot][j][0, 0, : e - s].copy_(pin[slot][j][: e - s], non_blocking=True)
                    landed[slot].record(copy)
                return None

            nxt = fetch(0)
            for i, (s, e) in enumerate(wins):
                cur = nxt
                if i + 1 < len(wins):
                    nxt = fetch(i + 1)
                if cuda:
                    torch.cuda.current_stream().wait_event(landed[i % 2])
                    kt, vt = (buf[i % 2][j][:, :, : e - s] for j in range(2))
                else:
                    kt, vt = cur
                moved += (e - s) * (D + Dv) * es
                diag = a.causal and s >= qs
                o, l = partial(qt, kt, vt, diag)
                flops += 2 * (qe - qs) * (e - s) * (D + Dv) * (0.5 if diag else 1)
                l = l.float()[..., None]
                if acc is None:
                    acc, lse = o.float(), l
                else:
                    new = torch.logaddexp(lse, l)
                    acc = acc * torch.exp(lse - new) + o.float() * torch.exp(l - new)
                    lse = new
                if cuda:
                    done[i % 2].record()
            r = acc[0, 0].cpu()
            if od == np.uint16:
                r = r.to(torch.bfloat16).view(torch.uint16)
            out[b, h, qs:qe] = r.numpy().astype(od, copy=False)
            moved += (qe - qs) * Dv * 4
out.flush()
sec, cpu = time.perf_counter() - t0, time.process_time() - cpu0
rec = dict(peer="ooc_torch", torch=torch.__version__, device=str(dev), backend=a.backend, shape=[B, H, N, D], keys=M,
           causal=a.causal, dtype=str(dt), tile=T, tiles=tiles, seconds=round(sec, 4), cpu_seconds=round(cpu, 4), tflops=round(flops / sec / 1e12, 3), gb_moved=round(moved / 1e9, 3))
if cuda:
    rec["peak_device_bytes"] = torch.cuda.max_memory_allocated()
print(json.dumps(rec))
