#!/usr/bin/env python3
"""The CPU backend beside PyTorch's scaled_dot_product_attention, in one run on one machine.

  cpu_attention.py --bench build/release/bin/cpu_attention_bench --threads 1,2,16

Both compute causal attention, batch 1, random normal q, k, v. Ours has ALiBi with seed slopes; PyTorch
is timed without any bias (is_causal) and with the same ALiBi as a dense additive bias (attn_mask).
Times are milliseconds, medians: PyTorch's of up to 50 runs, ours of 7 repetitions of Google Benchmark.
Ratios above 1 mean that ours, with skipping on, is faster. Needs torch.
"""
import argparse
import json
import os
import statistics
import subprocess
import time

import torch

SHAPES = [(50, 32), (25, 64), (16, 128)]


def time_torch(call, budget_s):
    call()
    times = []
    end = time.perf_counter() + budget_s
    while not times or (time.perf_counter() < end and len(times) < 50):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return statistics.median(times) * 1e3


def torch_times(heads, head_dim, length, dtype, budget_s):
    """(no bias, dense ALiBi bias), each also checked to be finite."""
    q, k, v = (torch.randn(1, heads, length, head_dim).to(dtype) for _ in range(3))
    sdpa = torch.nn.functional.scaled_dot_product_attention
    with torch.no_grad():
        plain = time_torch(lambda: sdpa(q, k, v, is_causal=True), budget_s)
        slopes = torch.tensor([2 ** (-8 * h / heads) for h in range(1, heads + 1)])
        position = torch.arange(length)
        distance = position[:, None] - position[None, :]
        bias = -slopes[:, None, None] * distance
        bias = bias.masked_fill(distance < 0, float("-inf")).to(dtype)[None]
        dense = time_torch(lambda: sdpa(q, k, v, attn_mask=bias), budget_s)
    return plain, dense


def our_times(bench, name_filter, threads):
    env = dict(os.environ, FLASHBIAS_BENCH_THREADS=str(threads))
    out = subprocess.run(
        [bench, f"--benchmark_filter={name_filter}", "--benchmark_format=json",
         "--benchmark_repetitions=7", "--benchmark_min_time=0.05"],
        env=env, check=True, stdout=subprocess.PIPE).stdout
    report = json.loads(out)
    rows = {}
    for row in report["benchmarks"]:
        if row.get("aggregate_name") != "median":
            continue
        rows["/".join(row["name"].split("/")[:5])] = row
    return rows, float(report["context"][f"fma_peak_gflops_{threads}_threads"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bench", required=True, help="path of cpu_attention_bench")
    parser.add_argument("--threads", default="1,2", help="comma-separated thread counts")
    parser.add_argument("--lengths", default="512,1024,2048,4096,8192")
    parser.add_argument("--torch_lengths", default="1024,4096", help="lengths that PyTorch runs too")
    parser.add_argument("--dtypes", default="float32")
    parser.add_argument("--seconds", type=float, default=1.0, help="budget of a PyTorch timing")
    args = parser.parse_args()

    for threads in (int(t) for t in args.threads.split(",")):
        torch.set_num_threads(threads)
        lengths = args.lengths.replace(",", "|")
        dtypes = args.dtypes.replace(",", "|")
        ours, peak = our_times(args.bench, f"N({lengths})/({dtypes})/", threads)
        print(f"\n{threads} threads, fp32 multiply-add peak {peak:.0f} GFLOP/s, torch {torch.__version__}")
        print(f"{'H, D':>8} {'N':>5} {'dtype':>8} | {'skip off':>9} {'of peak':>7} {'skip on':>9} {'gain':>5}"
              f" | {'torch none':>10} {'ratio':>6} {'torch bias':>10} {'ratio':>6}")
        for heads, head_dim in SHAPES:
            for length in (int(n) for n in args.lengths.split(",")):
                for dtype in args.dtypes.split(","):
                    key = f"D{head_dim}/H{heads}/N{length}/{dtype}"
                    if key + "/skip_on" not in ours:
                        continue
                    off, on = ours[key + "/skip_off"], ours[key + "/skip_on"]
                    line = (f"{heads:>4},{head_dim:>3} {length:>5} {dtype:>8} | {off['real_time']:>9.2f} "
                            f"{100 * off['of_peak']:>6.0f}% {on['real_time']:>9.2f} "
                            f"{off['real_time'] / on['real_time']:>4.1f}x")
                    if str(length) in args.torch_lengths.split(","):
                        plain, dense = torch_times(heads, head_dim, length, getattr(torch, dtype), args.seconds)
                        line += (f" | {plain:>10.2f} {plain / on['real_time']:>5.2f}x {dense:>10.2f} "
                                 f"{dense / on['real_time']:>5.2f}x")
                    print(line, flush=True)


if __name__ == "__main__":
    main()
