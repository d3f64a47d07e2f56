"""Cross-validation trains on nothing but the training parts, and counts what it reports."""

from __future__ import annotations

import json
import statistics

import numpy as np
import pytest
from sklearn.exceptions import NotFittedError

from mfdmc_fast.data import Ratings, Split, column_folds, holdout, kfold, make_planted_ratings
from mfdmc_fast.errors import ConfigError, DataError
from mfdmc_fast.estimator import MFDMC, FunkMF, RatingEstimator
from mfdmc_fast.evaluate import CrossValidation, FoldResult, compare, cross_validate, fold_result
from mfdmc_fast.training import Callback, EpochRecord


@pytest.fixture(scope="module")
def ratings() -> Ratings:
    planted = make_planted_ratings(40, 30, 400, seed=2)
    return Ratings(planted.users, planted.items, planted.ratings, columns={"fold": np.arange(400) % 4})


@pytest.fixture(scope="module")
def folds(ratings: Ratings) -> list[Split]:
    return kfold(ratings, 3, seed=5)


def mfdmc(**settings: object) -> MFDMC:
    return MFDMC(**{"n_views": 2, "n_clusters": 4, "epochs": 3, **settings})  # type: ignore[arg-type]


@pytest.mark.parametrize("estimator", [mfdmc(), FunkMF(n_factors=4, epochs=3)], ids=["mfdmc", "funkmf"])
def test_every_fold_is_a_fresh_training(estimator: RatingEstimator, folds: list[Split]) -> None:
    result = cross_validate(estimator, folds)
    assert [fold.fold for fold in result.folds] == ["fold1", "fold2", "fold3"]
    for fold, split in zip(result.folds, folds, strict=True):
        model = type(estimator)(**estimator.get_params()).fit(split.train)
        errors = model.predict(split.test.users, split.test.items).astype(float) - split.test.ratings
        assert fold.rmse == pytest.approx(np.sqrt((errors**2).mean()), rel=1e-9)
        assert fold.mae == pytest.approx(np.abs(errors).mean(), rel=1e-9)
        assert fold.epochs == 3
        assert fold.clusters_user == model.model_.clusters("user")
    with pytest.raises(NotFittedError):
        estimator.predict(1, 1)


def test_summary_of_the_folds(folds: list[Split]) -> None:
    result = cross_validate(mfdmc(), folds)
    rmses = [fold.rmse for fold in result.folds]
    assert len(set(rmses)) == 3
    assert result.mean_rmse == pytest.approx(sum(rmses) / 3)
    assert result.std_rmse == pytest.approx(statistics.stdev(rmses))
    assert result.mean_mae == pytest.approx(sum(fold.mae for fold in result.folds) / 3)
    assert result.seconds >= sum(fold.seconds for fold in result.folds) > 0


def test_a_single_fold_has_no_deviation(ratings: Ratings) -> None:
    result = cross_validate(mfdmc(), [holdout(ratings, 0.2, 0)])
    assert result.std_rmse == 0.0
    assert result.mean_rmse == result.folds[0].rmse


def test_the_same_seed_gives_the_same_result(folds: list[Split]) -> None:
    first, second, other = (cross_validate(mfdmc(seed=seed), folds).mean_rmse for seed in (1, 1, 2))
    assert first == second != other


def test_folds_of_a_column_are_named_after_it(ratings: Ratings) -> None:
    result = cross_validate(mfdmc(epochs=1), column_folds(ratings, "fold"))
    assert [fold.fold for fold in result.folds] == ["fold=0", "fold=1", "fold=2", "fold=3"]


def test_pruned_clusters_are_counted(folds: list[Split]) -> None:
    result = cross_validate(mfdmc(n_clusters=5, prune_start=2, prune_threshold=0.19, epochs=4), folds)
    for fold in result.folds:
        assert fold.clusters_user is not None
        assert fold.clusters_item is not None
        assert fold.pruned == 2 * 2 * 5 - sum(fold.clusters_user) - sum(fold.clusters_item)
    assert any(fold.pruned for fold in result.folds)


def test_what_was_pruned_after_the_kept_epoch_is_still_there(ratings: Ratings) -> None:
    settings = {"n_clusters": 6, "epochs": 25, "learning_rate": 1.0, "learning_rate_schedule": "constant"}
    settings |= {"weight_l2": 0.0, "prune_start": 2, "prune_threshold": 0.16, "keep": "best"}
    split = holdout(ratings, 0.3, 1)
    model = mfdmc(**settings).fit(split.train, validation=split.test)
    history, result = model.history_, fold_result("x", model, split.test)
    assert any(event.epoch > history.kept_epoch for event in history.prune_events)
    assert result.epochs == history.kept_epoch < 25
    assert result.clusters_user is not None
    assert result.clusters_item is not None
    assert result.pruned == 2 * 2 * 6 - sum(result.clusters_user) - sum(result.clusters_item)


def test_models_without_clusters_report_none(folds: list[Split]) -> None:
    fold = cross_validate(FunkMF(epochs=1), folds[:1]).folds[0]
    assert fold.clusters_user is fold.clusters_item is None
    assert fold.pruned == 0


def test_unknown_ids_of_the_test_part_are_counted() -> None:
    train = Ratings(np.array([1, 1, 2, 2]), np.array([1, 2, 1, 2]), np.array([1.0, 2.0, 3.0, 4.0]))
    test = Ratings(np.array([1, 9, 9, 1]), np.array([1, 1, 8, 7]), np.array([1.0, 2.0, 3.0, 4.0]))
    fold = cross_validate(mfdmc(n_clusters=2), [Split("x", train, test)]).folds[0]
    assert (fold.unknown_users, fold.unknown_items) == (2, 2)


@pytest.mark.parametrize(("scale", "expected"), [(None, (2.0, 3.0)), ((0.0, 9.0), (0.0, 9.0))], ids=["own", "stated"])
def test_predictions_are_clipped_to_the_scale(scale: tuple[float, float] | None, expected: tuple[float, float]) -> None:
    train = Ratings(np.array([1, 1, 2, 2]), np.array([1, 2, 1, 2]), np.array([2.0, 3.0, 3.0, 2.0]))
    test = Ratings(np.array([1, 2]), np.array([1, 1]), np.array([9.0, 9.0]))
    model = mfdmc(n_clusters=2).fit(train, rating_scale=expected)
    fold = cross_validate(mfdmc(n_clusters=2), [Split("x", train, test)], rating_scale=scale).folds[0]
    assert fold.rmse == pytest.approx(model.evaluate(test)["rmse"])
    # the ratings to predict lie outside what was trained on, so the error is at least the distance to the scale
    assert fold.rmse >= 9.0 - expected[1]


def test_training_ratings_outside_the_scale_are_refused(folds: list[Split]) -> None:
    with pytest.raises(DataError, match="outside the rating scale"):
        cross_validate(mfdmc(), folds, rating_scale=(2, 4))


def test_wrong_settings_are_refused(folds: list[Split]) -> None:
    with pytest.raises(ConfigError, match="epochs"):
        cross_validate(mfdmc(epochs=0), folds)


def test_no_folds_are_refused() -> None:
    with pytest.raises((ConfigError, DataError)):
        cross_validate(mfdmc(), [])


def test_callbacks_and_results_arrive_fold_by_fold(folds: list[Split]) -> None:
    log: list[str] = []

    class Watch(Callback):
        def __init__(self, fold: str) -> None:
            self.fold = fold

        def on_epoch_end(self, record: EpochRecord, model: object) -> None:
            log.append(f"{self.fold} epoch {record.epoch}")

    def on_fold(result: FoldResult) -> None:
        log.append(f"{result.fold} done")

    cross_validate(mfdmc(epochs=2), folds[:2], callbacks_for=lambda fold: [Watch(fold)], on_fold=on_fold)
    assert log == [f"fold{k} {what}" for k in (1, 2) for what in ("epoch 1", "epoch 2", "done")]


def test_the_result_is_plain_values(folds: list[Split]) -> None:
    result = cross_validate(mfdmc(), folds)
    values = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    parts = [FoldResult(**fold) for fold in values.pop("folds")]
    assert CrossValidation(**values, folds=parts) == result


def results(*rmses: float, names: str = "abcdefgh") -> CrossValidation:
    folds = [FoldResult(name, x, 0.7, 1, 0.1, None, None, 0, 0, 0) for name, x in zip(names, rmses, strict=False)]
    return CrossValidation(statistics.fmean(rmses), 0.0, 0.7, 1.0, folds)


def test_a_comparison_is_paired() -> None:
    comparison = compare(results(0.90, 0.95, 0.91, 0.94), results(0.91, 0.97, 0.91, 0.97))
    assert comparison.mean_rmse == pytest.approx(0.94)
    assert comparison.fold_rmse == [0.91, 0.97, 0.91, 0.97]
    assert comparison.differences == pytest.approx([-0.01, -0.02, 0.0, -0.03])
    assert comparison.difference == pytest.approx(-0.015)
    # by hand: t(0.975, 3) = 3.18245, standard deviation 0.0129099
    assert comparison.interval == pytest.approx((-0.015 - 0.0205426, -0.015 + 0.0205426), abs=1e-6)
    assert json.loads(json.dumps(comparison.to_dict()))["interval"] == pytest.approx(list(comparison.interval or ()))


def test_more_folds_and_equal_differences_make_it_surer() -> None:
    few = compare(results(0.9, 0.92), results(0.91, 0.94)).interval
    many = compare(results(*[0.9, 0.92] * 4), results(*[0.91, 0.94] * 4)).interval
    assert few is not None
    assert many is not None
    assert few[0] < many[0] < many[1] < few[1]
    same = compare(results(0.5, 0.75), results(0.25, 0.5))
    assert same.interval == (0.25, 0.25)


def test_a_single_fold_has_no_interval() -> None:
    comparison = compare(results(0.9), results(0.95))
    assert comparison.interval is None
    assert comparison.difference == pytest.approx(-0.05)


def test_other_folds_cannot_be_compared() -> None:
    with pytest.raises(ConfigError, match="cannot be compared; run both models on the same folds"):
        compare(results(0.9, 0.9), results(0.9, 0.9, names="ba"))
    with pytest.raises(ConfigError, match="cannot be compared"):
        compare(results(0.9, 0.9), results(0.9))
