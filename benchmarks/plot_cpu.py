"""Draws what the CPU benchmarks have measured: results/cpu_training.json and results/cpu_scaling.json.

    python -m benchmarks.plot_cpu

Writes results/cpu_training.png (test RMSE over wall seconds) and results/cpu_scaling.png (throughput over clusters,
view_dim, threads and data size).
"""

from __future__ import annotations

import json
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.results_file import RESULTS
from mfdmc_fast.files import replacing

# colors and markers that stay apart for the colour-blind and in grey
STYLES = [
    ("#0072B2", "o", "-"),
    ("#D55E00", "s", "-"),
    ("#009E73", "^", "-"),
    ("#CC79A7", "D", "-"),
    ("#555555", "", "--"),
    ("#999999", "", ":"),
]


def caption(results: dict[str, Any]) -> str:
    """Where the figures come from."""
    return f"{results['command']} · commit {results['commit']} · {results['cpu']}, {results['threads']} threads"


def save(figure: Any, name: str) -> None:
    """Write a PNG under a temporary name and rename."""
    with replacing(RESULTS / name) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    plt.close(figure)


def time_to_quality(results: dict[str, Any]) -> Any:
    """Test RMSE over wall seconds: every point of ours is a whole fit, LIBMF's are iterations of one run."""
    curves = {name: entry["curve"] for name, entry in results["time_to_quality"].items()}
    figure, axes = plt.subplots(figsize=(7.5, 5), layout="constrained")
    for (name, curve), (color, marker, line) in zip(curves.items(), STYLES, strict=False):
        xs, ys = [p["seconds"] for p in curve], [p["rmse"] for p in curve]
        axes.plot(xs, ys, line, color=color, marker=marker, markersize=5, label=name)
    axes.set(xscale="log", xlabel="wall seconds (LIBMF: without reading its text)", ylabel="test RMSE")
    axes.set_ylim(top=0.91)
    axes.set_title(results["data"], fontsize=11)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.supxlabel(caption(results), fontsize=7, color="#666666")
    return figure


def scaling(results: dict[str, Any]) -> Any:
    """Throughput over one setting at a time."""
    labels = {
        "n_clusters": "clusters a view (K)",
        "view_dim": "length of a center (d)",
        "threads": "threads",
        "n_ratings": "ratings",
    }
    figure, grid = plt.subplots(2, 2, figsize=(9, 6.5), layout="constrained")
    for axes, (name, label) in zip(grid.flat, labels.items(), strict=True):
        points = results["sweeps"][name]
        axes.plot([int(x) for x in points], list(points.values()), "o-", color="#0072B2")
        axes.set(xlabel=label, ylabel="M ratings/s", ylim=(0, 1.15 * max(points.values())))
        if name == "n_ratings":
            axes.set_xscale("log")
        else:
            axes.set_xticks([int(x) for x in points])
        axes.grid(alpha=0.3)
    figure.suptitle("MFDMC in the native engine, defaults but for one setting, generated ratings", fontsize=11)
    figure.supxlabel(caption(results), fontsize=7, color="#666666")
    return figure


def main() -> None:
    """Draw what is there."""
    for name, draw in (("cpu_training", time_to_quality), ("cpu_scaling", scaling)):
        path = RESULTS / f"{name}.json"
        if path.exists():
            save(draw(json.loads(path.read_text(encoding="utf-8"))), f"{name}.png")
            print(f"wrote {RESULTS / name}.png")


if __name__ == "__main__":
    main()
