"""Cross-validation of estimators on given folds, and comparison with a baseline on the same ones."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sklearn.base import clone

from mfdmc_fast.data import Split
from mfdmc_fast.errors import ConfigError
from mfdmc_fast.estimator import RatingEstimator
from mfdmc_fast.estimator.teachers import learns_afresh
from mfdmc_fast.training import Callback


@dataclass(frozen=True)
class FoldResult:
    """One fold.

    Attributes:
        fold: its name.
        rmse, mae: on the fold's test ratings, rating points, predictions clipped to the scale of its training ratings.
        epochs: epoch whose parameters were evaluated; never chosen on the test ratings.
        seconds: training time.
        clusters_user, clusters_item: active clusters of each view, or None.
        pruned: clusters removed on both sides.
        unknown_users, unknown_items: test ratings whose user or item has no training rating.
    """

    fold: str
    rmse: float
    mae: float
    epochs: int
    seconds: float
    clusters_user: list[int] | None
    clusters_item: list[int] | None
    pruned: int
    unknown_users: int
    unknown_items: int


@dataclass(frozen=True)
class CrossValidation:
    """Results of all folds; `std_rmse` is the sample standard deviation over the folds (0 for a single one)."""

    mean_rmse: float
    std_rmse: float
    mean_mae: float
    seconds: float
    folds: list[FoldResult]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def cross_validate(
    estimator: RatingEstimator,
    splits: Sequence[Split],
    *,
    rating_scale: tuple[float, float] | None = None,
    user_features: Any = None,
    item_features: Any = None,
    callbacks_for: Callable[[str], Sequence[Callback]] = lambda fold: (),
    on_fold: Callable[[FoldResult], None] = lambda result: None,
) -> CrossValidation:
    """Fit a fresh clone of the estimator on each split's training part and evaluate it on the test part.

    Args:
        estimator: settings to use; not fitted itself.
        splits: from `mfdmc_fast.data`, such as `kfold` or `official_folds`.
        rating_scale: lowest and highest possible rating; default: those of each training part.
        user_features, item_features: as in `RatingEstimator.fit`.
        callbacks_for: fold name → callbacks of its training.
        on_fold: called with each finished fold.

    Raises:
        ConfigError: no folds, or a teacher that may have seen the ratings to be tested on.
    """
    if not splits:
        raise ConfigError("there are no folds to validate on")
    if not learns_afresh(getattr(estimator, "teacher", None)):
        raise ConfigError(
            "a teacher that is already fitted may have seen the test ratings; cross-validation takes"
            " teacher='bayesian' or unfitted estimators, which are fitted on each fold's training part"
        )
    start = time.perf_counter()
    results = []
    for split in splits:
        model = clone(estimator).fit(
            split.train,
            rating_scale=rating_scale,
            user_features=user_features,
            item_features=item_features,
            callbacks=callbacks_for(split.name),
        )
        results.append(fold_result(split.name, model, split.test))
        on_fold(results[-1])
    rmses = [r.rmse for r in results]
    return CrossValidation(
        mean_rmse=statistics.fmean(rmses),
        std_rmse=statistics.stdev(rmses) if len(rmses) > 1 else 0.0,
        mean_mae=statistics.fmean(r.mae for r in results),
        seconds=time.perf_counter() - start,
        folds=results,
    )


@dataclass(frozen=True)
class Comparison:
    """A model beside a baseline on the same folds.

    Attributes:
        mean_rmse: of the baseline.
        fold_rmse: of the baseline on each fold.
        differences: model's RMSE - baseline's, fold by fold; below 0 where the model is better.
        difference: their mean.
        interval: 95 % interval of the mean by Student's t over the folds; None for a single fold. Training parts of
            folds overlap, so it is somewhat too narrow as a statement about new data.
    """

    mean_rmse: float
    fold_rmse: list[float]
    differences: list[float]
    difference: float
    interval: tuple[float, float] | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def compare(model: CrossValidation, baseline: CrossValidation) -> Comparison:
    """Paired statistics of two cross-validations.

    Args:
        model, baseline: on the same folds in the same order.

    Raises:
        ConfigError: the folds have different names.
    """
    names = [[fold.fold for fold in result.folds] for result in (model, baseline)]
    if names[0] != names[1]:
        raise ConfigError(f"folds {names[0]} and {names[1]} cannot be compared; run both models on the same folds")
    differences = [a.rmse - b.rmse for a, b in zip(model.folds, baseline.folds, strict=True)]
    mean, n = statistics.fmean(differences), len(differences)
    interval = None
    if n > 1:
        from scipy import stats  # scikit-learn requires it

        margin = float(stats.t.ppf(0.975, n - 1)) * statistics.stdev(differences) / math.sqrt(n)
        interval = (mean - margin, mean + margin)
    return Comparison(baseline.mean_rmse, [fold.rmse for fold in baseline.folds], differences, mean, interval)


def fold_result(name: str, model: RatingEstimator, test: Any) -> FoldResult:
    """Evaluate a fitted model on test ratings (anything `read_ratings` takes)."""
    errors = model.evaluate(test)
    history = model.history_
    return FoldResult(
        fold=name,
        rmse=errors["rmse"],
        mae=errors["mae"],
        epochs=history.kept_epoch,
        seconds=history.seconds,
        clusters_user=model.model_.clusters("user"),
        clusters_item=model.model_.clusters("item"),
        # of the kept parameters: what was pruned after a kept best epoch is still there
        pruned=sum(event.epoch <= history.kept_epoch for event in history.prune_events),
        unknown_users=int(errors["unknown_users"]),
        unknown_items=int(errors["unknown_items"]),
    )
