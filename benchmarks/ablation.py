"""What each part of MFDMC does: all of it, and without one loss or without pruning, paired fold by fold.

    python -m benchmarks.ablation [--seeds 3] [--quick]

Four bases: raw ratings or a Bayesian teacher, views side by side (`concat`) or summed (`sum`), with the settings of
`benchmarks/suite/models.py`. Each is run in full, without each of spread, proximity, entropy and L2, without pruning,
and with none of spread, proximity, entropy and pruning.
All folds of the dataset, `--seeds` seeds each, last epoch. Nothing is chosen by these figures: they are test errors.

Appends to results/ablation.jsonl (a finished fit is not run again) and writes results/ablation.md and .png: RMSE, its
paired difference to the full setting over the folds with Student's 95 % interval, clusters left and the entropy of the
assignments, which says what the losses are for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.suite.datasets import DATASETS
from benchmarks.suite.report import interval, plus_minus, table, write_markdown
from benchmarks.suite.statistics import paired_difference
from benchmarks.suite.study import (
    Variant,
    lab_of,
    mean_clusters,
    mean_entropy,
    origins,
    parser_of,
    run_variants,
    values,
)
from mfdmc_fast.files import replacing

FULL = "full"
BASES = {
    "raw ratings, concat": "mfdmc",
    "raw ratings, sum": "mfdmc-sum",
    "taught, concat": "mfdmc-balanced",
    "taught, sum": "mfdmc-balanced-sum",
}
_NO_SPREAD: dict[str, Any] = {"weight_spread": 0.0}
_NO_PROXIMITY: dict[str, Any] = {"weight_proximity": 0.0}
_NO_ENTROPY: dict[str, Any] = {"weight_entropy": 0.0}
_NO_PRUNING: dict[str, Any] = {"prune": False}
CHANGES: dict[str, dict[str, Any]] = {
    FULL: {},
    "without spread": _NO_SPREAD,
    "without proximity": _NO_PROXIMITY,
    "without entropy": _NO_ENTROPY,
    "without pruning": _NO_PRUNING,
    "without l2": {"weight_l2": 0.0},
    "without all four": {**_NO_SPREAD, **_NO_PROXIMITY, **_NO_ENTROPY, **_NO_PRUNING},
}
# differences that would make all others look like none
_BEYOND = 0.02
Results = list[tuple[Variant, dict[tuple[str, int], dict[str, Any]]]]


def variants() -> list[Variant]:
    """Every base with every change."""
    return [Variant(base, name, model, settings) for base, model in BASES.items() for name, settings in CHANGES.items()]


def markdown(results: Results, title: str) -> str:
    """Tables of all bases."""
    parts = [f"# Ablation: {title}\n", "Written by `python -m benchmarks.ablation`; what is varied is said there."]
    full = {variant.group: values(rows, "rmse") for variant, rows in results if variant.name == FULL}
    for base in dict.fromkeys(variant.group for variant, _ in results):
        lines = []
        for variant, rows in results:
            if variant.group == base and rows:
                rmse = values(rows, "rmse")
                minus = "" if variant.name == FULL else interval(paired_difference(rmse, full[base]))
                entropy, clusters = mean_entropy(rows), mean_clusters(rows)
                lines.append((variant.name, plus_minus(rmse, 4), minus, clusters, entropy))
        head = ("setting", "RMSE", "minus full [95 % interval]", "clusters left", "entropy, users / items")
        parts += [f"\n## {base}\n", *table(head, lines)]
    parts += ["\n## Measured on\n", *origins(row for _, rows in results for row in rows.values())]
    return "\n".join(parts) + "\n"


def plot(results: Results, title: str, path: Path) -> None:
    """Differences to the full setting, a panel for each base."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    full = {variant.group: values(rows, "rmse") for variant, rows in results if variant.name == FULL}
    figure, grid = plt.subplots(2, 2, figsize=(10, 5.5), layout="constrained")
    for axes, base in zip(grid.flat, BASES, strict=True):
        shown = [(v, rows) for v, rows in reversed(results) if v.group == base and v.name != FULL and rows]
        names = [variant.name for variant, _ in shown]
        for y, (_, rows) in enumerate(shown):
            found = paired_difference(values(rows, "rmse"), full[base])
            if found is None:
                continue
            if abs(found.mean) > _BEYOND:
                names[y] += f": {found.mean:+.3f}, not drawn"
                continue
            if found.low is not None:
                axes.plot([found.low, found.high], [y, y], color="#0072B2", linewidth=1.5)
            axes.plot([found.mean], [y], "o", color="#0072B2", markersize=5)
        axes.axvline(0, color="#999999", linewidth=0.8)
        axes.set_yticks(range(len(shown)), names, fontsize=8)
        axes.set_ylim(-0.5, len(shown) - 0.5)
        axes.locator_params(axis="x", nbins=5)
        axes.set_title(base, fontsize=9)
        axes.grid(alpha=0.3, axis="x")
    figure.supxlabel(f"RMSE minus that of the full setting, 95 % interval; {title}", fontsize=9)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    plt.close(figure)


def main() -> None:
    """Run what is missing, write report and plot."""
    args = parser_of(__doc__, "ablation").parse_args()
    lab = lab_of(args, "ablation")
    dataset, console = DATASETS[args.dataset], Console(stderr=True)
    folds = range(1 if args.quick else dataset.default_folds)
    results = run_variants("ablation", variants(), dataset.name, folds, args.seeds, lab, console)
    title = f"{dataset.name}, {len(folds)} folds x {args.seeds} seeds"
    write_markdown(markdown(results, title), lab.store.path.with_suffix(".md"))
    plot(results, title, lab.store.path.with_suffix(".png"))
    console.print(f"{lab.ran} fits; wrote {lab.store.path.with_suffix('.md')} and .png", soft_wrap=True)


if __name__ == "__main__":
    main()
