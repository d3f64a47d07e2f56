"""MFDMC and FunkMF as estimators: scikit-learn manners, every kind of input, and answers that are known beforehand."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse
import torch
from sklearn.base import clone, is_regressor
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score
from sklearn.utils.validation import check_is_fitted

from mfdmc_fast.config import FunkMFConfig, MFDMCConfig, TrainingConfig
from mfdmc_fast.data import Ratings, RatingsDataset, holdout, make_planted_ratings
from mfdmc_fast.errors import BackendUnavailable, ConfigError, DataError, TrainingDiverged
from mfdmc_fast.estimator import MFDMC, FunkMF, RatingEstimator
from mfdmc_fast.training import Callback, EpochRecord

MODELS: dict[str, Callable[..., RatingEstimator]] = {
    "mfdmc": lambda **s: MFDMC(**{"n_views": 3, "n_clusters": 3, "epochs": 3, **s}),
    "funkmf": lambda **s: FunkMF(**{"n_factors": 4, "epochs": 3, **s}),
}
CONFIGS: dict[type[RatingEstimator], type[TrainingConfig]] = {MFDMC: MFDMCConfig, FunkMF: FunkMFConfig}
UNKNOWN = [999, "nobody", None, float("nan"), 1.5]


@pytest.fixture(params=MODELS)
def make(request: pytest.FixtureRequest) -> Callable[..., RatingEstimator]:
    """Makes a small estimator of either kind."""
    return MODELS[request.param]


@pytest.fixture(scope="module")
def ratings() -> Ratings:
    """250 ratings of 30 users and 20 items, ids from 0, each of which has a rating."""
    planted = make_planted_ratings(30, 20, 250, seed=1)
    return Ratings(planted.users - 1, planted.items - 1, planted.ratings)


@pytest.fixture(params=MODELS, scope="module")
def fitted(request: pytest.FixtureRequest, ratings: Ratings) -> RatingEstimator:
    """A fitted model of either kind; not to be changed."""
    return MODELS[request.param]().fit(ratings)


@pytest.fixture(scope="module")
def mfdmc(ratings: Ratings) -> MFDMC:
    """A fitted MFDMC with pruned clusters; not to be changed."""
    model = MFDMC(n_views=3, n_clusters=5, epochs=5, prune_start=2, prune_threshold=0.19).fit(ratings)
    assert model.history_.prune_events
    return model


def pairs_of(ratings: Ratings) -> np.ndarray:
    return np.column_stack([ratings.users, ratings.items])


def toy_rating(user: int, item: int) -> float:
    """Two tastes: everybody loves the items of the own taste and dislikes the others, without exception."""
    return 5.0 if user // 4 == item // 4 else 1.0


TOY_MFDMC: dict[str, Any] = {
    "n_views": 2,
    "n_clusters": 3,
    "prune": False,
    "epochs": 150,
    "learning_rate": 0.03,
    "learning_rate_centers": 0.06,
    "learning_rate_biases": 0.01,
    "weight_spread": 0.05,
    "weight_proximity": 0.0,
    "weight_entropy": 0.0,
    "weight_l2": 0.02,
    "seed": 3,
}
TOY_FUNKMF: dict[str, Any] = {
    "n_factors": 3,
    "epochs": 150,
    "factor_scale": 0.1,
    "seed": 0,
    "learning_rate": 0.05,
    "learning_rate_biases": 0.01,
    "weight_l2": 0.02,
}
# all that the answers depend on is stated, so that new default values do not change them
TOY_MODELS: dict[str, Callable[[], RatingEstimator]] = {
    "mfdmc-concat": lambda: MFDMC(**TOY_MFDMC),
    "mfdmc-sum": lambda: MFDMC(combine="sum", **TOY_MFDMC),
    "mfdmc-unbiased": lambda: MFDMC(biases=False, **TOY_MFDMC),
    "funkmf": lambda: FunkMF(**TOY_FUNKMF),
    "funkmf-unbiased": lambda: FunkMF(biases=False, **TOY_FUNKMF),
}


@pytest.fixture(params=TOY_MODELS, scope="module")
def toy(request: pytest.FixtureRequest) -> RatingEstimator:
    """A model of the toy ratings without those of user u for items u and (u + 4) % 8: one of each taste."""
    pairs = [(u, i) for u in range(8) for i in range(8) if i % 4 != u % 4]
    return TOY_MODELS[request.param]().fit(pairs, [toy_rating(*pair) for pair in pairs])


class TestToy:
    """A rating matrix whose right answers are known, for every kind of model."""

    def test_predictions_of_the_missing_ratings(self, toy: RatingEstimator) -> None:
        users, items = np.repeat(range(8), 2), np.array([(u + k) % 8 for u in range(8) for k in (0, 4)])
        expected = [toy_rating(u, i) for u, i in zip(users, items, strict=True)]
        np.testing.assert_allclose(toy.predict(users, items), expected, atol=0.6)

    def test_the_first_recommendation_is_the_missing_item_of_the_own_taste(self, toy: RatingEstimator) -> None:
        top = toy.recommend(range(8), 3)
        assert top.items.tolist() == [[u, (u + 4) % 8, None] for u in range(8)]
        assert (top.scores[:, 0] > 4).all()
        assert (top.scores[:, 1] < 2).all()
        assert np.isnan(top.scores[:, 2]).all()

    def test_the_best_items_are_those_of_the_own_taste(self, toy: RatingEstimator) -> None:
        top = toy.recommend(range(8), 4, exclude_seen=False)
        for user, items in enumerate(top.items.tolist()):
            assert sorted(items) == [0, 1, 2, 3] if user < 4 else [4, 5, 6, 7]

    def test_the_nearest_items_are_those_of_the_same_taste(self, toy: RatingEstimator) -> None:
        for item in range(8):
            similar = toy.similar_items(item, 7)
            assert {i // 4 for i in similar.items[:3].tolist()} == {item // 4}
            assert similar.scores[2] > similar.scores[3] + 0.2


class TestScikitLearn:
    """Estimators keep the rules of scikit-learn."""

    @pytest.mark.parametrize("kind", [MFDMC, FunkMF])
    def test_parameters_and_defaults_are_those_of_the_config(self, kind: type[RatingEstimator]) -> None:
        config = CONFIGS[kind]()
        assert kind().get_params() == config.to_dict()
        parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
        assert {p.name for p in parameters} == {field.name for field in dataclasses.fields(config)}
        assert {p.kind for p in parameters} == {inspect.Parameter.KEYWORD_ONLY}

    @pytest.mark.parametrize("kind", [MFDMC, FunkMF])
    def test_every_parameter_arrives(self, kind: type[RatingEstimator]) -> None:
        markers = {name: object() for name in kind().get_params()}
        assert kind(**markers).get_params() == markers
        model = kind()
        assert model.set_params(**markers) is model
        assert model.get_params() == markers

    def test_clone_is_unfitted_and_has_the_same_settings(self, fitted: RatingEstimator) -> None:
        copied = clone(fitted)
        assert type(copied) is type(fitted)
        assert copied.get_params() == fitted.get_params()
        with pytest.raises(NotFittedError):
            copied.predict(1, 1)

    @pytest.mark.parametrize("how", ["deepcopy", "pickle"])
    def test_copies_predict_the_same(self, fitted: RatingEstimator, mfdmc: MFDMC, how: str) -> None:
        for model in (fitted, mfdmc):
            copied = copy.deepcopy(model) if how == "deepcopy" else pickle.loads(pickle.dumps(model))
            np.testing.assert_array_equal(copied.predict(3, range(20)), model.predict(3, range(20)))

    def test_it_is_a_regressor_that_prints_its_settings(self, make: Callable[..., RatingEstimator]) -> None:
        model = make(seed=7)
        assert is_regressor(model)
        assert "seed=7" in repr(model)

    def test_unknown_parameters_are_refused(self, make: Callable[..., RatingEstimator]) -> None:
        with pytest.raises(ValueError, match="learning_rat"):
            make().set_params(learning_rat=0.1)
        with pytest.raises(TypeError, match="learning_rat"):
            make(learning_rat=0.1)

    def test_what_needs_a_fit_says_so(self, make: Callable[..., RatingEstimator], tmp_path: Path) -> None:
        model = make()
        calls: list[Callable[[], Any]] = [
            lambda: model.predict(1, 1),
            lambda: model.evaluate(([1], [1], [1.0])),
            lambda: model.recommend(1),
            lambda: model.similar_items(1),
            lambda: model.save(tmp_path / "model"),
            lambda: model.score([[1, 1]], [1]),
            lambda: check_is_fitted(model),
        ]
        if isinstance(model, MFDMC):
            calls += [lambda: model.clusters("user"), lambda: model.memberships("item")]
        for call in calls:
            with pytest.raises(NotFittedError, match="not fitted yet"):
                call()
        assert not list(tmp_path.iterdir())

    def test_fit_returns_self_and_sets_the_documented_attributes(
        self, make: Callable[..., RatingEstimator], ratings: Ratings
    ) -> None:
        model = make()
        assert model.fit(ratings) is model
        check_is_fitted(model)
        assert isinstance(model.model_, torch.nn.Module)
        assert model.users_.ids.tolist() == list(range(30))
        assert model.items_.ids.tolist() == list(range(20))
        assert model.rating_scale_ == (ratings.ratings.min(), ratings.ratings.max())
        assert [record.epoch for record in model.history_.epochs] == [1, 2, 3]

    def test_cross_val_score(self, make: Callable[..., RatingEstimator], ratings: Ratings) -> None:
        x, y, folds = pairs_of(ratings), ratings.ratings, KFold(3, shuffle=True, random_state=0)
        scores = cross_val_score(make(), x, y, cv=folds, scoring="neg_root_mean_squared_error", error_score="raise")
        for score, (train, test) in zip(scores, folds.split(x), strict=True):
            errors = make().fit(ratings.take(train)).evaluate(ratings.take(test))
            assert -score == pytest.approx(errors["rmse"], rel=1e-6)

    def test_grid_search(self, ratings: Ratings) -> None:
        # the item alone decides the rating, so a model that learns no biases to speak of must lose
        x, y = pairs_of(ratings), 1.0 + ratings.items % 5
        grid = {"learning_rate_biases": [1e-9, 0.1]}
        search = GridSearchCV(FunkMF(n_factors=4, epochs=40), grid, cv=3, scoring="r2", error_score="raise").fit(x, y)
        assert search.best_params_ == {"learning_rate_biases": 0.1}
        expected = FunkMF(n_factors=4, epochs=40, learning_rate_biases=0.1).fit(x, y).predict(x)
        np.testing.assert_array_equal(search.predict(x), expected)

    def test_score_is_the_coefficient_of_determination(self, fitted: RatingEstimator, ratings: Ratings) -> None:
        rmse = fitted.evaluate(ratings)["rmse"]
        expected = 1 - rmse**2 / ratings.ratings.var()
        assert fitted.score(pairs_of(ratings), ratings.ratings) == pytest.approx(expected, rel=1e-6)


class TestFit:
    """What training accepts, and what it refuses."""

    @pytest.mark.parametrize("kind", ["ratings", "path", "str-path", "parquet", "pandas", "polars", "pyarrow", "arrays",
                                      "lists", "matrix", "sparse"])  # fmt: skip
    def test_every_kind_of_table(self, ratings: Ratings, tmp_path: Path, kind: str) -> None:
        r = ratings
        table = pa.table({"user_id": r.users, "item_id": r.items, "rating": r.ratings})
        csv, parquet = tmp_path / "ratings.csv", tmp_path / "ratings.parquet"
        table.to_pandas().to_csv(csv, index=False)
        pq.write_table(table, parquet)
        source = {
            "ratings": r,
            "path": csv,
            "str-path": str(csv),
            "parquet": parquet,
            "pandas": table.to_pandas(),
            "polars": pl.DataFrame(table),
            "pyarrow": table,
            "arrays": (r.users, r.items, r.ratings),
            "lists": [r.users.tolist(), r.items.tolist(), r.ratings.tolist()],
            "matrix": np.column_stack([r.users, r.items, r.ratings]),
            "sparse": scipy.sparse.csr_matrix((r.ratings, (r.users, r.items))),
        }[kind]
        self.assert_like(FunkMF(n_factors=4, epochs=3).fit(source), ratings)

    @pytest.mark.parametrize("kind", ["array", "float-array", "text-array", "pairs", "pandas", "polars", "pyarrow"])
    @pytest.mark.parametrize("target", ["array", "list", "pandas", "polars"])
    def test_every_kind_of_pairs_and_target(self, ratings: Ratings, kind: str, target: str) -> None:
        x = self.pairs(pairs_of(ratings), kind)
        y = {
            "array": ratings.ratings,
            "list": ratings.ratings.tolist(),
            "pandas": pd.Series(ratings.ratings, index=range(7, 7 + len(ratings))),
            "polars": pl.Series(ratings.ratings),
        }[target]
        self.assert_like(FunkMF(n_factors=4, epochs=3).fit(x, y), ratings)

    @pytest.mark.parametrize("kind", ["array", "float-array", "text-array", "pairs", "pandas", "polars", "pyarrow"])
    def test_every_kind_of_pairs_can_be_predicted(self, fitted: RatingEstimator, ratings: Ratings, kind: str) -> None:
        expected = fitted.predict(ratings.users, ratings.items)
        predictions, known = fitted.predict(self.pairs(pairs_of(ratings), kind), return_known=True)
        np.testing.assert_array_equal(predictions, expected)
        assert known.all()

    @pytest.mark.parametrize("frame", ["pandas-text", "pandas-category", "pandas-nullable", "polars-text"])
    def test_frames_with_ids_of_both_kinds(self, ratings: Ratings, frame: str) -> None:
        users, items = ratings.users, [f"item {i:02}" for i in ratings.items]
        pandas = pd.DataFrame({"u": users, "i": items})
        x = {
            "pandas-text": lambda: pandas,
            "pandas-category": lambda: pandas.astype("category"),
            "pandas-nullable": lambda: pandas.astype({"u": "Int64", "i": "string"}),
            "polars-text": lambda: pl.DataFrame({"u": users, "i": items}),
        }[frame]()
        model = FunkMF(n_factors=4, epochs=3).fit(x, ratings.ratings)
        assert (model.users_.kind, model.items_.kind) == ("int", "str")
        expected = FunkMF(n_factors=4, epochs=3).fit(ratings).predict(ratings.users, ratings.items)
        np.testing.assert_array_equal(model.predict(x), expected)

    @staticmethod
    def pairs(pairs: np.ndarray, kind: str) -> Any:
        return {
            "array": lambda: pairs,
            "float-array": lambda: pairs.astype(float),
            "text-array": lambda: pairs.astype(str),
            "pairs": lambda: [tuple(pair) for pair in pairs.tolist()],
            "pandas": lambda: pd.DataFrame(pairs, columns=["u", "i"], index=range(5, 5 + len(pairs))),
            "polars": lambda: pl.DataFrame(pairs, schema=["u", "i"]),
            "pyarrow": lambda: pa.table({"u": pairs[:, 0], "i": pairs[:, 1]}),
        }[kind]()

    @staticmethod
    def assert_like(model: RatingEstimator, ratings: Ratings) -> None:
        """The model is the one that these ratings give, but for the rounding of their mean."""
        expected = FunkMF(n_factors=4, epochs=3).fit(ratings)
        assert model.users_.ids.tolist() == expected.users_.ids.tolist()
        assert model.items_.ids.tolist() == expected.items_.ids.tolist()
        users, items = np.repeat(np.arange(30), 20), np.tile(np.arange(20), 30)
        np.testing.assert_allclose(model.predict(users, items), expected.predict(users, items), rtol=1e-5)

    def test_the_seed_decides(self, make: Callable[..., RatingEstimator], ratings: Ratings) -> None:
        first, second, other = (make(seed=seed).fit(ratings).predict(pairs_of(ratings)) for seed in (3, 3, 4))
        np.testing.assert_array_equal(first, second)
        assert (first != other).any()

    def test_fitting_again_starts_anew(self, make: Callable[..., RatingEstimator], ratings: Ratings) -> None:
        model = make().fit(ratings.take(np.arange(100)))
        np.testing.assert_array_equal(
            model.fit(ratings).predict(pairs_of(ratings)), make().fit(ratings).predict(pairs_of(ratings))
        )

    def test_a_failed_fit_leaves_the_former_model(self, ratings: Ratings) -> None:
        model = FunkMF(epochs=2).fit(ratings)
        before = model.predict(3, range(20))
        with pytest.raises(DataError):
            model.fit(([1, 1], [1, 2], [1.0, 2.0]))
        np.testing.assert_array_equal(model.predict(3, range(20)), before)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"epochs": 0}, "epochs = 0: must be 1 or more"),
            ({"epochs": "many"}, "epochs = 'many': must be an integer"),
            ({"learning_rate": -1.0}, "learning_rate = -1.0: must be above 0"),
            ({"weight_l2": "0:1"}, "weight_l2 = '0:1'"),
            ({"biases": 1}, "biases = 1: must be true or false"),
            ({"validation_fraction": 1.0}, "validation_fraction = 1.0"),
            ({"patience": 3}, "patience needs validation ratings"),
            ({"keep": "best"}, "keep='best' needs validation ratings"),
            ({"backend": "gpu"}, "gpu"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_wrong_settings_are_told_by_fit(
        self, make: Callable[..., RatingEstimator], ratings: Ratings, settings: dict[str, Any], message: str
    ) -> None:
        model = make(**settings)  # scikit-learn checks nothing in __init__ either
        with pytest.raises((ConfigError, BackendUnavailable), match=message):
            model.fit(ratings)

    def test_numpy_scalars_are_settings_too(self, ratings: Ratings) -> None:
        model = FunkMF(epochs=np.int64(2), learning_rate=np.float32(0.5), seed=np.uint8(3)).fit(ratings)
        expected = FunkMF(epochs=2, learning_rate=0.5, seed=3).fit(ratings)
        np.testing.assert_array_equal(model.predict(3, range(20)), expected.predict(3, range(20)))

    def test_more_clusters_than_entities(self, ratings: Ratings) -> None:
        with pytest.raises(ConfigError, match=r"n_clusters = 21.* only 20 items; set n_clusters to 20 or less"):
            MFDMC(n_clusters=21, epochs=1).fit(ratings)
        assert MFDMC(n_clusters=20, epochs=1).fit(ratings).model_.clusters("item") == [20] * 8

    @pytest.mark.parametrize(("users", "items", "side"), [([5, 5], [1, 2], "user"), ([1, 2], ["x", "x"], "item")])
    def test_a_single_user_or_item_cannot_be_factorized(
        self, make: Callable[..., RatingEstimator], users: list[Any], items: list[Any], side: str
    ) -> None:
        with pytest.raises(DataError, match=f"only one {side} .*--{side}-column"):
            make().fit((users, items, [1.0, 2.0]))

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), None], ids=repr)
    def test_a_rating_that_is_no_number(self, make: Callable[..., RatingEstimator], value: float | None) -> None:
        with pytest.raises(DataError, match="row 2, column 3") as caught:
            make().fit(([1, 2, 3], [1, 2, 3], [1.0, value, 2.0]))
        assert caught.value.row == 2
        with pytest.raises(DataError, match="row 2, column 3"):
            make().fit([[1, 1], [2, 2], [3, 3]], [1.0, value, 2.0])

    @pytest.mark.parametrize(
        ("x", "y"),
        [
            ([[1, 1, 1], [2, 2, 2]], [1.0, 2.0]),
            ([1, 2, 3], [1.0, 2.0, 3.0]),
            ([[1, 1], [2, 2]], [1.0, 2.0, 3.0]),
            ([[1, 1], [2, 2]], [[1.0], [2.0]]),
            (np.empty((0, 2)), []),
            (pd.DataFrame({"u": [1, 2]}), [1.0, 2.0]),
        ],
        ids=["three-columns", "one-column", "longer-target", "two-dimensional-target", "empty", "narrow-frame"],
    )
    def test_pairs_that_are_none(self, make: Callable[..., RatingEstimator], x: Any, y: Any) -> None:
        with pytest.raises(DataError):
            make().fit(x, y)

    def test_a_missing_file_is_named(self, make: Callable[..., RatingEstimator], tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"nothing\.csv: no such file"):
            make().fit(tmp_path / "nothing.csv")

    @pytest.mark.parametrize("kind", [tuple, list, np.array])
    def test_the_rating_scale_can_be_stated(
        self, make: Callable[..., RatingEstimator], ratings: Ratings, kind: Callable[[Any], Any]
    ) -> None:
        model = make().fit(ratings, rating_scale=kind([0, 9]))
        assert model.rating_scale_ == (0.0, 9.0)
        expected = make().fit(ratings, rating_scale=(0.0, 9.0)).predict(pairs_of(ratings))
        np.testing.assert_array_equal(model.predict(pairs_of(ratings)), expected)

    def test_ratings_outside_the_stated_scale(self, make: Callable[..., RatingEstimator], ratings: Ratings) -> None:
        row = int(np.argmax(ratings.ratings > 4)) + 1
        with pytest.raises(DataError, match=f"row {row}, column rating: rating 5.0 is outside the rating scale 1..4"):
            make().fit(ratings, rating_scale=(1, 4))
        with pytest.raises(DataError, match="outside the rating scale"):
            make().fit(ratings, validation=([0], [0], [9.0]), rating_scale=(1, 5))

    @pytest.mark.parametrize("scale", [(5, 1), (1, 1), (1, math.nan), (1,), "1:5"], ids=repr)
    def test_a_scale_that_is_none(self, make: Callable[..., RatingEstimator], ratings: Ratings, scale: Any) -> None:
        with pytest.raises(ConfigError, match="rating_scale"):
            make().fit(ratings, rating_scale=scale)

    def test_equal_ratings_are_predicted_as_they_are(self, make: Callable[..., RatingEstimator]) -> None:
        model = make(n_clusters=2) if make is MODELS["mfdmc"] else make()
        model.fit(([1, 2, 1], [1, 2, 2], [3.0, 3.0, 3.0]))
        assert model.rating_scale_ == (3.0, 3.0)
        np.testing.assert_array_equal(model.predict([1, 2, 9], [1, 1, 9]), np.float32([3, 3, 3]))

    def test_diverging_is_told(self, ratings: Ratings) -> None:
        with pytest.raises(TrainingDiverged, match="epoch"):
            MFDMC(n_clusters=3, epochs=20, learning_rate_centers=1e30).fit(ratings)

    def test_callbacks_see_the_training(self, make: Callable[..., RatingEstimator], ratings: Ratings) -> None:
        seen: list[Any] = []

        class Watch(Callback):
            def on_epoch_end(self, record: EpochRecord, model: Any) -> bool:
                seen.append(record.epoch)
                return record.epoch == 2

        model = make(epochs=5).fit(ratings, callbacks=[Watch()])
        assert seen == [1, 2]
        assert model.history_.kept_epoch == 2

    def test_a_progress_bar_changes_nothing(
        self, make: Callable[..., RatingEstimator], ratings: Ratings, capsys: pytest.CaptureFixture[str]
    ) -> None:
        model = make().fit(ratings, progress=True)
        assert capsys.readouterr().out == ""
        np.testing.assert_array_equal(model.predict(pairs_of(ratings)), make().fit(ratings).predict(pairs_of(ratings)))

    def test_adagrad_learns(self, make: Callable[..., RatingEstimator], ratings: Ratings) -> None:
        model = make(optimizer="adagrad", epochs=30).fit(ratings)
        assert model.evaluate(ratings)["rmse"] < 0.9 * ratings.ratings.std()  # which is the global mean's


class TestValidation:
    """Ratings that are watched and never trained on."""

    def test_the_parameters_do_not_depend_on_it(self, make: Callable[..., RatingEstimator], ratings: Ratings) -> None:
        alone = make().fit(ratings)
        watched = make().fit(ratings, validation=([0, 1], [0, 1], [1.0, 5.0]))
        assert all(record.valid_rmse is None for record in alone.history_.epochs)
        assert all(record.valid_rmse is not None for record in watched.history_.epochs)
        np.testing.assert_array_equal(watched.predict(pairs_of(ratings)), alone.predict(pairs_of(ratings)))

    def test_unknown_ids_count_by_the_fallback(self, make: Callable[..., RatingEstimator], ratings: Ratings) -> None:
        strangers = (["nobody", "3", "nobody"], ["3", "nothing", "nothing"], [1.0, 5.0, 2.0])
        model = make().fit(ratings, validation=strangers)
        last = model.history_.epochs[-1]
        errors = model.predict(*strangers[:2]) - np.array(strangers[2])
        assert last.valid_rmse == pytest.approx(np.sqrt((errors**2).mean()), rel=1e-6)
        assert last.valid_mae == pytest.approx(np.abs(errors).mean(), rel=1e-6)
        assert len(model.users_) == 30

    def test_a_fraction_is_held_out_by_the_seed(self, make: Callable[..., RatingEstimator], ratings: Ratings) -> None:
        model = make(validation_fraction=0.2, seed=5).fit(ratings)
        _, train, held_out = holdout(ratings, 0.2, 5)
        assert len(held_out) == 50
        expected = make(seed=5).fit(train, validation=held_out)
        valid = [[record.valid_rmse for record in m.history_.epochs] for m in (model, expected)]
        assert valid[0] == valid[1]
        np.testing.assert_array_equal(model.predict(pairs_of(ratings)), expected.predict(pairs_of(ratings)))

    def test_given_ratings_replace_the_fraction(self, make: Callable[..., RatingEstimator], ratings: Ratings) -> None:
        model = make(validation_fraction=0.5).fit(ratings, validation=ratings.take(np.arange(10)))
        np.testing.assert_array_equal(model.predict(pairs_of(ratings)), make().fit(ratings).predict(pairs_of(ratings)))

    def test_the_best_epoch_can_be_kept(self, make: Callable[..., RatingEstimator], ratings: Ratings) -> None:
        # at this rate the training overshoots, so that the last epoch is not the best one
        settings = {"epochs": 12, "learning_rate": 0.5, "learning_rate_schedule": "constant", "weight_l2": 0.0}
        _, train, watched = holdout(ratings, 0.3, 0)
        model = make(keep="best", **settings).fit(train, validation=watched)
        valid = [record.valid_rmse for record in model.history_.epochs]
        best = int(np.argmin(valid)) + 1
        assert model.history_.kept_epoch == best < 12
        assert model.evaluate(watched)["rmse"] == pytest.approx(valid[best - 1], rel=1e-6)
        patient = make(keep="best", patience=2, **settings).fit(train, validation=watched)
        assert "no better validation RMSE in 2 epochs" in patient.history_.stop_reason
        assert len(patient.history_.epochs) == patient.history_.kept_epoch + 2


class TestPredict:
    """Predictions of known and unknown pairs."""

    def test_the_result_is_a_clipped_float32_vector(self, fitted: RatingEstimator, ratings: Ratings) -> None:
        predictions = fitted.predict(ratings.users, ratings.items)
        assert predictions.dtype == np.float32
        assert predictions.shape == (len(ratings),)
        lowest, highest = fitted.rating_scale_
        assert ((predictions >= lowest) & (predictions <= highest)).all()
        encoded = RatingsDataset.encode(ratings, fitted.users_, fitted.items_)
        pairs = (torch.from_numpy(idx).long() for idx in (encoded.user_idx, encoded.item_idx))
        scores = fitted.model_.score_pairs(*pairs)
        np.testing.assert_allclose(predictions, scores.clip(lowest, highest), rtol=1e-6)

    @pytest.mark.parametrize("user", UNKNOWN, ids=repr)
    def test_unknown_ids_get_the_documented_fallback(
        self, fitted: RatingEstimator, ratings: Ratings, user: Any
    ) -> None:
        mean = ratings.ratings.mean()
        user_bias, item_bias = fitted.model_.bias("user"), fitted.model_.bias("item")
        assert user_bias is not None
        assert item_bias is not None
        clipped = np.float32([mean + item_bias[3], mean + user_bias[3], mean]).clip(*fitted.rating_scale_)
        predictions, known = fitted.predict([user, 3, user, 3], [3, user, user, 3], return_known=True)
        np.testing.assert_allclose(predictions[:3], clipped, rtol=1e-6)
        assert known.dtype == bool
        assert known.tolist() == [False, False, False, True]

    def test_without_biases_every_unknown_pair_gets_the_mean(
        self, make: Callable[..., RatingEstimator], ratings: Ratings
    ) -> None:
        model = make(biases=False).fit(ratings)
        predictions = model.predict(["nobody", 3, "nobody"], [3, "nothing", "nothing"])
        np.testing.assert_allclose(predictions, [ratings.ratings.mean()] * 3, rtol=1e-6)
        assert not np.isclose(model.predict(3, 3), ratings.ratings.mean())

    def test_single_ids_are_repeated(self, fitted: RatingEstimator) -> None:
        for single in (3, "3", np.int64(3), 3.0):
            np.testing.assert_array_equal(fitted.predict(single, [1, 2, 4]), fitted.predict([3, 3, 3], [1, 2, 4]))
            np.testing.assert_array_equal(fitted.predict([1, 2, 4], single), fitted.predict([1, 2, 4], [3, 3, 3]))
        assert fitted.predict(3, 4).shape == (1,)
        assert fitted.predict(3, []).shape == fitted.predict([], []).shape == (0,)
        predictions, known = fitted.predict("nobody", [1, 2], return_known=True)
        assert len(predictions) == len(known) == 2
        assert not known.any()

    @pytest.mark.parametrize("kind", [list, tuple, np.array, pd.Series, pl.Series, pa.array], ids=lambda k: k.__name__)
    def test_every_kind_of_vector(self, fitted: RatingEstimator, kind: Callable[[list[int]], Any]) -> None:
        np.testing.assert_array_equal(fitted.predict(kind([5, 1]), kind([2, 3])), fitted.predict([5, 1], [2, 3]))
        np.testing.assert_array_equal(fitted.predict(5, kind([2, 3])), fitted.predict([5, 5], [2, 3]))

    def test_pairs_that_are_none(self, fitted: RatingEstimator) -> None:
        with pytest.raises(DataError, match="equally long, got 2 and 3"):
            fitted.predict([1, 2], [1, 2, 3])
        for pairs in ([1, 2], [[1, 2, 3]], 5, pd.DataFrame({"a": [1]}), pl.DataFrame({"a": [1]})):
            with pytest.raises(DataError, match="two columns"):
                fitted.predict(pairs)

    def test_evaluate_counts_everything(self, fitted: RatingEstimator) -> None:
        users, items, ratings = [1, 2, "nobody", "nobody"], [1, "nothing", 3, "nothing"], [4.0, 2.0, 5.0, 1.0]
        table = ([str(u) for u in users], [str(i) for i in items], ratings)
        errors = fitted.predict(users, items).astype(float) - np.array(ratings)
        assert fitted.evaluate(table) == {
            "rmse": pytest.approx(math.sqrt((errors**2).mean())),
            "mae": pytest.approx(np.abs(errors).mean()),
            "ratings": 4,
            "unknown_users": 2,
            "unknown_items": 2,
        }


class TestRecommend:
    """Recommendations agree with the scores of all items."""

    @staticmethod
    def scores(model: RatingEstimator, user: int) -> np.ndarray:
        """Unclipped scores of every item, in float64."""
        items = torch.arange(len(model.items_))
        return model.model_.score_pairs(torch.full_like(items, user), items).double().numpy()

    @staticmethod
    def seen(ratings: Ratings, user: int) -> set[int]:
        return set(ratings.items[ratings.users == user].tolist())

    @pytest.mark.parametrize("exclude", [True, False], ids=["unseen", "all"])
    def test_the_order_is_that_of_the_scores(self, fitted: RatingEstimator, ratings: Ratings, exclude: bool) -> None:
        for user in (0, 7, 29):
            scores = self.scores(fitted, user)
            candidates = set(range(20)) - (self.seen(ratings, user) if exclude else set())
            expected = sorted(candidates, key=lambda i: -scores[i])
            top = fitted.recommend(user, 20, exclude_seen=exclude)
            assert top.items.tolist() == expected
            assert top.known is True
            assert top.scores.dtype == np.float32
            np.testing.assert_allclose(top.scores, scores[expected].clip(*fitted.rating_scale_), rtol=1e-5)
            assert fitted.recommend(user, 3, exclude_seen=exclude).items.tolist() == expected[:3]

    def test_scores_are_predictions(self, fitted: RatingEstimator) -> None:
        for user in (3, "nobody"):
            top = fitted.recommend(user, 20)
            np.testing.assert_allclose(top.scores, fitted.predict(user, top.items), rtol=1e-5)

    def test_several_users_get_a_row_each(self, fitted: RatingEstimator) -> None:
        top = fitted.recommend([7, "3", 999], 4)
        assert top.items.shape == top.scores.shape == (3, 4)
        assert top.known.tolist() == [True, True, False]
        for row, user in enumerate((7, 3, 999)):
            alone = fitted.recommend(user, 4)
            assert top.items[row].tolist() == alone.items.tolist()
            np.testing.assert_allclose(top.scores[row], alone.scores, rtol=1e-6)

    @pytest.mark.parametrize("kind", [tuple, np.array, pd.Series, pl.Series], ids=lambda k: k.__name__)
    def test_users_of_every_kind(self, fitted: RatingEstimator, kind: Callable[[list[int]], Any]) -> None:
        assert fitted.recommend(kind([7, 3]), 4).items.tolist() == fitted.recommend([7, 3], 4).items.tolist()
        assert fitted.recommend(kind([7]), 4).items.shape == (1, 4)

    def test_no_users_get_no_rows(self, fitted: RatingEstimator) -> None:
        top = fitted.recommend([], 4)
        assert len(top.items) == len(top.scores) == len(top.known) == 0

    def test_fewer_items_than_wanted(self, make: Callable[..., RatingEstimator]) -> None:
        users, items = ["all", "all", "all", "two", "two", "one"], ["a", "b", "c", "a", "b", "a"]
        settings = {"n_clusters": 2} if make is MODELS["mfdmc"] else {}
        model = make(**settings).fit((users, items, [1.0, 2.0, 3.0, 4.0, 5.0, 1.0]))
        assert model.recommend("all").items.tolist() == []
        assert model.recommend("two").items.tolist() == ["c"]
        assert sorted(model.recommend("one", 50).items) == ["b", "c"]
        several = model.recommend(["all", "two", "one"], 3)
        assert several.items[:2].tolist() == [[None, None, None], ["c", None, None]]
        assert np.isnan(several.scores).tolist() == [[item is None for item in row] for row in several.items]

    @pytest.mark.parametrize("n", [0, -1])
    def test_at_least_one_item(self, fitted: RatingEstimator, n: int) -> None:
        with pytest.raises(ConfigError, match=f"n = {n}: must be 1 or more"):
            fitted.recommend(1, n)
        with pytest.raises(ConfigError, match=f"n = {n}: must be 1 or more"):
            fitted.similar_items(1, n)

    @pytest.mark.parametrize("user", UNKNOWN, ids=repr)
    def test_unknown_users_get_the_items_with_the_highest_bias(self, fitted: RatingEstimator, user: Any) -> None:
        bias = fitted.model_.bias("item")
        assert bias is not None
        top = fitted.recommend(user, 20)
        assert top.known is False
        assert top.items.tolist() == np.argsort(-bias.numpy(), kind="stable").tolist()

    def test_unknown_users_without_biases_get_the_mean_in_order_of_the_items(
        self, make: Callable[..., RatingEstimator], ratings: Ratings
    ) -> None:
        top = make(biases=False).fit(ratings).recommend(["nobody", 3], 5)
        assert top.items[0].tolist() == [0, 1, 2, 3, 4]
        np.testing.assert_allclose(top.scores[0], [ratings.ratings.mean()] * 5, rtol=1e-6)
        assert (top.scores[1] != top.scores[0]).all()

    def test_without_biases_the_order_is_that_of_the_scores(
        self, make: Callable[..., RatingEstimator], ratings: Ratings
    ) -> None:
        model = make(biases=False).fit(ratings)
        scores = self.scores(model, 3)
        top = model.recommend(3, 20, exclude_seen=False)
        assert top.items.tolist() == np.argsort(-scores).tolist()
        np.testing.assert_allclose(top.scores, scores[top.items.astype(int)].clip(1, 5), rtol=1e-5)

    def test_ties_and_clipped_scores_keep_the_order_of_the_model(self, ratings: Ratings) -> None:
        model = FunkMF(epochs=1).fit(ratings)
        with torch.no_grad():
            for parameter in model.model_.parameters():
                parameter.zero_()
            model.model_.item_bias[[12, 4, 9]] = torch.tensor([30.0, 20.0, 20.0])
        top = model.recommend([3, "nobody"], 6, exclude_seen=False)
        # 12 is best though all three are clipped to 5; equal scores come in the order of the items
        assert top.items.tolist() == [[12, 4, 9, 0, 1, 2]] * 2
        assert top.scores[:, :3].tolist() == [[5.0, 5.0, 5.0]] * 2

    def test_similar_items_have_the_highest_cosine(self, fitted: RatingEstimator) -> None:
        z = fitted.model_.embeddings("item").double().numpy()
        unit = z / np.linalg.norm(z, axis=1, keepdims=True)
        for item in (0, 7, 19):
            cosines = unit @ unit[item]
            expected = [i for i in np.argsort(-cosines).tolist() if i != item]
            similar = fitted.similar_items(item, 50)
            assert similar.items.tolist() == expected
            assert similar.known is True
            np.testing.assert_allclose(similar.scores, cosines[expected], atol=1e-6)
            assert fitted.similar_items(str(item), 2).items.tolist() == expected[:2]

    @pytest.mark.parametrize("item", UNKNOWN, ids=repr)
    def test_unknown_items_have_no_neighbours(self, fitted: RatingEstimator, item: Any) -> None:
        similar = fitted.similar_items(item)
        assert len(similar.items) == len(similar.scores) == 0
        assert similar.known is False

    @pytest.mark.parametrize("items", [[1, 2], []], ids=["several", "none"])
    def test_similar_items_takes_a_single_item(self, fitted: RatingEstimator, items: list[int]) -> None:
        with pytest.raises((ConfigError, DataError), match="item"):
            fitted.similar_items(items)


class TestClusters:
    """Reports of clusters and memberships."""

    @pytest.mark.parametrize(("side", "n"), [("user", 30), ("item", 20)])
    def test_summaries_agree_with_the_memberships(self, mfdmc: MFDMC, side: Any, n: int) -> None:
        clusters, memberships = mfdmc.clusters(side, top=4), mfdmc.memberships(side)
        assert len(memberships) == 3
        assert [weights.shape[1] for weights in memberships] == mfdmc.model_.clusters(side)
        for view, weights in enumerate(memberships):
            assert weights.dtype == np.float32
            np.testing.assert_allclose(weights.sum(1), np.ones(n), rtol=1e-6)
            found = [c for c in clusters if c.view == view]
            assert len(found) == weights.shape[1]
            assert sum(c.usage for c in found) == pytest.approx(1, rel=1e-6)
            assert sum(c.size for c in found) == n
            for column, cluster in enumerate(found):
                assert cluster.side == side
                assert cluster.usage == pytest.approx(weights[:, column].mean(), rel=1e-5)
                assert cluster.size == (weights.argmax(1) == column).sum()
                best = np.sort(weights[:, column])[::-1][:4]
                np.testing.assert_array_equal(np.float32(cluster.top_weights), best)
                np.testing.assert_array_equal(weights[cluster.top_ids, column], best)

    def test_clusters_keep_their_numbers(self, mfdmc: MFDMC) -> None:
        for side in ("user", "item"):
            gone = {(e.view, e.cluster) for e in mfdmc.history_.prune_events if e.side == side}
            left = [(c.view, c.cluster) for c in mfdmc.clusters(side)]
            assert sorted(gone | set(left)) == [(v, k) for v in range(3) for k in range(5)]
            assert len(gone) + len(left) == 15
            assert left == sorted(left)

    def test_more_members_than_there_are(self, mfdmc: MFDMC) -> None:
        for cluster in mfdmc.clusters("item", top=100):
            assert sorted(cluster.top_ids) == list(range(20))
        assert all(c.top_ids == c.top_weights == [] for c in mfdmc.clusters("item", top=0))

    def test_memberships_of_chosen_and_unknown_ids(self, mfdmc: MFDMC) -> None:
        everyone = mfdmc.memberships("user")
        for weights, chosen in zip(everyone, mfdmc.memberships("user", [29, "nobody", "3", None]), strict=True):
            np.testing.assert_array_equal(chosen[[0, 2]], weights[[29, 3]])
            assert np.isnan(chosen[[1, 3]]).all()
            assert not np.isnan(weights).any()
        assert [w.shape[0] for w in mfdmc.memberships("user", 7)] == [1, 1, 1]
        assert [w.shape[0] for w in mfdmc.memberships("user", [])] == [0, 0, 0]

    def test_there_are_two_sides(self, mfdmc: MFDMC) -> None:
        for call in (mfdmc.clusters, mfdmc.memberships):
            with pytest.raises(ConfigError, match="side = 'users': must be 'user' or 'item'"):
                call("users")  # type: ignore[arg-type]

    def test_funkmf_has_no_clusters(self) -> None:
        assert not hasattr(FunkMF(), "clusters")
        assert not hasattr(FunkMF(), "memberships")


@pytest.mark.parametrize("optimizer", ["adam", "adagrad"])
@pytest.mark.parametrize(
    "make_model", [lambda **k: MFDMC(n_views=2, n_clusters=4, prune_start=4, **k), FunkMF], ids=["mfdmc", "funkmf"]
)
def test_the_rating_scale_does_not_matter(make_model: Any, optimizer: str, ratings: Ratings) -> None:
    predicted = []
    for factor, shift in ((1.0, 0.0), (25.0, -25.0)):
        scaled = Ratings(ratings.users, ratings.items, ratings.ratings * factor + shift)
        low, high = (bound * factor + shift for bound in (1.0, 5.0))
        model = make_model(epochs=8, optimizer=optimizer).fit(scaled, rating_scale=(low, high))
        assert model.model_.config.rating_unit == factor
        predicted.append((model.predict(pairs_of(ratings)) - shift) / factor)
    np.testing.assert_allclose(predicted[1], predicted[0], atol=2e-3)
    assert np.abs(predicted[0] - ratings.ratings.mean()).max() > 0.1


def test_the_rating_unit_is_1_where_all_ratings_are_the_same() -> None:
    model = FunkMF(epochs=1).fit((["a", "b"], ["x", "y"], [3.0, 3.0]))
    assert model.model_.config.rating_unit == 1.0
