"""Fold-in and partial_fit: what is added, what moves, what stays, and that predictions gain by it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mfdmc_fast.config import FunkMFConfig, MFDMCConfig
from mfdmc_fast.data import Ratings, make_planted_ratings
from mfdmc_fast.errors import ConfigError, DataError
from mfdmc_fast.estimator import MFDMC, BayesianMF, FunkMF, RatingEstimator, load_model
from mfdmc_fast.fold_in import embeddings_and_biases, population
from mfdmc_fast.model import FunkMFModel, MFDMCModel
from mfdmc_fast.training import TrainingHistory

MODELS: dict[str, Callable[..., RatingEstimator]] = {
    "mfdmc": lambda **s: MFDMC(**{"n_views": 4, "n_clusters": 5, "epochs": 15, "seed": 1, **s}),
    "mfdmc-sum": lambda **s: MFDMC(**{"n_views": 2, "n_clusters": 6, "combine": "sum", "epochs": 15, "seed": 1, **s}),
    "funkmf": lambda **s: FunkMF(**{"n_factors": 6, "epochs": 15, "learning_rate": 0.01, "seed": 1, **s}),
}
SCALE = (1.0, 5.0)


def _taken(ratings: Ratings, rows: np.ndarray) -> Ratings:
    return ratings.take(np.flatnonzero(rows))


@pytest.fixture(scope="module")
def ratings() -> Ratings:
    return make_planted_ratings(150, 80, 5000, seed=3)


class Parts:
    """Ratings of 130 users and 70 items for training; those of the others and a second part of theirs for tests."""

    def __init__(self, ratings: Ratings) -> None:
        held = np.random.default_rng(0).random(len(ratings)) < 0.3
        old = (ratings.users <= 130) & (ratings.items <= 70)
        self.train = _taken(ratings, old & ~held)
        self.known_test = _taken(ratings, old & held)
        self.new = _taken(ratings, ~old & ~held)
        self.new_users = _taken(ratings, (ratings.users > 130) & (ratings.items <= 70) & ~held)
        self.new_users_test = _taken(ratings, (ratings.users > 130) & (ratings.items <= 70) & held)
        self.new_items = _taken(ratings, (ratings.users <= 130) & (ratings.items > 70) & ~held)
        self.new_items_test = _taken(ratings, (ratings.users <= 130) & (ratings.items > 70) & held)


@pytest.fixture(scope="module")
def parts(ratings: Ratings) -> Parts:
    return Parts(ratings)


@pytest.fixture(params=MODELS, scope="module")
def trained(request: pytest.FixtureRequest, parts: Parts) -> RatingEstimator:
    """A fitted model of each kind; not to be changed."""
    return MODELS[request.param]().fit(parts.train, rating_scale=SCALE)


@pytest.fixture
def model(trained: RatingEstimator) -> RatingEstimator:
    return copy.deepcopy(trained)


def _rmse(model: RatingEstimator, ratings: Ratings) -> float:
    return float(model.evaluate(ratings)["rmse"])


def test_new_users_are_predicted_better_and_known_ones_as_before(model: RatingEstimator, parts: Parts) -> None:
    before, known = _rmse(model, parts.new_users_test), model.predict(parts.known_test.users, parts.known_test.items)
    assert model.fold_in(parts.new_users) is model
    assert _rmse(model, parts.new_users_test) < 0.97 * before
    assert model.predict(131, 1, return_known=True)[1].all()
    np.testing.assert_array_equal(model.predict(parts.known_test.users, parts.known_test.items), known)


def test_new_items_are_predicted_better(model: RatingEstimator, parts: Parts) -> None:
    before = _rmse(model, parts.new_items_test)
    model.fold_in(parts.new_items)
    assert _rmse(model, parts.new_items_test) < 0.97 * before


def test_users_and_items_at_once(model: RatingEstimator, parts: Parts) -> None:
    users, items = len(model.users_), len(model.items_)
    first = copy.deepcopy(model).fold_in(parts.new_users)
    model.fold_in(parts.new)
    assert model.users_.ids[users:].tolist() == sorted(set(parts.new.users.tolist()) - set(model.users_.ids[:users]))
    assert model.items_.ids[items:].tolist() == sorted(set(parts.new.items.tolist()) - set(model.items_.ids[:items]))
    assert model.evaluate(parts.new_users_test)["unknown_users"] == 0
    # new users are solved on the items that were known, so the new items make no difference to them
    pairs = parts.new_users_test
    np.testing.assert_allclose(
        model.predict(pairs.users, pairs.items), first.predict(pairs.users, pairs.items), rtol=1e-6
    )
    best = model.recommend(parts.new.users[0], n=80)
    assert best.known
    rated = parts.new.items[parts.new.users == parts.new.users[0]]
    assert not set(rated.tolist()) & set(best.items.tolist())
    assert set(model.items_.ids.tolist()) == set(rated.tolist()) | set(best.items.tolist())


def test_a_new_item_is_seen_by_the_known_users_who_rated_it(model: RatingEstimator, parts: Parts) -> None:
    user, item = parts.new_items.users[0], parts.new_items.items[0]
    model.fold_in(parts.new_items)
    assert item not in model.recommend(user, n=80).items
    assert item in model.recommend(user, n=80, exclude_seen=False).items


def test_folding_in_is_deterministic_and_is_saved(model: RatingEstimator, parts: Parts, tmp_path: Path) -> None:
    again = copy.deepcopy(model).fold_in(parts.new)
    model.fold_in(parts.new)
    model.save(tmp_path / "m.safetensors")
    loaded = load_model(tmp_path / "m.safetensors")
    pairs = parts.new
    expected = model.predict(pairs.users, pairs.items)
    np.testing.assert_array_equal(again.predict(pairs.users, pairs.items), expected)
    np.testing.assert_array_equal(loaded.predict(pairs.users, pairs.items), expected)
    assert loaded.history_.n_users == len(np.unique(parts.train.users))
    assert loaded.history_.train_rmse == model.history_.train_rmse
    # a loaded model goes on where the other would
    later = Ratings(np.array([9001, 9001]), np.array([1, 2]), np.array([5.0, 1.0]))
    np.testing.assert_array_equal(
        loaded.fold_in(later).predict(9001, [1, 2, 3]), model.fold_in(later).predict(9001, [1, 2, 3])
    )


def test_the_order_of_ratings_does_not_matter(model: RatingEstimator, parts: Parts) -> None:
    other = copy.deepcopy(model).fold_in(parts.new.take(np.random.default_rng(1).permutation(len(parts.new))))
    model.fold_in(parts.new)
    pairs = parts.new_users_test
    np.testing.assert_array_equal(other.predict(pairs.users, pairs.items), model.predict(pairs.users, pairs.items))


def test_few_ratings_leave_a_user_near_the_population(model: RatingEstimator) -> None:
    model.fold_in(([777], [1], [5.0]))
    means = model.predict(model.users_.ids[:-1].repeat(20), np.tile(np.arange(1, 21), len(model.users_) - 1))
    of_items = means.reshape(-1, 20).mean(0)
    assert np.abs(model.predict(777, np.arange(1, 21)) - of_items).max() < 1.2


def test_known_ratings_are_refused_with_a_hint(model: RatingEstimator, parts: Parts) -> None:
    before = model.predict(131, 1)
    with pytest.raises(DataError, match=r"1 ratings .* user 1 and item 5; .*partial_fit"):
        model.fold_in(([1, 500], [5, 5], [3.0, 3.0]))
    assert len(model.users_) == 130
    assert 500 not in model.users_.ids
    assert model.predict(131, 1) == before


def test_ratings_beyond_the_scale_are_refused(model: RatingEstimator) -> None:
    with pytest.raises(DataError, match="scale"):
        model.fold_in(([500], [5], [9.0]))


def test_ids_of_another_kind(model: RatingEstimator) -> None:
    with pytest.raises(DataError, match="user ids are integers, and 'anna' is none"):
        model.fold_in((["anna"], [5], [3.0]))


def test_numbers_as_ids_of_a_model_with_texts(parts: Parts) -> None:
    names = np.array([f"u{user}" for user in parts.train.users], dtype=object)
    model = FunkMF(n_factors=2, epochs=2).fit(Ratings(names, parts.train.items, parts.train.ratings))
    model.fold_in(([12, 12], [1, 2], [4.0, 2.0]))
    assert model.users_.ids[-1] == "12"
    assert model.predict(12, 1, return_known=True)[1].all()


def test_a_bayesian_model_says_what_works(parts: Parts) -> None:
    model = BayesianMF(rank=2, sweeps=3, burn_in=1).fit(parts.train)
    for method in (model.fold_in, model.partial_fit):
        with pytest.raises(ConfigError, match="MFDMC and FunkMF do"):
            method(([500], [5], [3.0]))


def test_a_model_of_an_earlier_version(model: RatingEstimator) -> None:
    model.history_.train_rmse = None
    with pytest.raises(ConfigError, match="Train it again"):
        model.fold_in(([500], [5], [3.0]))


def test_histories_of_earlier_versions_are_read() -> None:
    values = {k: v for k, v in TrainingHistory(seconds=2.0).to_dict().items() if not k.startswith(("n_", "train"))}
    history = TrainingHistory.from_dict(values)
    assert (history.train_rmse, history.n_users) == (None, 0)


def test_a_model_without_biases(parts: Parts) -> None:
    model = MFDMC(n_views=4, n_clusters=5, epochs=15, biases=False, seed=1).fit(parts.train, rating_scale=SCALE)
    before = _rmse(model, parts.new_users_test)
    assert _rmse(model.fold_in(parts.new), parts.new_users_test) < before


def test_backends_agree(parts: Parts) -> None:
    found = [
        MODELS["mfdmc"](backend=backend).fit(parts.train, rating_scale=SCALE).fold_in(parts.new)
        for backend in ("auto", "reference")
    ]
    pairs = parts.new_users_test
    first, second = (model.predict(pairs.users, pairs.items) for model in found)
    np.testing.assert_allclose(first, second, atol=0.02)


def test_memberships_of_folded_in_users(parts: Parts) -> None:
    model = MFDMC(n_views=4, n_clusters=5, epochs=15, seed=1).fit(parts.train, rating_scale=SCALE)
    model.fold_in(parts.new)
    for weights in model.memberships("user", parts.new_users.users[:5]):
        np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-5)
    assert model.explain(parts.new_users.users[0], 1).prediction == pytest.approx(
        float(model.predict(parts.new_users.users[0], 1)[0]), abs=1e-4
    )


def test_a_student_of_a_teacher(parts: Parts) -> None:
    """Its own loss is how far it is from the teacher, which says nothing of ratings."""
    model = MODELS["mfdmc"](teacher=FunkMF(n_factors=4, epochs=10, seed=1)).fit(parts.train, rating_scale=SCALE)
    errors = model.predict(parts.train.users, parts.train.items) - parts.train.ratings
    assert model.history_.train_rmse == pytest.approx(float(np.sqrt((errors**2).mean())), rel=1e-5)
    before = _rmse(model, parts.new_users_test)
    assert _rmse(model.fold_in(parts.new), parts.new_users_test) < before


def test_partial_fit_moves_whom_it_concerns(model: RatingEstimator, parts: Parts) -> None:
    user = int(parts.known_test.users[0])
    rated = _taken(parts.known_test, parts.known_test.users == user)
    items = np.arange(1, 71)
    untouched = items[~np.isin(items, rated.items)]
    others = model.users_.ids[model.users_.ids != user][:20]
    before, of_others = model.predict(user, items), [model.predict(other, untouched) for other in others]
    errors = _rmse(model, rated)
    assert model.partial_fit(rated) is model
    assert _rmse(model, rated) < errors
    assert not np.array_equal(model.predict(user, items), before)
    for other, predictions in zip(others, of_others, strict=True):
        np.testing.assert_array_equal(model.predict(other, untouched), predictions)
    assert not set(rated.items.tolist()) & set(model.recommend(user, n=70).items.tolist())


def test_partial_fit_gains_on_known_pairs(model: RatingEstimator, parts: Parts) -> None:
    half = np.arange(len(parts.known_test)) % 2 == 0
    given, test = _taken(parts.known_test, half), _taken(parts.known_test, ~half)
    before = _rmse(model, test)
    assert _rmse(model.partial_fit(given), test) < before


def test_partial_fit_folds_in_too(model: RatingEstimator, parts: Parts) -> None:
    folded = copy.deepcopy(model).fold_in(parts.new)
    model.partial_fit(parts.new)
    assert len(model.users_) == len(folded.users_)
    assert _rmse(model, parts.new_users_test) < _rmse(folded, parts.new_users_test) * 1.02


def test_a_pair_that_is_rated_again_counts_once(model: RatingEstimator, parts: Parts) -> None:
    user, item = int(parts.train.users[0]), int(parts.train.items[0])
    seen = len(model._state().seen.items)
    low = copy.deepcopy(model).partial_fit(([user], [item], [1.0]))
    model.partial_fit(([user], [item], [5.0]))
    assert model.predict(user, item) > low.predict(user, item)
    assert len(model._state().seen.items) == seen


def test_ratings_that_are_as_predicted_move_little(model: RatingEstimator, parts: Parts) -> None:
    pairs = parts.known_test
    predicted = model.predict(pairs.users, pairs.items)
    inside = (predicted > 1) & (predicted < 5)
    model.partial_fit(Ratings(pairs.users[inside], pairs.items[inside], predicted[inside].astype(np.float64)))
    np.testing.assert_allclose(model.predict(pairs.users, pairs.items), predicted, atol=0.03)


def test_partial_fit_of_an_unfitted_estimator_fits_it(parts: Parts) -> None:
    model = FunkMF(n_factors=2, epochs=2, seed=1)
    expected = FunkMF(n_factors=2, epochs=2, seed=1).fit(parts.train).predict(1, 1)
    X = np.column_stack([parts.train.users, parts.train.items])  # noqa: N806
    assert model.partial_fit(X, parts.train.ratings).predict(1, 1) == expected


def _model(kind: str, n_users: int) -> MFDMCModel | FunkMFModel:
    if kind == "mfdmc":
        return MFDMCModel(n_users, 4, MFDMCConfig(n_views=2, n_clusters=3, view_dim=2, logit_scale=1.0))
    return FunkMFModel(n_users, 4, FunkMFConfig(n_factors=3, factor_scale=1.0))


def _counts(n: int, each: int) -> Tensor:
    return torch.full((n,), each)


@pytest.mark.parametrize("kind", ["mfdmc", "funkmf"])
def test_the_population_of_many_rows_with_many_ratings(kind: str) -> None:
    model = _model(kind, 4000)
    found = population(model, "user", _counts(4000, 10**9), _counts(4, 10**9), noise=0.5)
    rows = embeddings_and_biases(model, "user").double()
    torch.testing.assert_close(found.mean.double(), rows.mean(0), rtol=1e-5, atol=1e-6)
    size = rows.shape[1] - 1  # without the bias, which is 0 in all rows
    covariance = torch.linalg.inv(found.precision.double() / 0.5)
    torch.testing.assert_close(covariance[:size, :size], torch.cov(rows.T)[:size, :size], rtol=0.01, atol=0.002)
    assert torch.equal(found.precision, found.precision.T)


def test_what_few_ratings_leave_open_widens_the_population() -> None:
    """The mean over rows of (ratings / noise · mean of y y' + covariance^-1)^-1, matrix by matrix."""
    model = _model("funkmf", 50)
    assert isinstance(model, FunkMFModel)
    assert model.user_bias is not None
    model.user_bias.data = torch.linspace(-1, 1, 50)
    counts, partner_counts = torch.arange(1, 51), torch.tensor([5, 1, 2, 8])
    certain = population(model, "user", counts * 10**9, partner_counts, noise=0.3)
    covariance = torch.linalg.inv(certain.precision.double() / 0.3)
    y = torch.cat([model.item_factors.detach(), torch.ones(4, 1)], dim=1).double()
    mean = sum(n * torch.outer(row, row) for n, row in zip(partner_counts.tolist(), y, strict=True)) / 16
    left_open = [torch.linalg.inv(c / 0.3 * mean + torch.linalg.inv(covariance)) for c in counts.tolist()]
    expected = covariance + torch.stack(left_open).mean(0)
    found = population(model, "user", counts, partner_counts, noise=0.3)
    torch.testing.assert_close(torch.linalg.inv(found.precision.double() / 0.3), expected, rtol=1e-3, atol=1e-3)


def test_rows_that_were_folded_in_are_not_the_population() -> None:
    model = _model("funkmf", 30)
    before = population(model, "user", _counts(20, 5), _counts(4, 25), noise=0.5)
    assert isinstance(model, FunkMFModel)
    model.user_factors.data[20:] = 100
    after = population(model, "user", _counts(20, 5), _counts(4, 25), noise=0.5)
    assert all(torch.equal(a, b) for a, b in zip(before[:3], after[:3], strict=True))


@pytest.mark.parametrize("kind", ["mfdmc", "funkmf"])
@pytest.mark.parametrize("n_trained", [2, 3])
def test_the_population_of_few_or_equal_rows_can_be_used(kind: str, n_trained: int) -> None:
    model = _model(kind, n_trained)
    for alike in (False, True):
        if alike:
            table = model.native_parameters("user").table
            table.data[:] = table.data[:1].clone()
        found = population(model, "user", _counts(n_trained, 1), _counts(4, 1), noise=0.5)
        assert found.precision.isfinite().all()
        assert (torch.linalg.eigvalsh(found.precision.double()) > 0).all()


def test_the_settings_stay(model: RatingEstimator, parts: Parts) -> None:
    before = dataclasses.asdict(model.model_.config)
    model.fold_in(parts.new)
    assert dataclasses.asdict(model.model_.config) == before
