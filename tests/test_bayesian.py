"""Bayesian matrix factorization as a model: draws, validation, prediction with its uncertainty, model files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone

from mfdmc_fast import BayesianMF, load_model
from mfdmc_fast.bayesian import posterior_means
from mfdmc_fast.config import BayesianMFConfig
from mfdmc_fast.data import Ratings, RatingsDataset, holdout, make_planted_ratings, official_folds
from mfdmc_fast.errors import ConfigError
from mfdmc_fast.model import BayesianMFModel
from mfdmc_fast.testing import data_folder
from mfdmc_fast.training import Callback

SMALL: dict[str, Any] = {"rank": 4, "sweeps": 40, "burn_in": 10, "n_draws": 15}


@pytest.fixture(scope="module")
def parts() -> tuple[Ratings, Ratings]:
    _, train, test = holdout(make_planted_ratings(n_users=80, n_items=60, n_ratings=2300, seed=1), 0.2, 1)
    return train, test


@pytest.fixture(scope="module")
def fitted(parts: tuple[Ratings, Ratings]) -> BayesianMF:
    return BayesianMF(**SMALL).fit(parts[0])


def test_it_predicts_better_than_the_mean(fitted: BayesianMF, parts: tuple[Ratings, Ratings]) -> None:
    train, test = parts
    assert fitted.evaluate(test)["rmse"] < 0.9 * float(np.sqrt(np.mean((test.ratings - train.ratings.mean()) ** 2)))


def test_every_sweep_is_in_the_history(parts: tuple[Ratings, Ratings]) -> None:
    model = BayesianMF(**SMALL).fit(parts[0], validation=parts[1])
    history = model.history_
    assert [record.epoch for record in history.epochs] == list(range(1, 41))
    assert model.model_.user_draws.shape[0] == 15
    # the last sweep's is the RMSE of the model itself
    assert history.epochs[-1].valid_rmse == pytest.approx(model.evaluate(parts[1])["rmse"], rel=1e-4)


def test_a_callback_can_stop_it_once_a_draw_is_kept(parts: tuple[Ratings, Ratings], tmp_path: Path) -> None:
    class Stop(Callback):
        def on_epoch_end(self, record: Any, model: Any) -> bool:
            return True

    model = BayesianMF(**SMALL).fit(parts[0], callbacks=[Stop()])
    assert len(model.history_.epochs) == 12  # 15 draws of 30 sweeps: the first is that of the second after burn_in
    model.save(tmp_path / "model")
    pairs = parts[1].users[:50], parts[1].items[:50]
    np.testing.assert_array_equal(load_model(tmp_path / "model").predict(*pairs), model.predict(*pairs))


@pytest.mark.parametrize("kind", ["int", "str"])
def test_model_files_give_the_same_predictions(parts: tuple[Ratings, Ratings], tmp_path: Path, kind: str) -> None:
    train, test = parts
    ids = (lambda values: values) if kind == "int" else (lambda values: np.array([f"x{v}" for v in values]))
    model = BayesianMF(**SMALL).fit((ids(train.users), ids(train.items), train.ratings))
    model.save(tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    pairs = ids(test.users), ids(test.items)
    for a, b in zip(model.predict(*pairs, return_std=True), loaded.predict(*pairs, return_std=True), strict=True):
        np.testing.assert_array_equal(a, b)
    one, other = (m.recommend(pairs[0][0], n=5) for m in (model, loaded))
    assert list(one.items) == list(other.items)


def test_uncertainty_covers_what_happens(fitted: BayesianMF, parts: tuple[Ratings, Ratings]) -> None:
    test = parts[1]
    predictions, std, known = fitted.predict(test.users, test.items, return_std=True, return_known=True)
    assert known.all()
    errors = np.abs(predictions - test.ratings) / std
    assert 0.55 < np.mean(errors < 1) < 0.85
    assert np.mean(errors < 2) > 0.9


def test_unknown_ids_have_no_uncertainty(fitted: BayesianMF) -> None:
    user, item = fitted.users_.ids[0], fitted.items_.ids[0]
    predictions, std, known = fitted.predict([user, 10**9], [item, item], return_std=True, return_known=True)
    assert known.tolist() == [True, False]
    assert np.isfinite(predictions).all()
    assert np.isfinite(std[0])
    assert np.isnan(std[1])


def test_the_reference_fits_the_same_model(parts: tuple[Ratings, Ratings]) -> None:
    few = {**SMALL, "sweeps": 4, "burn_in": 1}
    one, other = (BayesianMF(**few, backend=backend).fit(parts[0]) for backend in ("auto", "reference"))
    pairs = parts[1].users, parts[1].items
    np.testing.assert_allclose(one.predict(*pairs), other.predict(*pairs), atol=2e-4)


def test_means_of_pairs_are_the_predictions_of_the_model(fitted: BayesianMF, parts: tuple[Ratings, Ratings]) -> None:
    train = RatingsDataset.from_ratings(parts[0]).sorted()
    test = RatingsDataset.encode(parts[1], train.users, train.items)
    told: list[tuple[int, int]] = []
    means = posterior_means(
        fitted._config(),
        train,
        test.user_idx,
        test.item_idx,
        fitted.rating_scale_,
        on_sweep=lambda sweep, sweeps: told.append((sweep, sweeps)),
    )
    np.testing.assert_allclose(means, fitted.predict(parts[1].users, parts[1].items), atol=2e-5)
    assert told == [(sweep, 40) for sweep in range(1, 41)]


@pytest.mark.parametrize(
    ("name", "value"), [("rank", 2), ("sweeps", 30), ("burn_in", 5), ("n_draws", 7), ("implicit", False), ("seed", 5)]
)
def test_each_setting_changes_the_result(
    fitted: BayesianMF, parts: tuple[Ratings, Ratings], name: str, value: Any
) -> None:
    other = BayesianMF(**{**SMALL, name: value}).fit(parts[0])
    pairs = parts[1].users, parts[1].items
    assert np.abs(other.predict(*pairs) - fitted.predict(*pairs)).max() > 1e-4


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"rank": 127}, {"burn_in": 40}, {"noise_degrees": 1.0}])
def test_wrong_settings_are_refused(parts: tuple[Ratings, Ratings], wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        BayesianMF(**{**SMALL, **wrong}).fit(parts[0])


def test_it_has_the_manners_of_scikit_learn() -> None:
    assert clone(BayesianMF(rank=3)).get_params()["rank"] == 3


@pytest.mark.data
def test_movielens_100k() -> None:
    folder = data_folder()
    if folder is None:
        pytest.skip("the rating datasets are not here (MFDMC_DATA)")
    split = official_folds(folder / "ml-100k")[0]
    model = BayesianMF(rank=8, sweeps=300, burn_in=60).fit(split.train)
    assert model.evaluate(split.test)["rmse"] <= 0.892


def test_an_unset_rank_is_chosen_by_fit_and_by_teachers() -> None:
    dataset = RatingsDataset.from_ratings(make_planted_ratings(60, 45, 260, seed=5))  # 5 ratings an entity: rank 8
    few = {"sweeps": 6, "burn_in": 2, "n_draws": 4}
    model = BayesianMF(**few)
    ratings = make_planted_ratings(60, 45, 260, seed=5)
    assert model.fit(ratings).model_.config.rank == 8
    assert model.rank is None
    users, items = dataset.user_idx[:20], dataset.item_idx[:20]
    means = [
        posterior_means(BayesianMFConfig(**few, rank=rank), dataset.sorted(), users, items, (1.0, 5.0))
        for rank in (None, 8, 7)
    ]
    np.testing.assert_array_equal(means[0], means[1])
    assert (means[0] != means[2]).any()
    with pytest.raises(ConfigError, match="rank is unset"):
        BayesianMFModel(3, 3, BayesianMFConfig())
