"""What sharp assignments cost: test RMSE against normalised entropy, with and without a teacher.

    python -m benchmarks.tradeoff [--seeds 2] [--quick]

Three curves, each over the weight of entropy that is reached at the end of its ramp, all else being that of the preset
`balanced`, of the same without pruning, and of MFDMC's defaults on raw ratings. Entropy 0: one clear cluster for
everybody in every view, 1: no roles. The presets are marked. RMSE is that of the test ratings of the first fold at the
last epoch: nothing is chosen by these figures.

Appends to results/tradeoff.jsonl (a finished fit is not run again) and writes results/tradeoff.md and .png.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.suite.models import OWN_MODELS
from benchmarks.suite.report import plus_minus, table, write_markdown
from benchmarks.suite.statistics import mean_and_sd
from benchmarks.suite.study import (
    Variant,
    clusters_left,
    lab_of,
    mean_entropy,
    origins,
    parser_of,
    run_variants,
    values,
)
from mfdmc_fast.config import PRESETS, MFDMCConfig
from mfdmc_fast.files import replacing

RAW, TAUGHT, UNPRUNED, MARKED = "raw ratings", "with a teacher", "with a teacher, not pruned", "presets"
_TAUGHT_WEIGHTS = (0.0, 0.003, 0.006, 0.01, 0.015, 0.02, 0.03, 0.045, 0.06, 0.09, 0.12)
# model, settings, end of the ramp, and weights: those with a teacher are smaller, as its predictions hold no noise
CURVES: dict[str, tuple[str, dict[str, Any], int, tuple[float, ...]]] = {
    RAW: ("mfdmc", {}, 30, (0.0, 0.1, 0.2, 0.35, 0.5, 0.8, 1.1, 1.5, 2.0, 3.0)),
    TAUGHT: ("mfdmc-balanced", {}, 60, _TAUGHT_WEIGHTS),
    UNPRUNED: ("mfdmc-balanced", {"prune": False}, 60, _TAUGHT_WEIGHTS),
}
COLORS = {RAW: "#0072B2", TAUGHT: "#D55E00", UNPRUNED: "#E69F00", MARKED: "#000000"}
Rows = dict[tuple[str, int], dict[str, Any]]
Results = list[tuple[Variant, Rows]]


def variants(every: int = 1) -> list[Variant]:
    """All points of all curves, or each `every`-th, and the presets."""
    found = [
        Variant(curve, f"{weight:g}", model, {**settings, "weight_entropy": f"0:{weight:g}:{epochs}"})
        for curve, (model, settings, epochs, weights) in CURVES.items()
        for weight in weights[::every]
    ]
    known = {model.name for model in OWN_MODELS}
    marked = {name: f"mfdmc-{name}" if f"mfdmc-{name}" in known else "mfdmc" for name in PRESETS}
    return found + [Variant(MARKED, name, model) for name, model in marked.items()]


def entropy(row: dict[str, Any]) -> float:
    """Mean of users' and items' normalised entropy, in [0, 1]."""
    return statistics.fmean(row["details"]["entropy"].values())


def pruned(variant: Variant, row: dict[str, Any]) -> float:
    """Share of the clusters that pruning removed."""
    preset = PRESETS.get(variant.model.removeprefix("mfdmc-"), {})
    config = MFDMCConfig(**{**preset, **variant.settings})
    return 1 - clusters_left(row) / (2 * config.n_views * config.n_clusters)


def point(rows: Rows) -> tuple[float, float]:
    """Mean entropy and mean RMSE of a variant."""
    return statistics.fmean(map(entropy, rows.values())), mean_and_sd(values(rows, "rmse"))[0]


def markdown(results: Results, title: str) -> str:
    """A table for each curve, and one of the presets."""
    parts = [
        f"# The price of sharp assignments: {title}\n",
        "Written by `python -m benchmarks.tradeoff`, which says what is varied. RMSE on test ratings, mean ± standard"
        " deviation over the seeds; entropy as a share of the greatest possible.",
    ]
    for group in (*CURVES, MARKED):
        lines = []
        for variant, rows in results:
            if variant.group == group and rows:
                gone = statistics.fmean(pruned(variant, row) for row in rows.values())
                figures = (plus_minus(values(rows, "rmse"), 4), f"{point(rows)[0]:.2f}", mean_entropy(rows))
                lines.append((variant.name, *figures, f"{gone:.0%}"))
        head = ("preset" if group == MARKED else "weight of entropy", "RMSE", "mean entropy", "users / items", "pruned")
        parts += [f"\n## {group}\n", *table(head, lines)]
    parts += ["\n## Measured on\n", *origins(row for _, rows in results for row in rows.values())]
    return "\n".join(parts) + "\n"


def plot(results: Results, title: str, path: Path) -> None:
    """The curves in one panel, every seed as a dot, the presets by name."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 5), layout="constrained")
    for curve in CURVES:
        shown = [rows for variant, rows in results if variant.group == curve and rows]
        color = COLORS[curve]
        xs, ys = zip(*sorted(map(point, shown)), strict=True)
        axes.plot(xs, ys, "-", color=color, linewidth=1.3, label=curve)
        for rows in shown:
            every = [(entropy(row), row["rmse"]) for row in rows.values()]
            axes.plot(*zip(*every, strict=True), "o", color=color, markersize=3, alpha=0.6)
    marked = sorted((*point(rows), variant.name) for variant, rows in results if variant.group == MARKED and rows)
    for at, (x, y, name) in enumerate(marked):
        axes.plot([x], [y], "D", color=COLORS[MARKED], markersize=5)
        # in turn above and below, as two presets may lie side by side
        axes.annotate(name, (x, y), xytext=(4, 8 - 20 * (at % 2)), textcoords="offset points", fontsize=8)
    axes.set(xlabel="mean normalised entropy of the assignments (0: sharp)", ylabel="test RMSE", title=title)
    axes.title.set_fontsize(9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, frameon=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    plt.close(figure)


def main() -> None:
    """Run what is missing, write table and plot."""
    parser = parser_of(__doc__, "tradeoff")
    parser.set_defaults(seeds=2)
    args = parser.parse_args()
    lab = lab_of(args, "tradeoff")
    console = Console(stderr=True)
    results = run_variants("tradeoff", variants(4 if args.quick else 1), args.dataset, [0], args.seeds, lab, console)
    folds = {fold for _, rows in results for fold, _ in rows}
    title = f"{args.dataset} {', '.join(sorted(folds))}, {args.seeds} seed{'s' if args.seeds > 1 else ''}"
    write_markdown(markdown(results, title), lab.store.path.with_suffix(".md"))
    plot(results, title, lab.store.path.with_suffix(".png"))
    console.print(f"{lab.ran} fits; wrote {lab.store.path.with_suffix('.md')} and .png", soft_wrap=True)


if __name__ == "__main__":
    main()
