"""The numbers behind the pictures of a report, for the page and for matplotlib alike."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from mfdmc_fast import metrics
from mfdmc_fast.data import Features, RatingsDataset, read_ratings
from mfdmc_fast.errors import ConfigError
from mfdmc_fast.estimator import MFDMC, RatingEstimator
from mfdmc_fast.history import TrainingHistory
from mfdmc_fast.interpret.affinity import usages
from mfdmc_fast.interpret.cards import LIFT_PRIOR, MIN_COUNT, label_counts, side_labels
from mfdmc_fast.model import SideName
from mfdmc_fast.scoring import predict_rows

_Floats = npt.NDArray[np.float64]

# groups of equally many test ratings: by prediction, and by how active users or items are
_N_GROUPS = 10
_N_ACTIVITY_GROUPS = 5


def loss_curves(history: TrainingHistory) -> dict[str, list[float]]:
    """Every loss term over the epochs, and the validation RMSE if there is one; terms that stay 0 are left out."""
    terms = list(history.epochs[0].loss) if history.epochs else []
    curves = {term: [record.loss[term] for record in history.epochs] for term in terms}
    curves = {term: values for term, values in curves.items() if any(values)}
    validated = [record.valid_rmse for record in history.epochs]
    if all(rmse is not None for rmse in validated) and validated:
        curves["validation RMSE"] = [float(rmse or 0.0) for rmse in validated]
    return curves


def cluster_counts(history: TrainingHistory, side: SideName) -> npt.NDArray[np.int64]:
    """[epochs, V] active clusters of each view of a side after each epoch."""
    return np.array([getattr(record, f"clusters_{side}") or [] for record in history.epochs], dtype=np.int64)


def usage_grid(model: MFDMC, side: SideName) -> _Floats:
    """[V, K] mean membership by view and original number of the cluster, NaN where it was pruned."""
    module = fitted_mfdmc(model).model_.prunable_sides()[side]
    grid = np.full((model.n_views, model.n_clusters), np.nan)
    for view, (ids, usage) in enumerate(zip(module.cluster_ids, usages(module), strict=True)):
        grid[view, list(ids)] = usage
    return grid


def sharpness(model: MFDMC, side: SideName) -> _Floats:
    """[V] mean over the entities of H(w) / ln K_v, in [0, 1]; 0 where one cluster is left."""
    found = []
    for weights in model.memberships(side):
        positive = np.where(weights > 0, weights, 1.0).astype(np.float64)
        entropy = float(-(positive * np.log(positive)).sum(1).mean())
        found.append(entropy / np.log(weights.shape[1]) if weights.shape[1] > 1 else 0.0)
    return np.array(found)


class Map(NamedTuple):
    """Entities and centers of one view, projected on the two directions in which the entities vary most.

    Attributes:
        rows: [n] of the entities: those with the most training ratings.
        points: [n, 2] Σ_k w_k c_k of each, projected.
        heaviest: [n] position of the cluster with the largest membership.
        centers: [K, 2] the centers, projected the same way.
        share: of the entities' variance that the two directions hold, in [0, 1].
    """

    rows: npt.NDArray[np.int64]
    points: _Floats
    heaviest: npt.NDArray[np.int64]
    centers: _Floats
    share: float


def view_map(model: MFDMC, side: SideName, view: int, *, n: int = 1000) -> Map:
    """A map of a view by principal components of the entities' roles (singular vectors of the centered matrix)."""
    module = fitted_mfdmc(model).model_.prunable_sides()[side]
    start = sum(module.n_clusters[:view])
    centers = module.centers.detach()[start : start + module.n_clusters[view]].double().cpu().numpy()
    rows = np.sort(np.argsort(-activity(model, side), kind="stable")[:n])
    columns = slice(start, start + module.n_clusters[view])
    weights = module.assignment_logits.detach()[torch.from_numpy(rows), columns].double().softmax(1).cpu().numpy()
    roles = weights @ centers
    middle = roles.mean(0)
    _, singular, directions = np.linalg.svd(roles - middle, full_matrices=False)
    # the sign of a direction is arbitrary: its largest number is made positive
    directions *= np.sign(directions[np.arange(len(directions)), np.abs(directions).argmax(1)])[:, None]
    axes = np.zeros((2, centers.shape[1]))
    axes[: min(2, len(directions))] = directions[:2]
    total = float((singular**2).sum())
    share = float((singular[:2] ** 2).sum()) / total if total > 0 else 1.0
    return Map(rows, (roles - middle) @ axes.T, weights.argmax(1), (centers - middle) @ axes.T, share)


class LiftGrid(NamedTuple):
    """How over-represented labels are in the clusters of a view.

    Attributes:
        labels: [L] the most frequent ones.
        clusters: [K] original numbers.
        lift: [K, L] smoothed lift among the members with metadata: (held + LIFT_PRIOR) / (expected + LIFT_PRIOR).
    """

    labels: list[str]
    clusters: list[int]
    lift: _Floats


def label_lift_grids(model: MFDMC, side: SideName, features: Features, *, n_labels: int = 24) -> list[LiftGrid]:
    """The lift of the most frequent labels in each cluster, one grid a view; no labels if none is frequent enough."""
    state = fitted_mfdmc(model)
    table = side_labels(features, state.users_ if side == "user" else state.items_)
    totals = np.bincount(table.label_idx, minlength=len(table.labels))
    shown = np.sort(np.argsort(-totals, kind="stable")[:n_labels])
    shown = shown[totals[shown] >= MIN_COUNT]
    grids = []
    module = state.model_.prunable_sides()[side]
    for ids, weights in zip(module.cluster_ids, model.memberships(side), strict=True):
        counts = label_counts(weights, table)
        lift = (counts.held + LIFT_PRIOR) / (counts.expected + LIFT_PRIOR)
        grids.append(LiftGrid([table.labels[k] for k in shown.tolist()], list(ids), lift[:, shown]))
    return grids


class Group(NamedTuple):
    """Some test ratings.

    Attributes:
        name: what they have in common.
        n: how many.
        predicted, rated: means, rating points.
        rmse: of the predictions, rating points.
    """

    name: str
    n: int
    predicted: float
    rated: float
    rmse: float


class ErrorFigures(NamedTuple):
    """Predictions beside test ratings.

    Attributes:
        rmse, mae, n: over all test ratings.
        unknown: ratings with a user or item that was not in training.
        calibration: groups of equally many ratings, by prediction.
        by_rating: by what was rated.
        by_user_activity, by_item_activity: by training ratings of the user, of the item.
        users, items, ratings, predictions: [N] raw ids, ratings and predictions.
    """

    rmse: float
    mae: float
    n: int
    unknown: int
    calibration: list[Group]
    by_rating: list[Group]
    by_user_activity: list[Group]
    by_item_activity: list[Group]
    users: npt.NDArray[Any]
    items: npt.NDArray[Any]
    ratings: npt.NDArray[np.float64]
    predictions: npt.NDArray[np.float64]


def error_figures(model: RatingEstimator, test: Any) -> ErrorFigures:
    """Errors and calibration on test ratings, anything `read_ratings` takes; predictions as `predict` gives them."""
    table = read_ratings(test)
    dataset = RatingsDataset.encode(table, model.users_, model.items_)
    found = predict_rows(model.model_, dataset.user_idx, dataset.item_idx, model.rating_scale_)
    predictions, ratings = found.astype(np.float64), np.asarray(table.ratings, dtype=np.float64)
    unknown = (dataset.user_idx < 0) | (dataset.item_idx < 0)

    def groups(key: _Floats, names: list[str]) -> list[Group]:
        parts = [(name, key == k) for k, name in enumerate(names)]
        return [
            Group(
                name,
                int(part.sum()),
                float(predictions[part].mean()),
                float(ratings[part].mean()),
                metrics.rmse(predictions[part], ratings[part]),
            )
            for name, part in parts
            if part.any()
        ]

    active = {}
    for side, rows in (("user", dataset.user_idx), ("item", dataset.item_idx)):
        counts = activity(model, "user" if side == "user" else "item")
        active[side] = groups(*_in_groups(np.where(rows >= 0, counts[rows], 0).astype(np.float64), _N_ACTIVITY_GROUPS))
    values = np.unique(ratings)
    by_rating = (
        groups(np.searchsorted(values, ratings).astype(np.float64), [f"{v:g}" for v in values])
        if len(values) <= 2 * _N_GROUPS
        else groups(*_in_groups(ratings, _N_GROUPS))
    )
    return ErrorFigures(
        rmse=metrics.rmse(predictions, ratings),
        mae=metrics.mae(predictions, ratings),
        n=len(ratings),
        unknown=int(unknown.sum()),
        calibration=groups(*_in_groups(predictions, _N_GROUPS)),
        by_rating=by_rating,
        by_user_activity=active["user"],
        by_item_activity=active["item"],
        users=table.users,
        items=table.items,
        ratings=ratings,
        predictions=predictions,
    )


def activity(model: RatingEstimator, side: SideName) -> npt.NDArray[np.int64]:
    """[n] training ratings of every user or item."""
    seen = model._state().seen
    counts = np.diff(seen.offsets) if side == "user" else np.bincount(seen.items, minlength=len(model.items_))
    return counts.astype(np.int64)


def fitted_mfdmc(model: Any) -> MFDMC:
    """The model, if it has clusters; ConfigError if not."""
    if not isinstance(model, MFDMC):
        raise ConfigError(f"{type(model).__name__} has no clusters to show; give an MFDMC model")
    model._state()
    return model


def _in_groups(values: _Floats, n: int) -> tuple[_Floats, list[str]]:
    """[N] number of the group of each value, and the groups' names: about n of equally many values, equal ones
    together.
    """
    lowest = np.unique(np.sort(values)[np.arange(n) * len(values) // n])
    group = np.searchsorted(lowest, values, side="right") - 1
    edges = [(values[group == k].min(), values[group == k].max()) for k in range(len(lowest))]
    names = [f"{low:.4g}" if low == high else f"{low:.4g}-{high:.4g}" for low, high in edges]
    return group.astype(np.float64), names
