"""How MFDMC answers to its settings: one at a time around the defaults, on a validation split, several seeds.

    python -m benchmarks.sensitivity [--model mfdmc] [--seeds 5] [--quick]

Learning rates (all three alike, and the defaults), views, clusters and their dimension, the margin of spread, the
threshold of pruning, and schedules of the entropy and proximity weights; everything else keeps the model's settings. A
tenth of the training part of the first fold is held out (the split on which the accuracy suite tunes); test ratings are
never read. Figures are those of the last epoch, not of the best one.

Appends to results/sensitivity.jsonl (a finished fit is not run again) and writes results/sensitivity.md and .png: RMSE
with its standard deviation over the seeds, clusters left, entropy of the assignments, errors over the epochs, and how
many clusters each view has left, by epoch and by seed.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.suite.models import all_models
from benchmarks.suite.report import plus_minus, table, write_markdown
from benchmarks.suite.study import (
    Variant,
    clusters_left,
    lab_of,
    mean_clusters,
    mean_entropy,
    origins,
    parser_of,
    run_variants,
    values,
)
from benchmarks.suite.worker import VALIDATION
from mfdmc_fast.config import PRESETS, MFDMCConfig
from mfdmc_fast.files import replacing

DEFAULT = "default"
RATES = "learning rate"
SCHEDULES = "schedule of entropy and proximity"
Results = list[tuple[Variant, dict[tuple[str, int], dict[str, Any]]]]

_ONE_AT_A_TIME: dict[str, tuple[str, tuple[float, ...]]] = {
    "views (V)": ("n_views", (2, 4, 8, 16, 32)),
    "clusters a view (K)": ("n_clusters", (3, 5, 10, 20, 40)),
    "length of a center (d)": ("view_dim", (1, 2, 4, 8, 16)),
    "margin of spread": ("spread_margin", (0.0, 0.25, 0.5, 0.77, 1.5, 3.0)),
    "threshold of pruning": ("prune_threshold", (0.0, 0.03, 0.05, 0.07, 0.09)),
}


def rates(value: float) -> dict[str, Any]:
    """The same learning rate for logits, centers and biases."""
    return dict.fromkeys(("learning_rate", "learning_rate_centers", "learning_rate_biases"), value)


def schedules(model: str) -> dict[str, dict[str, Any]]:
    """The weights of entropy and proximity, constant and along ramps, all with the same greatest value."""
    ramped = ("weight_entropy", "weight_proximity")
    preset = PRESETS.get(model.removeprefix("mfdmc-").removesuffix("-sum"), {})
    settings: dict[str, Any] = MFDMCConfig(**preset).to_dict()
    tops = {name: str(settings[name]).rsplit(":", 1)[0].split(":")[-1] for name in ramped}
    forms = {"constant": "{top}", "up in 15 epochs": "0:{top}:15", "up in 30 epochs": "0:{top}:30"}
    forms |= {"up in 60 epochs": "0:{top}:60", "down in 30 epochs": "{top}:0:30"}
    return {name: {weight: form.format(top=top) for weight, top in tops.items()} for name, form in forms.items()} | {
        "none": dict.fromkeys(tops, 0.0)
    }


def variants(model: str) -> list[Variant]:
    """All settings of all sweeps."""
    found = [Variant(RATES, f"{rate:g}", model, rates(rate), history=True) for rate in (0.001, 0.01, 0.1)]
    found.insert(2, Variant(RATES, DEFAULT, model, {}, history=True))
    for group, (name, options) in _ONE_AT_A_TIME.items():
        for value in options:
            settings: dict[str, Any] = {name: value}
            if (
                name == "n_clusters"
            ):  # half of a uniform share, as the default is, or pruning takes all of many clusters
                settings["prune_threshold"] = 0.5 / value
            found.append(Variant(group, f"{value:g}", model, settings))
    return found + [Variant(SCHEDULES, name, model, settings) for name, settings in schedules(model).items()]


def default_rows(results: Results) -> list[dict[str, Any]]:
    """The runs with default settings, by seed, with errors and clusters of every epoch."""
    return next(list(rows.values()) for variant, rows in results if variant.name == DEFAULT)


def markdown(results: Results, title: str) -> str:
    """Tables of all sweeps."""
    parts = [
        f"# Sensitivity: {title}\n",
        "Written by `python -m benchmarks.sensitivity`; what is varied is said there.",
    ]
    head = ("value", "RMSE ± sd over seeds", "worst seed", "clusters left", "entropy, users / items", "fit, s")
    for group in dict.fromkeys(variant.group for variant, _ in results):
        lines = []
        for variant, rows in results:
            if variant.group == group and rows:
                rmse = values(rows, "rmse")
                seconds = statistics.fmean(values(rows, "fit_seconds").values())
                figures = (plus_minus(rmse, 4), f"{max(rmse.values()):.4f}", mean_clusters(rows), mean_entropy(rows))
                lines.append((variant.name, *figures, f"{seconds:.2f}"))
        parts += [f"\n## {group}\n", *table(head, lines)]
    lines = []
    for row in default_rows(results):
        counts = [" ".join(map(str, row["details"][f"clusters_{side}"])) for side in ("user", "item")]
        lines.append((str(row["seed"]), *counts, str(clusters_left(row))))
    parts += ["\n## Clusters left in each view, default settings\n", *table(("seed", "users", "items", "all"), lines)]
    parts += ["\n## Measured on\n", *origins(row for _, rows in results for row in rows.values())]
    return "\n".join(parts) + "\n"


def plot(results: Results, title: str, path: Path) -> None:
    """A panel for each sweep, errors over the epochs, and clusters over the epochs."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    groups = list(dict.fromkeys(variant.group for variant, _ in results))
    figure, grid = plt.subplots(3, 3, figsize=(13, 10), layout="constrained")
    for axes, group in zip(grid.flat, groups, strict=False):
        shown = [
            (variant.name, list(values(rows, "rmse").values()))
            for v in [group]
            for variant, rows in results
            if variant.group == v and rows
        ]
        means = [statistics.fmean(rmses) for _, rmses in shown]
        sds = [statistics.stdev(rmses) if len(rmses) > 1 else 0.0 for _, rmses in shown]
        axes.errorbar(range(len(shown)), means, yerr=sds, fmt="o-", color="#0072B2", capsize=3, markersize=4)
        words = any(len(name) > 8 for name, _ in shown)
        axes.set_xticks(range(len(shown)), [name for name, _ in shown], fontsize=7, rotation=20 if words else 0)
        axes.set(title=group, ylabel="validation RMSE")
    curves, clusters = grid.flat[-2], grid.flat[-1]
    colors = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
    for (variant, rows), color in zip([r for r in results if r[0].group == RATES], colors, strict=False):
        for number, row in enumerate(rows.values()):
            rmses = [epoch["rmse"] for epoch in row["details"]["epochs_log"]]
            curves.plot(
                range(1, len(rmses) + 1), rmses, color=color, linewidth=0.8, label=variant.name if not number else None
            )
    curves.set(title="learning rates, every seed", xlabel="epoch", ylabel="validation RMSE")
    curves.legend(fontsize=7, frameon=False)
    for row in default_rows(results):
        log = row["details"]["epochs_log"]
        for side, color in (("user", "#0072B2"), ("item", "#D55E00")):
            for view in range(len(log[0][side])):
                counts = [epoch[side][view] for epoch in log]
                clusters.plot(range(1, len(counts) + 1), counts, color=color, linewidth=0.6, alpha=0.5)
    clusters.set(title="clusters of every view and seed: users blue, items red", xlabel="epoch", ylabel="clusters")
    for axes in grid.flat:
        axes.grid(alpha=0.3)
        axes.title.set_fontsize(9)
    figure.supxlabel(title, fontsize=9)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
    plt.close(figure)


def main() -> None:
    """Run what is missing, write report and plot."""
    parser = parser_of(__doc__, "sensitivity")
    known = [name for name in all_models() if name.startswith("mfdmc")]
    parser.add_argument("--model", default="mfdmc", choices=known, help="whose settings the sweeps start from")
    args = parser.parse_args()
    lab = lab_of(args, "sensitivity")
    console = Console(stderr=True)
    results = run_variants("sensitivity", variants(args.model), args.dataset, [VALIDATION], args.seeds, lab, console)
    title = f"{args.model} on a validation split of {args.dataset}, {args.seeds} seeds"
    stem = lab.store.path.with_suffix("")
    if args.model != "mfdmc":
        stem = stem.with_name(f"{stem.name}_{args.model}")
    write_markdown(markdown(results, title), Path(f"{stem}.md"))
    plot(results, title, Path(f"{stem}.png"))
    console.print(f"{lab.ran} fits; wrote {stem}.md and .png", soft_wrap=True)


if __name__ == "__main__":
    main()
