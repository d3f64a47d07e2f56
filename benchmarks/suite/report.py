"""Finished rows → Markdown tables and a plot."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.suite.datasets import DATASETS
from benchmarks.suite.models import TUNED, all_models
from benchmarks.suite.statistics import Cells, Interval, mean_and_sd, paired_difference
from mfdmc_fast.files import replacing
from mfdmc_fast.tuning import RAMP_EPOCHS, Choice, Range

BASELINE = "funkmf" + TUNED
_SPACES = (
    "The first trial of every model is its defaults. The range of `weight_l2` is 0.6 to 1.5 times its default for the "
    "training ratings; shown is that for generated ratings.\n"
)
MEASURES = {"rmse": 4, "mae": 4, "ndcg": 4, "recall": 4, "fit_seconds": 2, "peak_rss_mb": 0}
TITLES = {
    "rmse": "RMSE",
    "mae": "MAE",
    "ndcg": "NDCG@10",
    "recall": "Recall@10",
    "fit_seconds": "fit, s",
    "peak_rss_mb": "peak memory, MB",
}


@dataclass
class Results:
    """The rows of one file, sorted out: what is later in the file wins.

    Attributes:
        cells: (dataset, model) → (fold, seed) → row.
        skipped: (dataset, model) → reason.
        checks: model → row of its sanity check.
    """

    cells: dict[tuple[str, str], dict[tuple[str, int], dict[str, Any]]] = field(default_factory=dict)
    skipped: dict[tuple[str, str], str] = field(default_factory=dict)
    checks: dict[str, dict[str, Any]] = field(default_factory=dict)

    def values(self, dataset: str, model: str, measure: str) -> Cells:
        """(fold, seed) → value."""
        rows = self.cells.get((dataset, model), {})
        return {key: row[measure] for key, row in rows.items() if row.get(measure) is not None}

    def datasets(self) -> list[str]:
        """In the order of the file."""
        return list(dict.fromkeys(dataset for dataset, _ in [*self.cells, *self.skipped]))

    def models(self, dataset: str) -> list[str]:
        """Those with finished cells, lowest RMSE first."""
        names = [model for d, model in self.cells if d == dataset]
        return sorted(names, key=lambda name: mean_and_sd(self.values(dataset, name, "rmse"))[0])

    def invalid(self, model: str) -> str | None:
        """Why the figures of a model do not count."""
        check = self.checks.get(model.removesuffix(TUNED))
        return (
            None
            if check is None or check.get("valid", True)
            else f"{check['rmse']:.4f} on ml-100k u1, not {check['band']}"
        )


def sort_out(rows: Iterable[dict[str, Any]]) -> Results:
    """Rows of a file as results."""
    results = Results()
    for row in rows:
        if row["kind"] == "sanity" and "error" not in row:
            results.checks[row["model"]] = row
        if row["kind"] not in ("cell", "skipped"):
            continue
        key = (row["dataset"], row["variant"])
        if row["kind"] == "skipped" or "error" in row:
            results.skipped[key] = row.get("error", row.get("reason", ""))
        else:
            results.cells.setdefault(key, {})[row["fold_name"], row["seed"]] = row
    for key in results.cells:
        results.skipped.pop(key, None)
    return results


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def number(value: float | None, digits: int) -> str:
    """A number, or a dash."""
    return "-" if value is None else f"{value:.{digits}f}"


def plus_minus(cells: Cells, digits: int) -> str:
    """Mean ± standard deviation, or a dash."""
    if not cells:
        return "-"
    mean, sd = mean_and_sd(cells)
    return number(mean, digits) if sd is None or not digits else f"{mean:.{digits}f} ± {sd:.{digits}f}"


def interval(found: Interval | None, digits: int = 4) -> str:
    """A difference with its interval and what it is over."""
    if found is None:
        return "-"
    text = f"{found.mean:+.{digits}f}"
    if found.low is not None:
        text += f" [{found.low:+.{digits}f}, {found.high:+.{digits}f}]"
    return text


def markdown(results: Results) -> str:
    """The whole report."""
    parts = [
        "# Accuracy\n",
        "Written by `python -m benchmarks.accuracy`; protocol, measures and search spaces: `benchmarks/README.md`, "
        "`benchmarks/suite/`. Means over folds (each the mean of its seeds) ± standard deviation over folds, or over "
        "seeds where there is one fold. Lower RMSE and MAE are better, higher NDCG@10 and Recall@10.\n",
        f"## MFDMC minus {BASELINE}: RMSE\n",
        "Paired differences over folds (over seeds where there is one fold) with 95 % intervals of Student's t.\n",
        *_headline(results),
    ]
    for dataset in results.datasets():
        parts += [f"\n## {dataset}\n", *_dataset(results, dataset)]
    if results.checks:
        parts += ["\n## Are the peers sound?\n", "RMSE on ml-100k's u1 with stated settings.\n", *_checks(results)]
    parts += ["\n## Settings found\n", *_settings(results), "\n## Search spaces\n", _SPACES, *_spaces(results)]
    parts += ["\n## Measured on\n", *_origins(results)]
    return "\n".join(parts) + "\n"


def _headline(results: Results) -> list[str]:
    rows = []
    for dataset in results.datasets():
        baseline = results.values(dataset, BASELINE, "rmse")
        if not baseline:
            continue
        for model in results.models(dataset):
            if model.startswith("mfdmc"):
                found = paired_difference(results.values(dataset, model, "rmse"), baseline)
                over = "-" if found is None else f"{found.n} {found.pairs}"
                rows.append((dataset, model, interval(found), over))
    return table(("dataset", "model", f"RMSE minus {BASELINE}'s", "over"), rows) if rows else ["Nothing yet."]


def _dataset(results: Results, dataset: str) -> list[str]:
    rows = []
    for model in results.models(dataset):
        folds = {fold for fold, _ in results.cells[dataset, model]}
        values = [plus_minus(results.values(dataset, model, name), digits) for name, digits in MEASURES.items()]
        name = f"~~{model}~~ (invalid)" if results.invalid(model) else model
        rows.append((name, *values, f"{len(folds)} x {len(results.cells[dataset, model]) // len(folds)}"))
    lines = table(("model", *TITLES.values(), "folds x seeds"), rows) if rows else []
    for (where, model), reason in results.skipped.items():
        if where == dataset:
            lines.append(f"\nNot run: {model}: {reason}")
    return lines


def _checks(results: Results) -> list[str]:
    rows = [
        (
            model,
            str(row["settings"] or "defaults"),
            f"{row['rmse']:.4f}",
            row["band"],
            "yes" if row.get("valid", True) else "NO",
        )
        for model, row in results.checks.items()
    ]
    return table(("peer", "settings", "RMSE", "wanted", "sound"), rows)


def _settings(results: Results) -> list[str]:
    rows = []
    for (dataset, model), cells in results.cells.items():
        row = next(iter(cells.values()))
        if model.endswith(TUNED):
            settings = ", ".join(f"{name} {value}" for name, value in row["settings"].items())
            rows.append((dataset, model, str(row["trials"]), f"{row['validation_rmse']:.4f}", settings))
    if not rows:
        return ["Nothing was tuned."]
    return table(("dataset", "model", "trials", "validation RMSE", "settings"), rows)


def _spaces(results: Results) -> list[str]:
    names = {model.removesuffix(TUNED) for _, model in results.cells if model.endswith(TUNED)}
    example = DATASETS["planted"].validation().train
    rows = [
        (model.name, name, _space(part))
        for model in all_models().values()
        if model.name in names
        for name, part in model.space(example).items()
    ]
    return table(("model", "setting", "space"), rows) if rows else ["Nothing was tuned."]


def _space(part: Range | Choice) -> str:
    if isinstance(part, Choice):
        return ", ".join(map(str, part.values))
    text = f"{part.low:.3g} … {part.high:.3g}{' (log)' * part.log}"
    return text + f", reached from 0 in {RAMP_EPOCHS} epochs" * part.ramp


def _origins(results: Results) -> list[str]:
    found: dict[tuple[Any, ...], int] = {}
    for cells in results.cells.values():
        for row in cells.values():
            commit = row["commit"] + " (changed)" * bool(row["dirty"])
            key = (commit, row["cpu"], row["threads"], row["python"])
            found[key] = found.get(key, 0) + 1
    return [
        f"- {n} cells at commit {commit or 'unknown'}, {cpu}, {threads} threads, Python {python}"
        for (commit, cpu, threads, python), n in found.items()
    ]


def write_markdown(text: str, path: Path) -> None:
    """Write a report under a temporary name and rename."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def plot(results: Results, path: Path) -> bool:
    """Draw every model's RMSE minus the baseline's, a panel for each dataset; False where there is nothing to draw."""
    datasets = [d for d in results.datasets() if results.values(d, BASELINE, "rmse")]
    if not datasets:
        return False
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = min(3, len(datasets))
    lines = -(-len(datasets) // columns)
    height = max(len(results.models(d)) for d in datasets) * 0.24 + 1.1
    figure, grid = plt.subplots(
        lines, columns, figsize=(4.8 * columns, height * lines), layout="constrained", squeeze=False
    )
    for axes in grid.flat[len(datasets) :]:
        axes.set_visible(False)
    for axes, dataset in zip(grid.flat, datasets, strict=False):
        baseline = results.values(dataset, BASELINE, "rmse")
        models = [m for m in reversed(results.models(dataset)) if not results.invalid(m)]
        for y, model in enumerate(models):
            found = paired_difference(results.values(dataset, model, "rmse"), baseline)
            if found is None:
                continue
            color = (
                "#D55E00" if model.startswith("mfdmc") else "#0072B2" if model in ("funkmf", BASELINE) else "#555555"
            )
            if found.low is not None:
                axes.plot([found.low, found.high], [y, y], color=color, linewidth=1.5)
            axes.plot([found.mean], [y], "o", color=color, markersize=5)
        axes.axvline(0, color="#999999", linewidth=0.8)
        axes.set_yticks(range(len(models)), models, fontsize=8)
        axes.set_title(f"{dataset} ({BASELINE} {mean_and_sd(baseline)[0]:.4f})", fontsize=9)
        axes.set_xlabel(f"RMSE minus {BASELINE}'s, 95 % interval", fontsize=8)
        axes.grid(alpha=0.3, axis="x")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    plt.close(figure)
    return True
