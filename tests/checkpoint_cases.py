"""Runs with checkpoints that the tests of them share: models, what ends a run, and what a run comes to."""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mfdmc_fast import MFDMC, BayesianMF, FunkMF
from mfdmc_fast.data import Ratings, make_planted_ratings
from mfdmc_fast.errors import ClustersCollapsed
from mfdmc_fast.estimator import RatingEstimator
from mfdmc_fast.tensor_files import read_tensors
from mfdmc_fast.training import Callback, EpochRecord

# clusters of users and items go, from epoch 3 on
MFDMC_SETTINGS: dict[str, Any] = {
    "n_views": 3,
    "n_clusters": 5,
    "epochs": 12,
    "prune_start": 3,
    "prune_threshold": 0.15,
    "learning_rate": 0.1,
    "backend": "cpu",
}
BEST = {"validation_fraction": 0.1, "keep": "best"}
QUICK_TEACHER = BayesianMF(rank=3, sweeps=6, burn_in=2)
MODELS: dict[str, Callable[[], RatingEstimator]] = {
    "cpu": lambda: MFDMC(**MFDMC_SETTINGS),
    "reference": lambda: MFDMC(**MFDMC_SETTINGS | {"backend": "reference"}),
    "adagrad": lambda: MFDMC(**MFDMC_SETTINGS, optimizer="adagrad"),
    "adagrad-reference": lambda: MFDMC(**MFDMC_SETTINGS | {"backend": "reference"}, optimizer="adagrad"),
    "best": lambda: MFDMC(**MFDMC_SETTINGS | {"learning_rate": 0.5}, **BEST, weight_l2=0.0),
    "patience": lambda: MFDMC(**MFDMC_SETTINGS | {"learning_rate": 0.5}, **BEST, patience=2),
    "funkmf": lambda: FunkMF(n_factors=4, epochs=8, backend="cpu"),
    "funkmf-reference": lambda: FunkMF(n_factors=4, epochs=8, backend="reference"),
    "long": lambda: MFDMC(**MFDMC_SETTINGS | {"epochs": 24}, **BEST),
    "taught": lambda: MFDMC(**MFDMC_SETTINGS, teacher=QUICK_TEACHER),
}


def planted() -> Ratings:
    return make_planted_ratings(40, 40, 700, seed=1)


class Ended(Exception):
    """What ends a run in the middle."""


class Listener(Callback):
    """Remembers what it is told, and ends a run after an epoch."""

    def __init__(self, end_after: int | None = None) -> None:
        self.end_after = end_after
        self.sweeps = 0
        self.epochs: list[int] = []
        self.resumed: list[tuple[int, str]] = []

    def on_teacher_sweep(self, sweep: int, sweeps: int) -> None:
        self.sweeps += 1

    def on_resume(self, epoch: int, source: str) -> None:
        self.resumed.append((epoch, Path(source).name))

    def on_epoch_end(self, record: EpochRecord, model: Any) -> None:
        self.epochs.append(record.epoch)
        if record.epoch == self.end_after:
            raise Ended


def fit(model: str, folder: Path | None, listener: Listener | None = None, **options: Any) -> RatingEstimator:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ClustersCollapsed)
        options = {"checkpoint_every": 1, "resume": True} | options if folder else options
        callbacks = [listener] if listener else []
        return MODELS[model]().fit(planted(), checkpoint_dir=folder, callbacks=callbacks, **options)


def result(model: RatingEstimator) -> tuple[list[bytes], dict[str, Any]]:
    """Every bit of the parameters, and what is remembered but the seconds."""
    history = model.history_.to_dict()
    for record in [history, *history["epochs"]]:
        for name in ("seconds", "teacher_seconds"):
            record.pop(name, None)
    sides = model.model_.prunable_sides().items()
    history["cluster_ids"] = {name: side.cluster_ids for name, side in sides}
    return [p.detach().numpy().tobytes() for p in model.model_.parameters()], history


@functools.cache
def undisturbed(model: str) -> tuple[list[bytes], dict[str, Any]]:
    """The result of a run that nothing ended."""
    return result(fit(model, None))


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor], dict[str, Any]]:
    metadata, tensors = read_tensors(path, sealed=True)
    header = json.loads(metadata["mfdmc_fast_checkpoint"])
    return header["identity"], tensors, header["state"]
