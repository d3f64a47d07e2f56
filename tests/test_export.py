"""Vectors, FAISS index and ONNX graph of a model say what the model says."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from mfdmc_fast.data import Ratings, make_planted_ratings
from mfdmc_fast.errors import ConfigError, DataError, MFDMCError
from mfdmc_fast.estimator import MFDMC, BayesianMF, FunkMF, RatingEstimator
from mfdmc_fast.export import _import, _onnx_difference, export, faiss_index, onnx_scorer, recall, vectors

MODELS = {
    "mfdmc": lambda: MFDMC(n_views=3, n_clusters=4, epochs=5, seed=1),
    "plain": lambda: MFDMC(n_views=3, n_clusters=4, epochs=5, biases=False, seed=1),
    "funkmf": lambda: FunkMF(n_factors=5, epochs=5, seed=1),
}


def needs(package: str) -> Any:
    """Skips where a package of the `export` extra is missing."""
    try:
        _import(package)
    except ConfigError:
        return pytest.mark.skip(reason=f"{package} is not installed; pip install 'mfdmc_fast[export]'")
    return pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module")
def ratings() -> Ratings:
    return make_planted_ratings(60, 40, 1200, seed=2)


@pytest.fixture(params=MODELS, scope="module")
def model(request: pytest.FixtureRequest, ratings: Ratings) -> RatingEstimator:
    return MODELS[request.param]().fit(ratings, rating_scale=(1, 5))


@pytest.fixture(scope="module")
def biased(ratings: Ratings) -> RatingEstimator:
    return MODELS["mfdmc"]().fit(ratings, rating_scale=(1, 5))


def test_vectors_rank_and_score_as_the_model_does(model: RatingEstimator) -> None:
    found = vectors(model)
    products = found.users @ found.items.T
    top = model.recommend(model.users_.ids, n=5, exclude_seen=False)
    best = np.argsort(-products, axis=1, kind="stable")[:, :5]
    assert model.items_.ids[best].tolist() == top.items.tolist()
    scores = np.clip(products + found.constants[:, None], 1, 5)
    for row, user in enumerate(model.users_.ids[:10]):
        np.testing.assert_allclose(scores[row], model.predict(user, model.items_.ids), atol=1e-5)


def test_a_bayesian_models_vectors_rank_as_it_does(ratings: Ratings) -> None:
    model = BayesianMF(rank=2, sweeps=6, burn_in=2).fit(ratings)
    found = vectors(model)
    best = np.argsort(-(found.users @ found.items.T), axis=1, kind="stable")[:, :3]
    assert model.items_.ids[best].tolist() == model.recommend(model.users_.ids, 3, exclude_seen=False).items.tolist()


def test_parquet(model: RatingEstimator, tmp_path: Path) -> None:
    manifest = export(model, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == manifest
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["items.parquet", "manifest.json", "users.parquet"]
    found = vectors(model)
    users, items = (pq.read_table(tmp_path / "out" / name).to_pydict() for name in manifest["files"])
    assert users["id"] == model.users_.ids.tolist()
    assert items["id"] == model.items_.ids.tolist()
    np.testing.assert_array_equal(np.array(users["embedding"], dtype=np.float32), found.users)
    np.testing.assert_array_equal(np.array(items["embedding"], dtype=np.float32), found.items)
    np.testing.assert_array_equal(np.array(users["constant"], dtype=np.float32), found.constants)
    assert manifest["dimension"] == found.items.shape[1]
    assert manifest["rating_scale"] == [1, 5]


@pytest.mark.parametrize("texts", [False, True])
def test_npy(ratings: Ratings, tmp_path: Path, texts: bool) -> None:
    if texts:
        ids = [np.array([f"{x}-é" for x in column], dtype=object) for column in (ratings.users, ratings.items)]
        ratings = Ratings(*ids, ratings.ratings)
    model = FunkMF(n_factors=2, epochs=2).fit(ratings)
    files = export(model, tmp_path, format="npy")["files"]
    loaded = {name: np.load(tmp_path / name, allow_pickle=False) for name in files}
    assert loaded["user_ids.npy"].tolist() == model.users_.ids.tolist()
    assert loaded["item_ids.npy"].tolist() == model.items_.ids.tolist()
    np.testing.assert_array_equal(loaded["user_vectors.npy"], vectors(model).users)
    np.testing.assert_array_equal(loaded["item_vectors.npy"], vectors(model).items)
    np.testing.assert_array_equal(loaded["user_constants.npy"], vectors(model).constants)


@needs("faiss")
@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_faiss_finds_what_recommend_does(model: RatingEstimator, tmp_path: Path, kind: Any) -> None:
    faiss = _import("faiss")
    manifest = export(model, tmp_path, faiss=kind)
    assert manifest["faiss"]["recall_at_10"] >= 0.99
    index = faiss.read_index(str(tmp_path / "items.faiss"))
    assert index.ntotal == len(model.items_)
    _, rows = index.search(vectors(model).users[:5], 3)
    top = model.recommend(model.users_.ids[:5], 3, exclude_seen=False)
    assert model.items_.ids[rows].tolist() == top.items.tolist()


@needs("faiss")
def test_the_recall_of_an_index_that_lacks_items(biased: RatingEstimator) -> None:
    found = vectors(biased)
    without_order = faiss_index(np.ascontiguousarray(found.items[::-1]), "flat")  # rows are the wrong items
    assert recall(without_order, found, 10) < 0.6


@needs("onnx")
@needs("onnxruntime")
def test_the_onnx_graph_scores_as_predict_does(model: RatingEstimator, tmp_path: Path) -> None:
    runtime = _import("onnxruntime")
    manifest = export(model, tmp_path, onnx=True)
    assert manifest["onnx"]["largest_difference"] <= 1e-5
    session = runtime.InferenceSession(str(tmp_path / "scorer.onnx"), providers=["CPUExecutionProvider"])
    users, items = np.array([0, 5, 59]), np.array([39, 0, 7])
    (scores,) = session.run(None, {"user_rows": users, "item_rows": items})
    np.testing.assert_allclose(scores, model.predict(model.users_.ids[users], model.items_.ids[items]), atol=1e-5)
    (none,) = session.run(None, {"user_rows": users[:0], "item_rows": items[:0]})
    assert none.shape == (0,)


@needs("onnx")
@needs("onnxruntime")
def test_a_wrong_graph_is_not_written(biased: RatingEstimator) -> None:
    found = vectors(biased)
    with pytest.raises(MFDMCError, match="differs from predict"):
        _onnx_difference(onnx_scorer(found._replace(constants=found.constants + 0.1), (1, 5)), biased)


def test_what_is_refused(biased: RatingEstimator, ratings: Ratings, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="parquet or npy"):
        export(biased, tmp_path, format="csv")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="flat or hnsw"):
        export(biased, tmp_path, faiss="ivf")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="clips the prediction of every draw"):
        export(BayesianMF(rank=2, sweeps=2, burn_in=1).fit(ratings), tmp_path, onnx=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be made a folder"):
        export(biased, tmp_path / "file")
    with pytest.raises(DataError, match="cannot be made a folder"):
        export(biased, tmp_path / "missing" / "folder")


@pytest.mark.parametrize(("package", "options"), [("faiss", {"faiss": "flat"}), ("onnx", {"onnx": True})])
def test_a_missing_package_is_named_before_anything_is_written(
    biased: RatingEstimator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, options: Any
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"{package} is not installed; pip install 'mfdmc_fast\[export\]'"):
        export(biased, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
