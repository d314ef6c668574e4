#!/usr/bin/python3
"""Compares the percentiles of the load generator's histograms with numpy's on the raw values.

    percentiles.py PRINT_PERCENTILES

Of Debian's python, as python3-numpy is. Exits with 77 where numpy is missing.
"""

import json
import subprocess
import sys

try:
    import numpy
except ImportError:
    print("skipped: no numpy (python3-numpy)")
    sys.exit(77)

failures = 0
compared = 0


def expect(name, what, ours, least, most):
    global failures, compared
    compared += 1
    if not least <= ours <= most:
        failures += 1
        print(f"{name}: {what} is {ours} ns; by the raw values {least} to {most} ns")


cases = json.loads(subprocess.run([sys.argv[1]], check=True, stdout=subprocess.PIPE).stdout)
for name, case in cases.items():
    values = numpy.array(case["nanoseconds"], dtype=numpy.int64)
    for percent, ours in case["percentiles"]:
        exact = float(numpy.percentile(values, percent, method="inverted_cdf"))
        # A bucket's width; the smallest buckets are 1 us wide.
        expect(name, f"p{percent:g}", ours, exact, exact + max(exact / case["parts"], 1000))
    # Durations are kept to a quarter of a nanosecond.
    mean, deviation = float(values.mean()), float(values.std())
    expect(name, "the mean", case["mean"], mean - 1, mean + 1)
    expect(name, "the deviation", case["deviation"], deviation * (1 - 1e-6), deviation * (1 + 1e-6))
    expect(name, "the minimum", case["min"], float(values.min()), float(values.min()))
    expect(name, "the maximum", case["max"], float(values.max()), float(values.max()))

print(f"{compared} figures of {len(cases)} distributions compared, {failures} wrong")
sys.exit(1 if failures or not compared else 0)
