"""MFDMC that learns from a teacher: every kind of teacher, the pairs it is asked about, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mfdmc_fast import MFDMC, BayesianMF, FunkMF, cross_validate, load_model
from mfdmc_fast.config import PRESETS
from mfdmc_fast.data import Ratings, RatingsDataset, holdout, kfold, make_planted_ratings, official_folds
from mfdmc_fast.data.pairs import sample_pairs
from mfdmc_fast.errors import ConfigError, DataError
from mfdmc_fast.testing import data_folder
from mfdmc_fast.training import Callback

QUICK = BayesianMF(rank=4, sweeps=30, burn_in=10, n_draws=10)
STUDENT: dict[str, Any] = {"n_views": 3, "n_clusters": 4, "epochs": 20, "learning_rate": 0.1, "prune": False}


class Constant:
    """Somebody else's model."""

    def __init__(self, value: float = 3.25, size: int | None = None) -> None:
        self.value, self.size = value, size

    def predict(self, users: Any, items: Any) -> np.ndarray:
        return np.full(self.size or len(users), self.value)


@pytest.fixture(scope="module")
def parts() -> tuple[Ratings, Ratings]:
    _, train, test = holdout(make_planted_ratings(n_users=80, n_items=60, n_ratings=2300, seed=1), 0.2, 1)
    return train, test


@pytest.mark.parametrize(
    "teacher", [QUICK, FunkMF(epochs=10), [QUICK, FunkMF(epochs=10)]], ids=["bayesian", "funkmf", "average"]
)
def test_a_student_predicts_what_its_teacher_does(parts: tuple[Ratings, Ratings], teacher: Any) -> None:
    train, test = parts
    student = MFDMC(**{**STUDENT, "epochs": 40, "n_clusters": 8}, teacher=teacher, pairs_per_rating=5).fit(train)
    alone = teacher if isinstance(teacher, list) else [teacher]
    taught = np.mean([type(t)(**t.get_params()).fit(train).predict(test.users, test.items) for t in alone], axis=0)
    distance = np.sqrt(np.mean((student.predict(test.users, test.items) - taught) ** 2))
    assert distance < 0.35 * taught.std()


def test_a_fitted_teacher_is_asked_and_not_fitted_again(parts: tuple[Ratings, Ratings], tmp_path: Path) -> None:
    train, test = parts
    teacher = FunkMF(epochs=10).fit(train)
    teacher.save(tmp_path / "teacher.safetensors")
    students = [MFDMC(**STUDENT, teacher=t).fit(train) for t in (teacher, str(tmp_path / "teacher.safetensors"))]
    one, other = (s.predict(test.users, test.items) for s in students)
    np.testing.assert_array_equal(one, other)


def test_anything_that_predicts_can_teach(parts: tuple[Ratings, Ratings]) -> None:
    train, test = parts
    student = MFDMC(**{**STUDENT, "epochs": 60}, teacher=Constant()).fit(train)
    assert np.abs(student.predict(test.users, test.items) - 3.25).mean() < 0.1


def test_a_table_of_predictions_can_teach(parts: tuple[Ratings, Ratings]) -> None:
    train, _ = parts
    table = train.users, train.items, np.full(len(train), 2.5)
    student = MFDMC(**{**STUDENT, "epochs": 60}, teacher=table).fit(train)
    assert np.abs(student.predict(train.users, train.items) - 2.5).mean() < 0.1


@pytest.mark.parametrize(
    ("teacher", "error", "match"),
    [
        ([], ConfigError, "at least one"),
        ("custom", ConfigError, "does not hold"),
        (Constant(np.nan), DataError, "NaN"),
        (Constant(3.0, size=1), DataError, "one number a pair"),
        (([10**9], [1], [3.0]), DataError, "without a training rating"),
    ],
)
def test_what_cannot_teach_is_refused(
    parts: tuple[Ratings, Ratings], teacher: Any, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        MFDMC(**STUDENT, teacher=teacher).fit(parts[0])


def test_a_loaded_student_predicts_but_asks_for_its_teacher(parts: tuple[Ratings, Ratings], tmp_path: Path) -> None:
    train, test = parts
    student = MFDMC(**STUDENT, teacher=Constant()).fit(train)
    student.save(tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    pairs = test.users, test.items
    np.testing.assert_array_equal(loaded.predict(*pairs), student.predict(*pairs))
    with pytest.raises(ConfigError, match="custom"):
        loaded.fit(train)


def test_callbacks_hear_of_the_teacher(parts: tuple[Ratings, Ratings]) -> None:
    heard: list[Any] = []

    class Listener(Callback):
        def on_teacher_sweep(self, sweep: int, sweeps: int) -> None:
            heard.append((sweep, sweeps))

        def on_train_start(self, model: Any, n_batches: int, epochs: int) -> None:
            heard.append("student")

    model = MFDMC(**STUDENT, teacher=QUICK).fit(parts[0], callbacks=[Listener()])
    assert heard == [*((sweep, 30) for sweep in range(1, 31)), "student"]
    assert 0 < model.history_.teacher_seconds < model.history_.seconds


def test_the_same_seed_gives_the_same_student(parts: tuple[Ratings, Ratings]) -> None:
    pairs = parts[1].users, parts[1].items
    one, same, other = (MFDMC(**STUDENT, teacher="bayesian", seed=seed).fit(parts[0]) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.predict(*pairs), same.predict(*pairs))
    assert np.abs(one.predict(*pairs) - other.predict(*pairs)).max() > 1e-3


def test_pairs_are_drawn_by_activity(parts: tuple[Ratings, Ratings]) -> None:
    train = RatingsDataset.from_ratings(parts[0])
    users, items = sample_pairs(train, 200_000, 10.0, 0)
    assert (np.diff(users) >= 0).all()
    for drawn, idx, n in ((users, train.user_idx, len(train.users)), (items, train.item_idx, len(train.items))):
        share = np.bincount(idx, minlength=n) + 10.0
        expected = 200_000 * share / share.sum()
        assert (np.abs(np.bincount(drawn, minlength=n) - expected) < 6 * np.sqrt(expected)).all()
    again = sample_pairs(train, 200_000, 10.0, 0)
    np.testing.assert_array_equal(items, again[1])


def test_smoothing_and_seed_change_the_pairs(parts: tuple[Ratings, Ratings]) -> None:
    train = RatingsDataset.from_ratings(parts[0])
    counts = np.bincount(train.item_idx, minlength=len(train.items))
    rare, *_, common = np.argsort(counts)

    def share(smoothing: float, seed: int = 0) -> float:
        items = np.bincount(sample_pairs(train, 100_000, smoothing, seed)[1], minlength=len(counts))
        return float(items[rare] / items[common])

    for smoothing in (1e-9, 20.0, 1e6):
        expected = (counts[rare] + smoothing) / (counts[common] + smoothing)
        assert share(smoothing) == pytest.approx(expected, rel=0.15)
    assert share(20.0, seed=1) != share(20.0)


@pytest.mark.parametrize(("name", "value"), [("pairs_per_rating", 1.0), ("pair_smoothing", 200.0)])
def test_the_settings_of_pairs_change_the_student(parts: tuple[Ratings, Ratings], name: str, value: float) -> None:
    train, test = parts
    teacher = FunkMF(epochs=5).fit(train)
    one, other = (MFDMC(**STUDENT, teacher=teacher, **given).fit(train) for given in ({}, {name: value}))
    pairs = test.users, test.items
    assert np.abs(one.predict(*pairs) - other.predict(*pairs)).max() > 1e-3
    asked: list[int] = []

    class Counting(Constant):
        def predict(self, users: Any, items: Any) -> np.ndarray:
            asked.append(len(users))
            return super().predict(users, items)

    MFDMC(**STUDENT, teacher=Counting(), pairs_per_rating=1.5).fit(train)
    assert sum(asked) == round(1.5 * len(train))


def test_a_list_is_averaged(parts: tuple[Ratings, Ratings]) -> None:
    train, test = parts
    average, alone = (MFDMC(**STUDENT, teacher=t).fit(train) for t in ([Constant(2.0), Constant(4.0)], Constant(3.0)))
    np.testing.assert_array_equal(average.predict(test.users, test.items), alone.predict(test.users, test.items))
    with pytest.raises(ConfigError, match="a Ratings in a list of teachers has no predict; give a table alone"):
        MFDMC(**STUDENT, teacher=[Constant(), train]).fit(train)


def test_a_file_of_predictions_can_teach(parts: tuple[Ratings, Ratings], tmp_path: Path) -> None:
    train, _ = parts
    rows = [f"{u},{i},{2 + k % 3}" for k, (u, i) in enumerate(zip(train.users, train.items, strict=True))]
    (tmp_path / "lesson.csv").write_text("user,item,rating\n" + "\n".join(rows))
    table = train.users, train.items, 2.0 + np.arange(len(train)) % 3
    students = [MFDMC(**STUDENT, teacher=t).fit(train) for t in (str(tmp_path / "lesson.csv"), table)]
    one, other = (s.predict(train.users, train.items) for s in students)
    np.testing.assert_array_equal(one, other)


def test_features_that_no_teacher_uses_are_refused(parts: tuple[Ratings, Ratings]) -> None:
    train, _ = parts
    labels = {raw: ["odd" if raw % 2 else "even"] for raw in np.unique(train.items).tolist()}
    fitted = type(QUICK)(**QUICK.get_params()).fit(train)
    table = train.users, train.items, train.ratings
    for teacher in (FunkMF(epochs=2), fitted, Constant(), table, [FunkMF(epochs=2), Constant()]):
        model = MFDMC(**STUDENT, teacher=teacher)
        assert not model.takes_features
        with pytest.raises(ConfigError, match="MFDMC with this teacher does not use user_features or item_features"):
            model.fit(train, item_features=labels)
    assert MFDMC(teacher=[FunkMF(), BayesianMF()]).takes_features
    assert MFDMC(teacher="bayesian").takes_features


def test_features_need_a_teacher(parts: tuple[Ratings, Ratings]) -> None:
    labels = {raw: ["odd" if raw % 2 else "even"] for raw in np.unique(parts[0].items).tolist()}
    with pytest.raises(ConfigError, match="teacher"):
        MFDMC(**STUDENT).fit(parts[0], item_features=labels)
    with pytest.raises(ConfigError, match="FunkMF does not use"):
        FunkMF(epochs=1).fit(parts[0], item_features=labels)
    with_labels = MFDMC(**STUDENT, teacher=QUICK).fit(parts[0], item_features=labels)
    without = MFDMC(**STUDENT, teacher=QUICK).fit(parts[0])
    pairs = parts[1].users, parts[1].items
    assert np.abs(with_labels.predict(*pairs) - without.predict(*pairs)).max() > 1e-3


def test_cross_validation_refuses_a_teacher_that_has_seen_the_test_ratings(parts: tuple[Ratings, Ratings]) -> None:
    splits = kfold(parts[0], 2, 0)
    for teacher in (FunkMF(epochs=1).fit(parts[0]), "model.safetensors", Constant(), [QUICK, Constant()]):
        with pytest.raises(ConfigError, match="may have seen"):
            cross_validate(MFDMC(**STUDENT, teacher=teacher), splits)
    assert len(cross_validate(MFDMC(**STUDENT, teacher=QUICK), splits).folds) == 2


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_settings_that_others_override(name: str) -> None:
    model = MFDMC.preset(name, epochs=7)
    assert model.epochs == 7
    overridden = {"epochs": 7} if "epochs" in PRESETS[name] else {}
    assert {key: getattr(model, key) for key in PRESETS[name]} == {**PRESETS[name], **overridden}


def test_unknown_presets_are_refused() -> None:
    with pytest.raises(ConfigError, match="unknown preset 'best'; known are: fast, accurate, balanced, interpretable"):
        MFDMC.preset("best")


@pytest.mark.data
def test_the_accurate_preset_on_movielens_100k() -> None:
    folder = data_folder()
    if folder is None:
        pytest.skip("the rating datasets are not here (MFDMC_DATA)")
    split = official_folds(folder / "ml-100k")[0]
    model = MFDMC.preset("accurate").fit(split.train)
    assert model.evaluate(split.test)["rmse"] <= 0.892
