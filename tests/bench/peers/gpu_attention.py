#!/usr/bin/env python3
"""attention_bench beside what PyTorch offers on a GPU, in one run on one machine.

  gpu_attention.py --bench build/release/bin/attention_bench --json peers.json --plots plots
  gpu_attention.py --bench build/release/bin/attention_bench --direction backward --json backward.json --plots plots
  gpu_attention.py --plot_from peers.json --plots plots

Causal, batch 1, float16, slopes 2^(-8k/H), random normal q, k, v and d_o: medians of launches that are
each timed alone with CUDA events, the L2 cache flushed before. Backward, only that pass is timed. Ratios are the
method's time over ours; above 1, ours is faster. Errors are ||x - ref|| / ||ref|| of sampled rows against float64,
backward the largest of dq, dk and dv; a method without bias is held against a reference without bias. A method
that fails or does not fit has a note instead.
Needs torch with CUDA; matplotlib for plots. gpu_peers.py has the methods.
"""
import argparse
import json
import math
import subprocess
import sys
import time

import time_plot

OURS = {"ours_skipping": [], "ours_dense": ["--eps=0"]}


def result(shape, tokens, method, ms=None, error=None, note=""):
    return {"head_dim": shape[0], "heads": shape[1], "seq_len": tokens, "method": method, "ms": ms,
            "relative_error": error, "note": note}


def first_line(error):
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:140]


def run_ours(bench, shape, lengths, flags):
    """The bench's own report: a row for each length."""
    run = subprocess.run(
        [bench, f"--head_dim={shape[0]}", f"--heads={shape[1]}", "--seq_lens=" + ",".join(map(str, lengths)),
         "--check", "--json=-", *flags],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if run.returncode != 0:
        raise RuntimeError(run.stderr.strip().splitlines()[-1] if run.stderr.strip() else run.returncode)
    return json.loads(run.stdout)


def our_results(args, shape, reports):
    results = []
    for method, flags in OURS.items():
        try:
            report = run_ours(args.bench, shape, args.lengths, [f"--direction={args.direction}", *flags])
        except (OSError, RuntimeError, ValueError) as error:
            results += [result(shape, tokens, method, note=first_line(error)) for tokens in args.lengths]
            continue
        reports.append(report)
        # JSON has no NaN: the bench writes null for it.
        results += [result(shape, row["seq_len"], method, row["median_ms"],
                           math.nan if row["relative_error"] is None else row["relative_error"],
                           f"{row['kernel']}, {100 * row['skipped_share']:.0f} % of tiles skipped")
                    for row in report["rows"]]
    return results


def peer_results(args, shape, tokens, timer, end):
    import gpu_peers
    import torch

    results = []
    backward = args.direction == "backward"
    x = gpu_peers.Inputs(shape[1], shape[0], tokens, backward)
    make_reference = gpu_peers.GradientReference if backward else gpu_peers.Reference
    measure_method = gpu_peers.measure_backward if backward else gpu_peers.measure
    references = {alibi: make_reference(x, alibi) for alibi in (True, False)}
    for method, (prepare, alibi) in gpu_peers.METHODS.items():
        if args.methods and method not in args.methods:
            continue
        if backward and method not in gpu_peers.BACKWARD_METHODS:
            continue
        if time.monotonic() > end:
            results.append(result(shape, tokens, method, note="not run: --budget_s is spent"))
            continue
        try:
            ms, error = measure_method(prepare, x, references[alibi], timer)
            results.append(result(shape, tokens, method, ms, error))
        except Exception as error:  # whatever stops one method must not stop the others
            results.append(result(shape, tokens, method, note=first_line(error)))
        torch.cuda.empty_cache()
    return results


def ratio(row, ours):
    return f"{row['ms'] / ours:>9.2f}x" if row["ms"] is not None and ours is not None else f"{'-':>10}"


def print_results(results):
    ours = {row["method"]: row["ms"] for row in results if row["method"] in OURS}
    first = results[0]
    print(f"\nD = {first['head_dim']}, H = {first['heads']}, N = {first['seq_len']}")
    print(f"  {'method':<16} {'ms':>9} {'/skipping':>10} {'/dense':>10} {'error':>9}")
    for row in results:
        ms = f"{row['ms']:>9.4f}" if row["ms"] is not None else f"{'-':>9}"
        error = f"{row['relative_error']:>9.1e}" if row["relative_error"] is not None else f"{'-':>9}"
        print(f"  {row['method']:<16} {ms} {ratio(row, ours['ours_skipping'])} {ratio(row, ours['ours_dense'])} "
              f"{error}  {row['note']}", flush=True)


def write_json(report, path):
    if path:
        with open(path, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=1)


def measure(args):
    import torch
    import gpu_peers

    if not torch.cuda.is_available():
        sys.exit("gpu_attention.py: no CUDA device")
    end = time.monotonic() + args.budget_s
    report = {"direction": args.direction, "device": torch.cuda.get_device_name(), "torch": torch.__version__, "cuda": torch.version.cuda,
              "cudnn": torch.backends.cudnn.version(), "results": [], "bench_reports": []}
    print(f"{report['device']}, torch {report['torch']}, CUDA {report['cuda']}, cuDNN {report['cudnn']}")
    with torch.no_grad():
        timer = gpu_peers.Timer(args.seconds)
        for shape in args.shapes:
            ours = our_results(args, shape, report["bench_reports"])
            for tokens in args.lengths:
                results = [row for row in ours if row["seq_len"] == tokens]
                results += peer_results(args, shape, tokens, timer, end)
                report["results"] += results
                print_results(results)
                write_json(report, args.json)  # after every length: what is measured is kept
    return report


def plot(report, folder):
    try:
        for path in time_plot.draw(report, folder):
            print(f"wrote {path}")
    except ImportError as error:
        print(f"no plots ({error}): draw them elsewhere with --plot_from", file=sys.stderr)


def parse_shape(text):
    head_dim, heads = text.split("x")
    return int(head_dim), int(heads)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bench", help="path of attention_bench")
    parser.add_argument("--direction", choices=["forward", "backward"], default="forward")
    parser.add_argument("--lengths", default="256,1024,4096,8192,16384,32768,65536",
                        type=lambda text: [int(n) for n in text.split(",")])
    parser.add_argument("--shapes", default="32x50", help="head_dim x heads: 32x50,64x25,128x16",
                        type=lambda text: [parse_shape(shape) for shape in text.split(",")])
    parser.add_argument("--methods", type=lambda text: text.split(","), help="only these of PyTorch's")
    parser.add_argument("--seconds", type=float, default=0.2, help="of launches for one median, 5 to 50 of them")
    parser.add_argument("--budget_s", type=float, default=150, help="no peer is started after this long")
    parser.add_argument("--json", help="write the results here")
    parser.add_argument("--plots", help="folder for a PNG a shape")
    parser.add_argument("--plot_from", help="draw the plots of this JSON file and measure nothing")
    args = parser.parse_args()

    if args.plot_from:
        with open(args.plot_from, encoding="utf-8") as file:
            report = json.load(file)
    elif args.bench:
        report = measure(args)
    else:
        parser.error("--bench or --plot_from is needed")
    if args.plots:
        plot(report, args.plots)


if __name__ == "__main__":
    main()
