"""Plots of time over the number of tokens, from the results that gpu_attention.py writes.

Log-log, one line a method, one PNG a shape. A hollow marker is a result that is more than 1 % wrong.
Needs matplotlib.
"""
import collections
import os

# Method: label, colour, line style. Dashed computes no bias at all.
STYLES = {
    "ours_skipping": ("FlashBias Serve", "#c0392b", "-"),
    "ours_dense": ("FlashBias Serve, skipping off", "#e59866", "-"),
    "flex_alibi": ("FlexAttention, ALiBi", "#2471a3", "-"),
    "flex_window": ("FlexAttention, ALiBi, hand-made window", "#5dade2", "-"),
    "fa2_alibi": ("FlashAttention-2, ALiBi", "#1e8449", "-"),
    "sdpa_factors": ("SDPA, concatenated factors", "#7d3c98", "-"),
    "sdpa_dense_bias": ("SDPA, dense bias", "#7f8c8d", "-"),
    "sdpa_none": ("SDPA, no bias", "#1c2833", "--"),
    "sdpa_none_flash": ("SDPA FlashAttention, no bias", "#1e8449", "--"),
    "sdpa_none_cudnn": ("SDPA cuDNN, no bias", "#b7950b", "--"),
}
WRONG = 1e-2


def is_wrong(row):
    return not row["relative_error"] <= WRONG  # NaN is wrong too


def draw(report, folder):
    """Writes folder/<direction>_time.png for the first shape, and <direction>_time_D<head_dim>_H<heads>.png for the
    others; returns the paths."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    direction = report.get("direction", "forward")
    shapes = collections.defaultdict(lambda: collections.defaultdict(list))
    for row in report["results"]:
        if row["ms"] is not None:
            shapes[row["head_dim"], row["heads"]][row["method"]].append(row)

    os.makedirs(folder, exist_ok=True)
    paths = []
    for (head_dim, heads), methods in shapes.items():
        figure, axes = plt.subplots(figsize=(7.5, 5.2), dpi=160)
        lengths = set()
        for method, (label, colour, style) in STYLES.items():
            rows = sorted(methods.get(method, []), key=lambda row: row["seq_len"])
            if not rows:
                continue
            lengths.update(row["seq_len"] for row in rows)
            ours = method.startswith("ours")
            axes.plot([row["seq_len"] for row in rows], [row["ms"] for row in rows], style, color=colour,
                      label=label, linewidth=2.4 if ours else 1.4, zorder=3 if ours else 2)
            for row in rows:
                axes.plot(row["seq_len"], row["ms"], "o", color=colour, markersize=5,
                          markerfacecolor="white" if is_wrong(row) else colour, zorder=4)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(sorted(lengths), [str(length) for length in sorted(lengths)])
        axes.set_xlabel("tokens")
        axes.set_ylabel(f"{direction} time, ms")
        axes.set_title(f"Causal attention, {direction}, {heads} heads x {head_dim}, float16, {report['device']}\n"
                       "hollow: more than 1 % wrong", fontsize=10)
        axes.grid(True, which="major", alpha=0.3)
        axes.legend(fontsize=8)
        figure.tight_layout()
        shape = f"_D{head_dim}_H{heads}" if paths else ""
        path = os.path.join(folder, f"{direction}_time{shape}.png")
        figure.savefig(path)
        plt.close(figure)
        paths.append(path)
    return paths
