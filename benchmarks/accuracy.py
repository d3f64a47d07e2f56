"""Accuracy of MFDMC, its baselines and its peers, all tuned alike: the suite behind the project's accuracy claims.

    python -m benchmarks.accuracy --datasets ml-100k,filmtrust --models all --trials 30 --seeds 3
    python -m benchmarks.accuracy --quick
    python -m benchmarks.accuracy --datasets ml-100k --models own --repeat
    python -m benchmarks.accuracy --render

Protocol. Every model NAME runs with its default settings, NAME-tuned with the best of `--trials` settings that
Optuna's TPE sampler (seeded; the first trial is the defaults) proposes from the model's search space (`models.py` and
`peers.py` in `benchmarks/suite/`). Trials are judged by RMSE on a tenth of the TRAINING part of the first fold, held
out with a fixed seed; test ratings decide nothing. Then every fold, and every seed, is trained on its whole training
part and measured once, at its last epoch. The one compromise: folds other than the first are tested with settings that
were sought on ratings of which some are in their test part; that is so for all models alike.

Measures: RMSE and MAE of predictions clipped to the rating scale, for every model; NDCG@10 and Recall@10 as
`benchmarks/suite/ranking.py` defines them; wall seconds of the fit, from arrays of ids and ratings to a model that can
predict; the highest memory of the process while fitting. Every cell has a process of its own, so that memory is its own
and a crash is nobody else's. The headline is the paired difference to tuned FunkMF, with Student's 95 % interval.

Results are appended to `--out`, one line a cell; the same command carries on where it was stopped. Beside it go a
Markdown report and a plot of the same name. Needs the extra `benchmarks`, and `peers` for the peers.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.results_file import RESULTS
from benchmarks.suite.datasets import DATASETS, Dataset
from benchmarks.suite.lab import Lab, Store, Worker
from benchmarks.suite.models import OWN_MODELS, TUNED, Model, all_models, model_of
from benchmarks.suite.report import markdown, plot, sort_out, write_markdown
from benchmarks.suite.worker import VALIDATION
from mfdmc_fast.tuning import search

SEARCH_SEED = 0
Trials = list[tuple[dict[str, Any], float]]
QUICK_MODELS = ("biases", "funkmf", "funkmf-tuned", "mfdmc", "mfdmc-tuned", "mfdmc-accurate", "bayesian")


@dataclass(frozen=True)
class Plan:
    """What to run.

    Attributes:
        datasets, models: names; models with or without `-tuned`.
        trials: settings tried for each tuned model.
        seeds: runs of every fold, with seeds 0, 1, …
        all_folds: all folds of each dataset, where not all of them are run by default.
        at_most: so many folds of each dataset, the first ones.
    """

    datasets: tuple[str, ...]
    models: tuple[str, ...]
    trials: int
    seeds: int
    all_folds: bool = False
    at_most: int | None = None

    def folds(self, dataset: Dataset) -> range:
        """Numbers of the folds to run."""
        wanted = dataset.folds if self.all_folds else dataset.default_folds
        return range(wanted if self.at_most is None else min(wanted, self.at_most))

    def why_not(self, dataset: Dataset, model: Model) -> str | None:
        """Why a model is not run on a dataset."""
        if model.small_only and not dataset.small:
            return "too slow for this dataset"
        return model.missing()


def tune(lab: Lab, dataset: Dataset, model: Model, trials: int, on_trial: Callable[[], None]) -> Trials:
    """Seek settings of a model, best first; trials that rows hold are not run again, and failed ones left out."""
    numbers = itertools.count()
    with Worker(lab.threads, lab.timeout) as worker:

        def evaluate(settings: dict[str, Any]) -> float | None:
            job = {"dataset": dataset.name, "fold": VALIDATION, "model": model.name, "settings": settings, "seed": 0}
            row = lab.run(job, "trial", worker, trial=next(numbers))
            on_trial()
            return row.get("rmse")

        done = search(model.space(dataset.validation().train), trials, SEARCH_SEED, evaluate)
    good = [(settings, value) for settings, value in done if value is not None and math.isfinite(value)]
    return sorted(good, key=lambda trial: trial[1])


def check_peer(lab: Lab, model: Model) -> None:
    """Run what is known of a peer on u1 and write down whether the installation reaches it."""
    if model.sanity is None or not DATASETS["ml-100k"].is_there():
        return
    low, high = (model.sanity.rmse + sign * model.sanity.tolerance for sign in (-1, 1))
    job = {"dataset": "ml-100k", "fold": 0, "model": model.name, "settings": model.sanity.settings, "seed": 0}
    row = lab.run(job, "sanity", band=f"{low:.4f} … {high:.4f}", known_from=model.sanity.source)
    if "valid" not in row and "rmse" in row:
        lab.store.add({**row, "valid": low <= row["rmse"] <= high})


def run_plan(plan: Plan, lab: Lab, console: Console) -> None:
    """Run every cell that no row holds."""
    variants = {name: model_of(name) for name in plan.models}
    pairs = [(DATASETS[d], name, model) for d in plan.datasets for name, model in variants.items()]
    cells = sum(len(plan.folds(dataset)) * plan.seeds for dataset, _, _ in pairs)
    trials = plan.trials * sum(name.endswith(TUNED) for _, name, _ in pairs)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    checked: set[str] = set()
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=cells + trials)

        def advance(by: int = 1) -> None:
            progress.advance(task, by)

        for dataset, name, model in pairs:
            progress.update(task, description=f"{dataset.name} · {name}")
            n_cells = len(plan.folds(dataset)) * plan.seeds
            reason = plan.why_not(dataset, model)
            if reason is not None:
                say(console, f"{dataset.name:18} {name:24} skipped: {reason}")
                note = {"kind": "skipped", "dataset": dataset.name, "variant": name, "reason": reason}
                if not any(note.items() <= row.items() for row in lab.store.rows):
                    lab.store.add({**note, "key": f"skipped {dataset.name} {name}"})
                advance(n_cells + plan.trials * name.endswith(TUNED))
                continue
            if model.name not in checked:
                check_peer(lab, model)
                checked.add(model.name)
            settings: dict[str, Any] = {}
            why: dict[str, Any] = {"variant": name}
            if name.endswith(TUNED):
                found = tune(lab, dataset, model, plan.trials, advance)
                if not found:
                    say(console, f"{dataset.name:18} {name:24} every trial failed")
                    advance(n_cells)
                    continue
                settings, value = found[0]
                why |= {"trials": plan.trials, "search_seed": SEARCH_SEED, "validation_rmse": value}
            for fold in plan.folds(dataset):
                for seed in range(plan.seeds):
                    job = {"dataset": dataset.name, "fold": fold, "model": model.name, "settings": settings}
                    before = lab.ran
                    row = lab.run({**job, "seed": seed, "rank": True}, "cell", **why)
                    advance()
                    if lab.ran > before:
                        say(console, f"{dataset.name:18} {name:24} {_describe(row)}")


def say(console: Console, line: str) -> None:
    """Print a line as it is, however long."""
    console.print(line, soft_wrap=True, highlight=False, markup=False)


def _describe(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"fold {row['fold']} seed {row['seed']}: {row['error']}"
    ndcg = "-" if row["ndcg"] is None else f"{row['ndcg']:.4f}"
    return (
        f"{row['fold_name']} seed {row['seed']}: RMSE {row['rmse']:.4f} MAE {row['mae']:.4f} NDCG@10 {ndcg} "
        f"{row['fit_seconds']:.2f} s {row['peak_rss_mb'] or 0:.0f} MB"
    )


def render(store: Store, console: Console) -> None:
    """Write the report and the plot beside the rows."""
    results = sort_out(store.rows)
    report = store.path.with_suffix(".md")
    write_markdown(markdown(results), report)
    written = [str(report)]
    try:
        if plot(results, store.path.with_suffix(".png")):
            written.append(str(store.path.with_suffix(".png")))
    except ImportError as error:
        say(console, f"no plot: {error}")
    say(console, f"wrote {', '.join(written)}")


def repeat(plan: Plan, lab: Lab, console: Console, limit: int | None = None) -> int:
    """Run finished cells of our models again and compare every figure but time and memory; how many there were.

    Raises:
        SystemExit: no cell, or one that gives other figures.
    """
    of_ours = {name for name in plan.models if model_of(name).own}
    cells = [r for r in lab.store.rows if r["kind"] == "cell" and "error" not in r]
    cells = [r for r in cells if r["dataset"] in plan.datasets and r["variant"] in of_ours][:limit]
    if not cells:
        raise SystemExit("there is no finished cell of our models")
    for first in cells:
        job = {name: first[name] for name in ("dataset", "fold", "model", "settings", "seed", "rank")}
        with Worker(lab.threads, lab.timeout) as worker:
            second = worker.run({**job, "threads": lab.threads})
        what = f"{first['dataset']} {first['variant']} {first['fold_name']} seed {first['seed']}"
        for name in ("rmse", "mae", "ndcg", "recall"):
            if first[name] != second.get(name):
                raise SystemExit(f"{what}: {name} was {first[name]} and is {second.get(name, second)} when run again")
        say(console, f"{what}: RMSE {second['rmse']!r} again")
    return len(cells)


def check_repeats(plan: Plan, lab: Lab, console: Console) -> None:
    """For `--quick`: nothing is left to run, nothing failed, and a cell that is run again gives the same figures."""
    again = Lab(Store(lab.store.path), lab.threads, lab.timeout, "check")
    run_plan(plan, again, console)
    if again.ran:
        raise SystemExit(f"{again.ran} finished cells were run again")
    if any("error" in row for row in again.store.rows):
        raise SystemExit("there are failed cells")
    repeat(plan, again, console, limit=1)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", default="ml-100k", help=f"names with commas, or all: {', '.join(DATASETS)}")
    parser.add_argument("--models", default="all", help="names with commas, all, or own; NAME or NAME-tuned")
    parser.add_argument("--trials", type=int, default=30, help="settings tried for each tuned model")
    parser.add_argument("--seeds", type=int, default=1, help="runs of every fold")
    parser.add_argument("--all-folds", action="store_true", help="also folds that are not run by default (ml-1m)")
    parser.add_argument("--folds", type=int, help="so many folds of every dataset at most, the first ones")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="that every model may use")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds for one fit and its measures")
    parser.add_argument("--source", help="accept rows of our models from this hash of sources (see lab.py)")
    parser.add_argument("--out", type=Path, help="file of rows; default: results/accuracy.jsonl, or a temporary one")
    parser.add_argument(
        "--quick", action="store_true", help="small data, few trials, our models, and a check of it all"
    )
    parser.add_argument("--repeat", action="store_true", help="run finished cells of ours again and compare figures")
    parser.add_argument("--render", action="store_true", help="write report and plot of what is there, run nothing")
    return parser.parse_args(arguments)


def plan_of(args: argparse.Namespace) -> Plan:
    """What the command line asks for."""
    if args.quick:
        datasets = [name for name in ("filmtrust", "ml-100k") if DATASETS[name].is_there()] or ["planted"]
        return Plan(tuple(datasets), QUICK_MODELS, 3, 1, at_most=1)
    known = list(all_models())
    groups = {"all": known, "own": [model.name for model in OWN_MODELS]}
    names = groups.get(args.models)
    models = [n + end for n in names for end in ("", TUNED)] if names else args.models.split(",")
    for name in models:
        model_of(name)
    present = [name for name in DATASETS if name != "planted" and DATASETS[name].is_there()]
    datasets = present if args.datasets == "all" else args.datasets.split(",")
    for name in datasets:
        if name not in DATASETS:
            raise SystemExit(f"unknown dataset {name!r}; known are: {', '.join(DATASETS)}")
        if not DATASETS[name].is_there():
            raise SystemExit(f"{name} is not here; point MFDMC_DATA to the folder that holds {DATASETS[name].needs}")
    return Plan(tuple(datasets), tuple(models), args.trials, args.seeds, args.all_folds, args.folds)


def main() -> None:
    """Run the plan and render what there is."""
    args = parse()
    console = Console(stderr=True)
    out = args.out or (Path(tempfile.mkdtemp()) / "accuracy.jsonl" if args.quick else RESULTS / "accuracy.jsonl")
    store = Store(out)
    if not args.render:
        plan = plan_of(args)
        command = f"python -m benchmarks.accuracy --trials {plan.trials} --seeds {plan.seeds} --threads {args.threads}"
        lab = Lab(store, args.threads, args.timeout, command, args.source)
        if args.repeat:
            say(console, f"{repeat(plan, lab, console)} cells gave the same figures again")
            return
        run_plan(plan, lab, console)
        if args.quick:
            check_repeats(plan, lab, console)
    render(store, console)


if __name__ == "__main__":
    main()
