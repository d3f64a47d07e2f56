"""Fits and measures one model after the other in a process of its own: JSON lines in, JSON lines out.

`python -m benchmarks.suite.worker` reads a job from each line of standard input and writes its result as one line to
what was standard output; whatever libraries print goes to standard error. `run_job` does the same in this process.
"""

from __future__ import annotations

import gc
import json
import math
import os
import sys
import time
from functools import lru_cache, partial
from typing import Any

import numpy as np

from benchmarks.suite.datasets import DATASETS
from benchmarks.suite.models import Task, model_of
from benchmarks.suite.peers import mean_where_missing
from benchmarks.suite.ranking import ranking_measures
from mfdmc_fast.data import Split
from mfdmc_fast.estimator import BayesianMF
from mfdmc_fast.metrics import mae, rmse

VALIDATION = -1


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """Fit a model and measure it.

    Args:
        job: `dataset`, `fold` (number from 0 on, VALIDATION for the split on which settings are sought: there all
            students have one teacher, whose time and memory are then missing), `model`, `settings`, `seed`, `threads`;
            `rank` for the ranking measures; `history` for errors and clusters of every epoch.

    Returns:
        `rmse`, `mae`, `ndcg`, `recall`, `ranked_users`, `fit_seconds`, `predict_seconds`, `rss_before_mb` (the process
        with libraries and data), `peak_rss_mb` (highest while fitting), `n_train`, `n_test`, `details`.
    """
    dataset, model = DATASETS[job["dataset"]], model_of(job["model"])
    split = _split(job["dataset"], job["fold"])
    train, test = split.train, split.test
    task = Task(
        train,
        dataset.scale,
        job["seed"],
        job.get("threads", 1),
        watched=test if job.get("history") else None,
        teacher=partial(_teacher, dataset.name, job["seed"]) if job["fold"] == VALIDATION else None,
    )
    gc.collect()
    _forget_peak()
    before = _memory_mb("VmRSS")
    start = time.perf_counter()
    fitted = model.fit(task, job["settings"])
    fit_seconds = time.perf_counter() - start
    peak = _memory_mb("VmHWM")
    start = time.perf_counter()
    predictions = mean_where_missing(np.asarray(fitted.predict(test.users, test.items), dtype=np.float64), train)
    predict_seconds = time.perf_counter() - start
    predictions = np.clip(predictions, *dataset.scale)
    result: dict[str, Any] = {
        "fold_name": split.name,
        "rmse": rmse(predictions, test.ratings),
        "mae": mae(predictions, test.ratings),
        "n_train": len(train),
        "n_test": len(test),
        "fit_seconds": round(fit_seconds, 4),
        "predict_seconds": round(predict_seconds, 4),
        "rss_before_mb": before,
    }
    if not math.isfinite(result["rmse"]):
        raise ValueError("predictions are not finite")
    if job.get("rank"):
        result |= ranking_measures(fitted, train, test, dataset.relevant_from)
    details = fitted.details()
    result["peak_rss_mb"] = details.pop("peak_rss_mb", peak)
    if not job.get("history"):
        details.pop("epochs_log", None)
    return {**result, "details": details}


@lru_cache(maxsize=1)
def _split(dataset: str, fold: int) -> Split:
    return DATASETS[dataset].validation() if fold == VALIDATION else DATASETS[dataset].split(fold)


@lru_cache(maxsize=1)
def _teacher(dataset: str, seed: int) -> BayesianMF:
    """The teacher of all trials on a dataset."""
    return BayesianMF(seed=seed).fit(_split(dataset, VALIDATION).train, rating_scale=DATASETS[dataset].scale)


def _forget_peak() -> None:
    """Let the kernel count the highest memory from here on; where it does not allow that, the whole process counts."""
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
    except OSError:
        pass


def _memory_mb(field: str) -> float | None:
    """A field of /proc/self/status (unlike getrusage's, not inherited from the parent process), None elsewhere."""
    try:
        with open("/proc/self/status", encoding="ascii") as lines:
            found = next((line for line in lines if line.startswith(field)), None)
    except OSError:
        return None
    return None if found is None else round(int(found.split()[1]) / 1024, 1)


def main() -> None:
    """Serve until standard input ends."""
    results = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    import torch

    for line in sys.stdin:
        job = json.loads(line)
        torch.set_num_threads(job.get("threads", 1))
        try:
            answer = run_job(job)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        results.write(json.dumps(answer) + "\n")
        results.flush()


if __name__ == "__main__":
    main()
