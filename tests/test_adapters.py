"""The estimators inside Surprise: its cross-validation, grid search and pickles, beside the estimators alone."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from mfdmc_fast import adapters
from mfdmc_fast.data import make_planted_ratings
from mfdmc_fast.estimator import MFDMC, BayesianMF, FunkMF

surprise = pytest.importorskip("surprise", reason="scikit-surprise is not installed")
pd = pytest.importorskip("pandas")

SETTINGS: dict[str, dict[str, Any]] = {
    "SurpriseMFDMC": {"n_views": 2, "n_clusters": 4, "epochs": 5, "seed": 3},
    "SurpriseFunkMF": {"n_factors": 8, "epochs": 5, "seed": 3},
    "SurpriseBayesianMF": {"rank": 4, "sweeps": 12, "burn_in": 4, "n_draws": 4, "seed": 3},
}
KINDS = {"SurpriseMFDMC": MFDMC, "SurpriseFunkMF": FunkMF, "SurpriseBayesianMF": BayesianMF}


@pytest.fixture(scope="module")
def frame() -> Any:
    ratings = make_planted_ratings(60, 40, 900, seed=2)
    return pd.DataFrame({"user": ratings.users, "item": ratings.items, "rating": ratings.ratings})


def load(frame: Any) -> Any:
    return surprise.Dataset.load_from_df(frame, surprise.Reader(rating_scale=(1, 5)))


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("text_ids", [False, True], ids=["int", "str"])
def test_the_same_predictions_as_the_estimator_alone(name: str, text_ids: bool, frame: Any) -> None:
    if text_ids:
        frame = frame.assign(user="u" + frame["user"].astype(str), item="i" + frame["item"].astype(str))
    train, test = surprise.model_selection.train_test_split(load(frame), test_size=0.2, random_state=1)
    test += [("stranger", test[0][1], 3.0), (test[0][0], "unseen", 3.0), ("stranger", "unseen", 3.0)]
    algorithm = getattr(adapters, name)(**SETTINGS[name]).fit(train)
    rows = [(train.to_raw_uid(u), train.to_raw_iid(i), r) for u, i, r in train.all_ratings()]
    users, items, ratings = map(list, zip(*rows, strict=True))
    alone = KINDS[name](**SETTINGS[name]).fit((users, items, ratings), rating_scale=(1, 5))
    expected = alone.predict([u for u, _, _ in test], [i for _, i, _ in test])
    predictions = algorithm.test(test)
    np.testing.assert_array_equal([p.est for p in predictions], expected)
    assert [(p.uid, p.iid, p.r_ui) for p in predictions] == test
    assert not any(p.details["was_impossible"] for p in predictions)
    # one pair at a time; a matrix product may round differently for one row
    single = [algorithm.predict(u, i).est for u, i, _ in [*test[:5], *test[-3:]]]
    np.testing.assert_allclose(single, [*expected[:5], *expected[-3:]], rtol=1e-5)
    assert algorithm.test([]) == []
    assert len(algorithm.estimator.recommend(users[0], n=3).items) == 3


@pytest.mark.parametrize("name", SETTINGS)
def test_cross_validate(name: str, frame: Any) -> None:
    algorithm = getattr(adapters, name)(**SETTINGS[name])
    folds = surprise.model_selection.KFold(3, random_state=0)
    result = surprise.model_selection.cross_validate(algorithm, load(frame), ["rmse", "mae"], cv=folds)
    assert result["test_rmse"].shape == (3,)
    assert (result["test_rmse"] < 1.6).all()


def test_grid_search(frame: Any) -> None:
    grid = {"n_factors": [4, 8], "epochs": [2, 20], "seed": [0]}
    folds = surprise.model_selection.KFold(2, random_state=0)
    search = surprise.model_selection.GridSearchCV(adapters.SurpriseFunkMF, grid, measures=["rmse"], cv=folds)
    search.fit(load(frame))
    assert len(search.cv_results["params"]) == 4
    assert search.best_estimator["rmse"].estimator.epochs == search.best_params["rmse"]["epochs"]
    assert len(set(search.cv_results["mean_test_rmse"])) == 4


def test_pickle_as_surprises_dump_uses_it(frame: Any) -> None:
    train = load(frame).build_full_trainset()
    algorithm = adapters.SurpriseFunkMF(**SETTINGS["SurpriseFunkMF"]).fit(train)
    test = train.build_testset()[:20]
    # dump itself leaves its file open, which is an error here
    assert pickle.loads(pickle.dumps(algorithm)).test(test) == algorithm.test(test)


def test_verbose_prints_predictions(frame: Any, capsys: pytest.CaptureFixture[str]) -> None:
    train = load(frame).build_full_trainset()
    adapters.SurpriseFunkMF(epochs=1).fit(train).test(train.build_testset()[:3], verbose=True)
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_surprise_is_imported_on_use_only() -> None:
    program = "import sys, mfdmc_fast.adapters as a; print('surprise' in sys.modules, 'SurpriseMFDMC' in dir(a))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stdout) == (0, "False True\n")
    with pytest.raises(AttributeError, match="no attribute 'SurpriseX'"):
        adapters.SurpriseX  # noqa: B018
