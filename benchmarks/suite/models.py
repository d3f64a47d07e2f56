"""The models of the accuracy suite: how each is fitted, and the space in which its settings are sought.

A name is that of a model (its default settings) or NAME-tuned (the best settings of the search on the same dataset).
MFDMC runs with its defaults, on the ratings alone, and with each preset that has a teacher. Our models' search spaces
are those of `mfdmc tune`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mfdmc_fast.config import PRESETS
from mfdmc_fast.data import Ratings, Vocabulary
from mfdmc_fast.estimator import MFDMC, BayesianMF, FunkMF, RatingEstimator
from mfdmc_fast.estimator.teachers import BAYESIAN
from mfdmc_fast.tuning import Range, Space, space_for

TUNED = "-tuned"
Scores = npt.NDArray[np.floating[Any]]

# MFDMC with views that are added up
SUM: dict[str, Any] = {"combine": "sum", "n_views": 4, "view_dim": 16, "center_scale": 0.5}


class Fitted(Protocol):
    """A fitted model, whoever made it."""

    def predict(self, users: npt.NDArray[Any], items: npt.NDArray[Any]) -> Scores:
        """[N] predicted ratings of pairs of raw ids, known or not."""

    def scores(self, users: npt.NDArray[Any]) -> Scores:
        """[U, n_items] by which the items of the training ratings, in ascending order of their ids, are ranked."""

    def details(self) -> dict[str, Any]:
        """What else is worth writing down, as plain values; `peak_rss_mb` where this process's memory is not it."""


@dataclass(frozen=True)
class Task:
    """What a model is fitted on.

    Attributes:
        train, scale, seed, threads: ratings, their scale, a seed, threads it may use.
        watched: ratings to watch while it trains.
        teacher: gives a Bayesian teacher fitted on these ratings; None: every student has its own.
    """

    train: Ratings
    scale: tuple[float, float]
    seed: int
    threads: int = 1
    watched: Ratings | None = None
    teacher: Callable[[], BayesianMF] | None = None


@dataclass(frozen=True)
class Sanity:
    """Settings whose RMSE on ml-100k's u1 is known, and how far off a sound installation may be."""

    settings: dict[str, Any]
    rmse: float
    tolerance: float
    source: str


@dataclass(frozen=True)
class Model:
    """One model.

    Attributes:
        name: without `-tuned`.
        fit: task and settings → fitted model.
        space: training ratings → what is tuned.
        packages: whose versions its results depend on.
        own: whether its results depend on the sources of this repository.
        missing: why it cannot run here, or None.
        small_only: too slow for large datasets.
        sanity: for peers.
    """

    name: str
    fit: Callable[[Task, dict[str, Any]], Fitted]
    space: Callable[[Ratings], Space]
    packages: tuple[str, ...] = ("torch", "numpy")
    own: bool = True
    missing: Callable[[], str | None] = field(default=lambda: None)
    small_only: bool = False
    sanity: Sanity | None = None


class _Own:
    """A fitted estimator of this project."""

    def __init__(self, estimator: RatingEstimator) -> None:
        self.estimator = estimator

    def predict(self, users: npt.NDArray[Any], items: npt.NDArray[Any]) -> Scores:
        predictions: Scores = self.estimator.predict(users, items)
        return predictions

    def scores(self, users: npt.NDArray[Any]) -> Scores:
        model, rows = self.estimator.model_, self.estimator.users_.encode(users)
        scores: Scores = (model.embeddings("user")[rows] @ model.embeddings("item").T).numpy() + model.global_mean
        for bias, index in ((model.bias("user"), (rows, None)), (model.bias("item"), (None, slice(None)))):
            if bias is not None:
                scores += bias.numpy()[index]
        return scores

    def details(self) -> dict[str, Any]:
        history = self.estimator.history_
        found: dict[str, Any] = {"epochs": len(history.epochs), "backend": history.backend}
        if isinstance(self.estimator, MFDMC):
            clusters = {side: self.estimator.model_.clusters(side) for side in ("user", "item")}
            found |= {f"clusters_{side}": counts for side, counts in clusters.items()}
            found["entropy"] = {side: self._entropy(side) for side in ("user", "item")}
            found["epochs_log"] = [
                {"rmse": r.valid_rmse, "user": r.clusters_user, "item": r.clusters_item} for r in history.epochs
            ]
        return found

    def _entropy(self, side: Any) -> float:
        """Mean entropy of the assignments over entities and views, as a share of the greatest possible; 0 is sharp."""
        per_view = []
        for weights in self.estimator.memberships(side):  # type: ignore[attr-defined]
            if weights.shape[1] > 1:
                logs = np.log(np.maximum(weights, 1e-30))
                per_view.append(float(-(weights * logs).sum(1).mean() / np.log(weights.shape[1])))
        return float(np.mean(per_view)) if per_view else 0.0


def _own(kind: type[RatingEstimator], **fixed: Any) -> Callable[[Task, dict[str, Any]], Fitted]:
    def fit(task: Task, settings: dict[str, Any]) -> Fitted:
        estimator = kind(**{**fixed, **settings}, seed=task.seed)
        if task.teacher is not None and getattr(estimator, "teacher", None) == BAYESIAN:
            estimator.set_params(teacher=task.teacher())
        return _Own(estimator.fit(task.train, rating_scale=task.scale, validation=task.watched))

    return fit


class Biases:
    """Global mean, item and user biases by alternating ridge regression, ten rounds: the least a model must beat."""

    def __init__(self, train: Ratings, item_shrink: float, user_shrink: float) -> None:
        self._users, self._items = (Vocabulary.from_values(ids) for ids in (train.users, train.items))
        rows = (self._users.encode(train.users), self._items.encode(train.items))
        self._mean = float(train.ratings.mean())
        self._biases = [np.zeros(len(self._users) + 1), np.zeros(len(self._items) + 1)]  # the last: unknown
        shrinks = (user_shrink, item_shrink)
        counts = [np.bincount(r, minlength=len(b)) for r, b in zip(rows, self._biases, strict=True)]
        for _ in range(10):
            for side in (1, 0):
                rest = train.ratings - self._mean - self._biases[1 - side][rows[1 - side]]
                sums = np.bincount(rows[side], weights=rest, minlength=len(counts[side]))
                self._biases[side] = sums / np.maximum(counts[side] + shrinks[side], 1e-9)

    def predict(self, users: npt.NDArray[Any], items: npt.NDArray[Any]) -> Scores:
        of_users, of_items = self._biases
        predictions: Scores = self._mean + of_users[self._users.encode(users)] + of_items[self._items.encode(items)]
        return predictions

    def scores(self, users: npt.NDArray[Any]) -> Scores:
        scores: Scores = self._mean + self._biases[0][self._users.encode(users), None] + self._biases[1][None, :-1]
        return scores

    def details(self) -> dict[str, Any]:
        return {}


def _fit_biases(task: Task, settings: dict[str, Any]) -> Fitted:
    return Biases(task.train, settings.get("item_shrink", 10.0), settings.get("user_shrink", 15.0))


def _own_model(name: str, kind: type[RatingEstimator], **fixed: Any) -> Model:
    return Model(name, _own(kind, **fixed), lambda train: space_for(kind, fixed, train))


OWN_MODELS: tuple[Model, ...] = (
    Model(
        "biases",
        _fit_biases,
        lambda _: {"item_shrink": Range(0.1, 100), "user_shrink": Range(0.1, 100)},
        packages=("numpy",),
    ),
    _own_model("funkmf", FunkMF),
    _own_model("mfdmc", MFDMC),
    *(_own_model(f"mfdmc-{name}", MFDMC, **settings) for name, settings in PRESETS.items() if "teacher" in settings),
    _own_model("bayesian", BayesianMF),
)
# further bases of the ablation
SUM_MODELS: tuple[Model, ...] = (
    _own_model("mfdmc-sum", MFDMC, **SUM),
    _own_model("mfdmc-balanced-sum", MFDMC, **{**PRESETS["balanced"], **SUM}),
)


def all_models() -> dict[str, Model]:
    """Ours and the peers, by name."""
    from benchmarks.suite.peers import PEERS

    return {model.name: model for model in (*OWN_MODELS, *SUM_MODELS, *PEERS)}


def model_of(variant: str) -> Model:
    """The model of a name with or without `-tuned`."""
    models, name = all_models(), variant.removesuffix(TUNED)
    if name not in models:
        raise SystemExit(f"unknown model {variant!r}; known are, each also with {TUNED}: {', '.join(models)}")
    return models[name]
