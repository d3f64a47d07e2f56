"""The models of the accuracy suite: how each is fitted, its defaults, and the space in which its settings are sought.

A name is that of a model (its default settings) or NAME-tuned (the best settings of the search on the same dataset).
Epochs of our models are fixed. `l2_pull` stands for `weight_l2` in units that mean the same on sparse and on dense
data: weight_l2 = l2_pull / mean ratings of a user or item, as in the defaults. `weight_entropy_to` and
`weight_proximity_to` are where these weights arrive after 30 epochs; they start at 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from benchmarks.suite.search import Choice, Range, Space
from mfdmc_fast.data import Ratings, Vocabulary
from mfdmc_fast.estimator import MFDMC, BayesianMF, FunkMF, RatingEstimator

TUNED = "-tuned"
Scores = npt.NDArray[np.floating[Any]]

# what the variants of MFDMC are, in this one place
SUM = {"combine": "sum", "n_views": 4, "view_dim": 16, "center_scale": 0.5}
_TAUGHT = {
    "teacher": "bayesian",
    "center_scale": 0.6,
    "logit_scale": 0.3,
    "learning_rate": 0.1,
    "learning_rate_centers": 0.03,
    "learning_rate_biases": 0.02,
    "weight_spread": 0.05,
    "spread_margin": 1.0,
    "weight_bias_l2": 0.0,
}
TAUGHT = {**_TAUGHT, "weight_entropy": "0:0.005:30", "weight_proximity": "0:0.0025:30"}
TAUGHT_ACCURATE = {**_TAUGHT, "weight_entropy": 0.0, "weight_proximity": 0.0}


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
    """What a model is fitted on: ratings, their scale, a seed, threads, and ratings to watch while it trains."""

    train: Ratings
    scale: tuple[float, float]
    seed: int
    threads: int = 1
    watched: Ratings | None = None


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
        space: what is tuned.
        packages: whose versions its results depend on.
        own: whether its results depend on the sources of this repository.
        missing: why it cannot run here, or None.
        small_only: too slow for large datasets.
        sanity: for peers.
    """

    name: str
    fit: Callable[[Task, dict[str, Any]], Fitted]
    space: Space
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
        estimator = kind(**own_settings({**fixed, **settings}, task.train), seed=task.seed)
        return _Own(estimator.fit(task.train, rating_scale=task.scale, validation=task.watched))

    return fit


def own_settings(settings: dict[str, Any], train: Ratings) -> dict[str, Any]:
    """The settings of an estimator: `l2_pull` and the ends of ramps in its own terms."""
    settings = dict(settings)
    if (pull := settings.pop("l2_pull", None)) is not None:
        n_entities = sum(len(Vocabulary.from_values(ids)) for ids in (train.users, train.items))
        settings["weight_l2"] = pull * n_entities / (2 * len(train))
    for name in ("weight_proximity", "weight_entropy"):
        if (end := settings.pop(f"{name}_to", None)) is not None:
            settings[name] = f"0:{end:g}:30"
    return settings


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


_FUNKMF_SPACE: Space = {
    "n_factors": Choice((16, 32, 64, 128), 128),
    "factor_scale": Range(0.001, 0.3, 0.0028, log=True),
    "learning_rate": Range(0.0005, 0.03, 0.0016, log=True),
    "learning_rate_biases": Range(0.003, 0.06, 0.023, log=True),
    "l2_pull": Range(1.0, 15.0, 4.5, log=True),
    "weight_bias_l2": Range(0.001, 0.1, 0.018, log=True),
}


def _mfdmc_space(**changed: Range | Choice) -> Space:
    space: dict[str, Range | Choice] = {
        "n_views": Choice((4, 8, 16), 8),
        "view_dim": Choice((4, 8), 4),
        "center_scale": Range(0.3, 1.4, 1.09),
        "logit_scale": Range(0.05, 1.2, 0.12, log=True),
        "learning_rate": Range(0.015, 0.2, 0.03, log=True),
        "learning_rate_centers": Range(0.003, 0.06, 0.0094, log=True),
        "learning_rate_biases": Range(0.004, 0.04, 0.0075, log=True),
        "spread_margin": Range(0.2, 1.5, 0.77),
        "weight_spread": Range(0.01, 0.2, 0.025, log=True),
        "weight_proximity_to": Range(0.003, 0.05, 0.0255, log=True),
        "weight_entropy_to": Range(0.01, 0.3, 0.094, log=True),
        "l2_pull": Range(2.0, 24.0, 8.0, log=True),
        "weight_bias_l2": Range(0.001, 0.1, 0.015, log=True),
    }
    return {name: part for name, part in (space | changed).items() if part is not _LEFT_OUT}


_LEFT_OUT = Choice((), None)
# a teacher leaves little for L2 to do, and small weights are worth seeking on their own scale
_TAUGHT_CHANGES: dict[str, Range | Choice] = {
    "center_scale": Range(0.3, 1.4, 0.6),
    "logit_scale": Range(0.05, 1.2, 0.3, log=True),
    "learning_rate": Range(0.015, 0.2, 0.1, log=True),
    "learning_rate_centers": Range(0.003, 0.06, 0.03, log=True),
    "learning_rate_biases": Range(0.004, 0.04, 0.02, log=True),
    "spread_margin": Range(0.2, 1.5, 1.0),
    "weight_spread": Range(0.01, 0.2, 0.05, log=True),
    "weight_proximity_to": Range(0.0005, 0.05, 0.0025, log=True),
    "weight_entropy_to": Range(0.001, 0.1, 0.005, log=True),
    "l2_pull": Range(0.0, 2.0, 0.0),
    "weight_bias_l2": _LEFT_OUT,
}
_SUM_CHANGES: dict[str, Range | Choice] = {
    "n_views": Choice((2, 4, 6, 8), 4),
    "view_dim": Choice((8, 16, 32), 16),
}
_BAYESIAN_SPACE: Space = {
    "rank": Choice((8, 16, 24, 32), 16),
    "implicit": Choice((True, False), True),
    "sweeps": Choice((200, 400), 400),
}

OWN_MODELS: tuple[Model, ...] = (
    Model(
        "biases",
        _fit_biases,
        {"item_shrink": Range(0.1, 100, 10, log=True), "user_shrink": Range(0.1, 100, 15, log=True)},
        packages=("numpy",),
    ),
    Model("funkmf", _own(FunkMF), _FUNKMF_SPACE),
    Model("mfdmc", _own(MFDMC), _mfdmc_space()),
    Model(
        "mfdmc-sum", _own(MFDMC, **SUM), _mfdmc_space(**_SUM_CHANGES, center_scale=Range(0.2, 1.2, SUM["center_scale"]))
    ),
    Model("mfdmc-taught", _own(MFDMC, **TAUGHT), _mfdmc_space(**_TAUGHT_CHANGES)),
    Model(
        "mfdmc-taught-accurate",
        _own(MFDMC, **TAUGHT_ACCURATE),
        _mfdmc_space(**{**_TAUGHT_CHANGES, **dict.fromkeys(("weight_proximity_to", "weight_entropy_to"), _LEFT_OUT)}),
    ),
    Model(
        "mfdmc-taught-sum",
        _own(MFDMC, **{**TAUGHT, **SUM}),
        _mfdmc_space(**{**_TAUGHT_CHANGES, **_SUM_CHANGES, "center_scale": Range(0.2, 1.2, SUM["center_scale"])}),
    ),
    Model("bayesian", _own(BayesianMF), _BAYESIAN_SPACE),
)


def all_models() -> dict[str, Model]:
    """Ours and the peers, by name."""
    from benchmarks.suite.peers import PEERS

    return {model.name: model for model in (*OWN_MODELS, *PEERS)}


def model_of(variant: str) -> Model:
    """The model of a name with or without `-tuned`."""
    models, name = all_models(), variant.removesuffix(TUNED)
    if name not in models:
        raise SystemExit(f"unknown model {variant!r}; known are, each also with {TUNED}: {', '.join(models)}")
    return models[name]
