"""BayesianMF beside myFM, the Gibbs sampler that its users would take otherwise: seconds and RMSE in one run.

    python -m benchmarks.bayesian_speed [--rounds 3] [--quick] [--json FILE]

MovieLens-1M, fold 1 as test (`--quick`: generated ratings); rank 20, 120 sweeps. Four models take turns in one
process: myFM, which has one thread; ours with what myFM's model has (ids alone, one noise precision), with one thread
and with two; and our defaults (implicit features, noise precisions of users and items). Whole fits are timed, from
arrays of ids and ratings to a model that can predict. Every round has another seed. Needs the extra `peers`; without
myFM its rows are missing.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.results_file import provenance, write_json
from benchmarks.suite.datasets import DATASETS
from benchmarks.suite.models import Task, model_of
from mfdmc_fast.estimator import BayesianMF
from mfdmc_fast.metrics import rmse

RANK, SWEEPS, BURN_IN = 20, 120, 20
PLAIN = {"implicit": False, "noise_degrees": 0.0}
MYFM = "myFM"


def runs(task: Task) -> dict[str, Callable[[], Any]]:
    """Name → a fit."""

    def ours(threads: int, **settings: Any) -> Callable[[], Any]:
        def fit() -> Any:
            torch.set_num_threads(threads)
            model = BayesianMF(rank=RANK, sweeps=SWEEPS, burn_in=BURN_IN, seed=task.seed, **settings)
            return model.fit(task.train, rating_scale=task.scale)

        return fit

    found = {
        "BayesianMF like myFM, 1 thread": ours(1, **PLAIN),
        "BayesianMF like myFM, 2 threads": ours(2, **PLAIN),
        "BayesianMF, 2 threads": ours(2),
    }
    myfm = model_of("myfm")
    if myfm.missing() is None:
        found[MYFM] = lambda: myfm.fit(task, {"rank": RANK, "n_iter": SWEEPS})
    return found


def measure(dataset: str, rounds: int) -> list[dict[str, Any]]:
    """Seconds and RMSE of every model in every round."""
    split, scale = DATASETS[dataset].split(0), DATASETS[dataset].scale
    rows = []
    for seed in range(rounds):
        for name, fit in runs(Task(split.train, scale, seed)).items():
            start = time.perf_counter()
            fitted = fit()
            seconds = time.perf_counter() - start
            predictions = fitted.predict(split.test.users, split.test.items).clip(*scale)
            rows.append(
                {"model": name, "seed": seed, "seconds": seconds, "rmse": rmse(predictions, split.test.ratings)}
            )
            print(f"{name:32} seed {seed}: {seconds:.2f} s, RMSE {rows[-1]['rmse']:.4f}", flush=True)
    return rows


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Medians, and how many times as fast as myFM in the same round, with extremes."""
    theirs = {row["seed"]: row["seconds"] for row in rows if row["model"] == MYFM}
    found = []
    for name in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == name]
        ratios = sorted(theirs[row["seed"]] / row["seconds"] for row in own if row["seed"] in theirs)
        found.append(
            {
                "model": name,
                "seconds": statistics.median(row["seconds"] for row in own),
                "rmse": statistics.fmean(row["rmse"] for row in own),
                "times_as_fast_as_myfm": statistics.median(ratios) if ratios else None,
                "extremes": [ratios[0], ratios[-1]] if ratios else None,
            }
        )
    return found


def main() -> None:
    """Measure, print, write down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round on generated ratings")
    parser.add_argument("--json", type=Path, help="where to write the results")
    args = parser.parse_args()
    dataset = "planted" if args.quick else "ml-1m"
    if not DATASETS[dataset].is_there():
        raise SystemExit("MovieLens-1M is not here; point MFDMC_DATA to the folder that holds ml-1m, or use --quick")
    rows = measure(dataset, 1 if args.quick else args.rounds)
    found = summary(rows)
    print()
    for row in found:
        ratio = (
            ""
            if row["extremes"] is None
            else "{:.1f} x myFM ({:.1f} to {:.1f})".format(row["times_as_fast_as_myfm"], *row["extremes"])
        )
        print(f"{row['model']:32} {row['seconds']:7.2f} s  RMSE {row['rmse']:.4f}  {ratio}")
    if args.json is not None:
        about = provenance(f"python -m benchmarks.bayesian_speed --rounds {args.rounds}")
        write_json(
            args.json, {**about, "dataset": dataset, "rank": RANK, "sweeps": SWEEPS, "models": found, "rows": rows}
        )


if __name__ == "__main__":
    main()
