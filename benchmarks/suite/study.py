"""What the ablation and the sensitivity sweeps share: named settings of one model, each run on folds and seeds once."""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.results_file import RESULTS
from benchmarks.suite.datasets import DATASETS
from benchmarks.suite.lab import Lab, Store, Worker
from benchmarks.suite.statistics import Cells


@dataclass(frozen=True)
class Variant:
    """Settings with a name, in a group that is shown together; `history` keeps errors and clusters of every epoch."""

    group: str
    name: str
    model: str
    settings: dict[str, Any] = field(default_factory=dict)
    history: bool = False


def run_variants(
    kind: str, variants: Sequence[Variant], dataset: str, folds: Iterable[int], seeds: int, lab: Lab, console: Console
) -> list[tuple[Variant, dict[tuple[str, int], dict[str, Any]]]]:
    """The rows (fold, seed) → row of every variant, those that are missing run in one process.

    A run that fails has no row in the answer; it is printed, and run again the next time.
    """
    folds = list(folds)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    found = []
    with (
        Worker(lab.threads, lab.timeout) as worker,
        Progress(*columns, console=console, disable=not console.is_terminal) as progress,
    ):
        task = progress.add_task("", total=len(variants) * len(folds) * seeds)
        for variant in variants:
            progress.update(task, description=f"{variant.group} · {variant.name}")
            rows = {}
            for fold in folds:
                for seed in range(seeds):
                    job: dict[str, Any] = {"dataset": dataset, "fold": fold, "model": variant.model, "seed": seed}
                    job |= {"settings": variant.settings} | ({"history": True} if variant.history else {})
                    row = lab.run(job, kind, worker)
                    progress.advance(task)
                    if "error" in row:
                        console.print(f"{variant.group}, {variant.name}, fold {fold}, seed {seed}: {row['error']}")
                    else:
                        rows[row["fold_name"], seed] = row
            found.append((variant, rows))
    return found


def values(rows: dict[tuple[str, int], dict[str, Any]], measure: str) -> Cells:
    """(fold, seed) → a figure of the rows."""
    return {key: row[measure] for key, row in rows.items()}


def clusters_left(row: dict[str, Any]) -> int:
    """Clusters of both sides at the end."""
    return sum(row["details"]["clusters_user"]) + sum(row["details"]["clusters_item"])


def mean_clusters(rows: dict[tuple[str, int], dict[str, Any]]) -> str:
    """Mean of the clusters left."""
    return f"{statistics.fmean(map(clusters_left, rows.values())):.0f}" if rows else "-"


def mean_entropy(rows: dict[tuple[str, int], dict[str, Any]]) -> str:
    """Mean entropies of the assignments of users and items, as shares of the greatest possible."""
    if not rows:
        return "-"
    sides = ([row["details"]["entropy"][side] for row in rows.values()] for side in ("user", "item"))
    return " / ".join(f"{statistics.fmean(side):.2f}" for side in sides)


def origins(rows: Iterable[dict[str, Any]]) -> list[str]:
    """Where rows were measured, a line for each commit and machine."""
    found: dict[tuple[Any, ...], int] = {}
    for row in rows:
        commit = row["commit"] + " (changed)" * bool(row["dirty"])
        key = (commit or "unknown", row["cpu"], row["threads"], row["python"])
        found[key] = found.get(key, 0) + 1
    return [
        f"- {n} fits at commit {commit}, {cpu}, {threads} threads, Python {python}"
        for (commit, cpu, threads, python), n in found.items()
    ]


def parser_of(description: str | None, name: str) -> argparse.ArgumentParser:
    """The options that both commands have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="ml-100k", choices=list(DATASETS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--timeout", type=float, default=3600, help="seconds for one fit")
    parser.add_argument("--source", help="accept rows from this hash of sources (see suite/lab.py)")
    parser.add_argument("--out", type=Path, help=f"file of rows; default: results/{name}.jsonl, or a temporary one")
    parser.add_argument("--quick", action="store_true", help="one seed on generated ratings, as a check of the command")
    return parser


def lab_of(args: argparse.Namespace, name: str) -> Lab:
    """The lab that the options ask for; `--quick` changes them."""
    if args.quick:
        args.dataset, args.seeds = "planted", 1
    if not DATASETS[args.dataset].is_there():
        raise SystemExit(f"{args.dataset} is not here; point MFDMC_DATA to the folder of the rating datasets")
    out = args.out or (Path(tempfile.mkdtemp()) if args.quick else RESULTS) / f"{name}.jsonl"
    command = f"python -m benchmarks.{name} --dataset {args.dataset} --seeds {args.seeds} --threads {args.threads}"
    return Lab(Store(out), args.threads, args.timeout, command, args.source)
