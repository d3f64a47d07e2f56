"""The benchmark of interpretability: what it promises is judged by its figures, and its labels have names."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import interpretability
from benchmarks.interpretability import (
    ACCURATE,
    BASELINE,
    CANDIDATES,
    Fits,
    claims,
    commits,
    features_of,
    markdown,
    merged,
    plot,
    run,
)
from mfdmc_fast.data import Features, holdout, plant_ratings
from mfdmc_fast.data.labels import LabelBlock
from mfdmc_fast.errors import DataError

SMALL = {"n_views": 2, "n_clusters": 3, "view_dim": 2, "epochs": 3}
RAW = "MFDMC on raw ratings"


@pytest.fixture(scope="module")
def features() -> dict[Any, Features]:
    """Two groups of items."""
    return {"item": Features(np.arange(1, 61), (LabelBlock("genre", ["a", "b"], np.arange(60), np.arange(60) % 2),))}


@pytest.fixture(scope="module")
def small(features: dict[Any, Features]) -> dict[str, Any]:
    """Measures of two methods and two seeds."""
    split = holdout(plant_ratings(80, 60, 1600, seed=2).ratings, 0.2, 0)
    return run(split, (1, 5), features, [RAW, BASELINE, "random"], 2, min_ratings=3, settings=SMALL)


def test_rows_of_a_small_run(small: dict[str, Any]) -> None:
    mfdmc, k_means, random = (small[name] for name in (RAW, BASELINE, "random"))
    assert [row["seed"] for row in mfdmc["rows"]] == [0, 1]
    row = mfdmc["rows"][0]
    assert row["sides"]["item"]["n_clusters"] == [3, 3]
    assert row["pruned"] == 0
    assert row["mean_entropy"] == pytest.approx((row["entropy"]["user"] + row["entropy"]["item"]) / 2, abs=2e-5)
    assert "clusters" not in row["sides"]["item"]["families"][0]
    assert k_means["rows"][0]["sides"]["item"]["n_clusters"] == [10]
    assert k_means["rows"][0]["rmse"] is not None
    assert random["rows"][0]["sides"]["item"]["n_clusters"] == [10] * 8
    assert (random["rows"][0]["rmse"], random["rows"][0]["pruned"]) == (None, None)
    # random clusters of two seeds are matched no better than permuted ones
    alike = random["stability"]["item"]
    assert alike["similarity"] == pytest.approx(alike["chance"], abs=0.1)
    json.dumps(small)


def test_a_seed_fits_what_several_methods_use_once() -> None:
    fits = Fits(holdout(plant_ratings(40, 30, 500, seed=2).ratings, 0.2, 0), (1, 5), 0, SMALL)
    first = fits.k_means("FunkMF", 1)
    assert len(fits._done) == 1
    assert [view.shape[1] for view in fits.k_means("FunkMF", 3).views["item"]] == [10, 10, 10]
    assert len(fits._done) == 1
    assert first.rmse == fits.k_means("FunkMF", 2).rmse


def row(ami: float, p: float, rmse: float, entropy: float, pruned: float) -> dict[str, Any]:
    families = [
        {"name": "year", "consensus_ami": 0.9, "consensus_p_value": 1.0},
        {"name": "genre", "consensus_ami": ami, "consensus_p_value": p},
    ]
    return {"rmse": rmse, "mean_entropy": entropy, "pruned": pruned, "sides": {"item": {"families": families}}}


@pytest.fixture
def methods() -> dict[str, Any]:
    good = [row(0.10, 0.001, 0.882, 0.4, 0.4), row(0.12, 0.002, 0.883, 0.5, 0.3)]
    accurate = [row(0.2, 0.001, 0.880, 0.9, 0.0)] * 2
    baseline = [row(0.05, 0.001, 0.9, 0.0, 0.0)] * 2
    found = {ACCURATE: accurate, BASELINE: baseline, **{name: copy.deepcopy(good) for name in CANDIDATES}}
    return {name: {"rows": rows} for name, rows in found.items()}


def test_all_that_was_promised_is_kept(methods: dict[str, Any]) -> None:
    found = claims(methods, "genre")
    assert [claim["model"] for claim in found] == [CANDIDATES[0]] * 5 + [CANDIDATES[1]] * 5
    assert all(claim["met"] for claim in found)
    assert [claim["figure"] for claim in found[:5]] == [
        "0.1100 against 0.0500",
        "greatest p 0.002",
        "+0.0025",
        "0.45",
        "35%",
    ]


@pytest.mark.parametrize(
    ("at", "change"),
    [
        (0, {"sides": {"item": {"families": [{"name": "genre", "consensus_ami": -0.1, "consensus_p_value": 0.001}]}}}),
        (1, {"sides": {"item": {"families": [{"name": "genre", "consensus_ami": 0.1, "consensus_p_value": 0.02}]}}}),
        (2, {"rmse": 0.886}),
        (3, {"mean_entropy": 0.61}),
        (4, {"pruned": 0.2}),
    ],
)
def test_one_broken_promise_is_told(methods: dict[str, Any], at: int, change: dict[str, Any]) -> None:
    methods[CANDIDATES[0]]["rows"][1].update(change)
    assert [claim["met"] for claim in claims(methods, "genre")] == [k != at for k in range(10)]


def test_the_report(small: dict[str, Any], tmp_path: Path) -> None:
    promised = [{"model": "a model", "claim": "a claim", "met": False, "figure": "+0.1"}]
    origin = {"seeds": 2, "commit": "abc", "cpu": "a processor"}
    results = {"datasets": {"planted": {**origin, "claims": promised, "methods": small}}}
    text = markdown(results)
    rows = small[RAW]["rows"]
    assert f"| {RAW} | {np.mean([row['rmse'] for row in rows]):.4f} ±" in text
    family = [row["sides"]["item"]["families"][0] for row in rows]
    assert f"| {RAW} | {np.mean([one['consensus_ami'] for one in family]):.4f} ±" in text
    assert "### item: genre (2 labels, 60 items)" in text
    assert "| a model | a claim | **not met** | +0.1 |" in text
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    plot(results, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.data
@pytest.mark.parametrize(
    ("dataset", "item", "user"),
    [
        ("ml-100k", {"genre": "Film-Noir", "year": "1995"}, {"age": "20 to 22", "gender": "F", "occupation": "artist"}),
        ("ml-1m", {"genre": "Film-Noir", "year": "1995"}, {"gender": "F", "age": "25-34", "occupation": "writer"}),
        ("amazon-hin", {"category": "category 2", "brand": "brand 0"}, {}),
    ],
)
def test_labels_of_the_datasets(data: Path, dataset: str, item: dict[str, str], user: dict[str, str]) -> None:
    found = features_of(dataset)
    for side, expected in (("item", item), ("user", user)):
        if not expected:
            assert side not in found
            continue
        assert [block.name for block in found[side].blocks] == list(expected)
        for block in found[side].blocks:
            assert expected[block.name] in block.labels


@pytest.mark.data
def test_a_dataset_without_labels_is_refused(data: Path) -> None:
    with pytest.raises(DataError, match="no labels are known for filmtrust"):
        features_of("filmtrust")


def test_quick_fails_where_planted_clusters_are_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(p: float, auc: float) -> dict[str, Any]:
        family = {"name": "v", "consensus_ami": 0.1, "consensus_p_value": p, "mean_auc": {"memberships": auc}}
        return {"rows": [{"sides": {side: {"families": [family]} for side in ("user", "item")}}]}

    good: dict[str, Any] = {name: found(0.001, 0.9) for name in (RAW, ACCURATE, BASELINE)} | {"random": found(0.5, 0.5)}
    monkeypatch.setattr(interpretability, "run", lambda *args, **settings: good)
    monkeypatch.setattr(sys, "argv", ["interpretability", "--quick"])
    interpretability.main()
    good[RAW] = found(0.2, 0.9)
    with pytest.raises(SystemExit, match=f"{RAW}, user, v; {RAW}, item, v"):
        interpretability.main()
    good |= {RAW: found(0.001, 0.9), "random": found(0.001, 0.9)}
    with pytest.raises(SystemExit, match="random, user, v"):
        interpretability.main()


def test_models_that_are_not_run_again_keep_figures_and_commit(small: dict[str, Any]) -> None:
    earlier = {"seeds": 2, "commit": "old", "methods": {name: {**one, "rows": []} for name, one in small.items()}}
    methods = merged({BASELINE: small[BASELINE]}, "new", earlier)
    assert set(methods) == set(small)
    assert methods[BASELINE] == {**small[BASELINE], "commit": "new"}
    assert (methods[RAW]["rows"], methods[RAW]["commit"]) == ([], "old")
    assert commits({"commit": "old", "methods": methods}) == f"commit old: {RAW}, random; commit new: {BASELINE}"
    assert commits({"commit": "one", "methods": small}) == "commit one"


@pytest.mark.data
def test_some_models_are_run_again_with_the_same_seeds_alone(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = {"datasets": {"ml-100k": {"seeds": 3}}}
    (tmp_path / "interpretability.json").write_text(json.dumps(results), encoding="utf-8")
    monkeypatch.setattr(interpretability, "RESULTS", tmp_path)
    for wrong, message in ((RAW, "has results of 3 seeds, not 2"), ("k-medoids", "unknown k-medoids")):
        command = ["interpretability", "--datasets", "ml-100k", "--seeds", "2", "--methods", wrong]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit):
            interpretability.main()
        assert message in capsys.readouterr().err
