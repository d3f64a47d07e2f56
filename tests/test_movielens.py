"""Real ratings, from the files as published: short trainings reach errors that only a working model reaches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mfdmc_fast.cli.commands import app
from mfdmc_fast.data import read_ratings
from mfdmc_fast.estimator import MFDMC, FunkMF, RatingEstimator

pytestmark = pytest.mark.data


def mfdmc(*arguments: object) -> dict[str, Any]:
    """The JSON that a command prints."""
    result = CliRunner().invoke(app, [*map(str, arguments), "--json", "--quiet"])
    assert (result.exit_code, result.stderr) == (0, "")
    values: dict[str, Any] = json.loads(result.stdout)
    return values


@pytest.mark.parametrize("model", [MFDMC(epochs=10), FunkMF(epochs=10)], ids=["mfdmc", "funkmf"])
def test_a_short_training_on_the_first_official_fold(data: Path, model: RatingEstimator) -> None:
    fold = data / "ml-100k"
    model.fit(fold / "u1.base")
    errors = model.evaluate(fold / "u1.test")
    assert (len(model.users_), len(model.items_)) == (943, 1650)
    assert (errors["ratings"], errors["unknown_users"], errors["unknown_items"]) == (20_000, 0, 32)
    # predicting the mean rating gives 1.154
    assert errors["rmse"] < 1.0
    losses = [record.loss["mse"] for record in model.history_.epochs]
    assert losses[-1] < losses[0]


def test_the_same_seed_gives_the_same_bits(data: Path, tmp_path: Path) -> None:
    fold = data / "ml-100k"
    train, test = read_ratings(fold / "u1.base"), read_ratings(fold / "u1.test")
    first, second, other = (MFDMC(epochs=2, seed=seed).fit(train) for seed in (3, 3, 4))
    assert first.evaluate(test) == second.evaluate(test)
    assert (first.predict(test.users, test.items) == second.predict(test.users, test.items)).all()
    assert first.evaluate(test)["rmse"] != other.evaluate(test)["rmse"]
    first.save(tmp_path / "model")
    assert mfdmc("evaluate", tmp_path / "model", fold / "u1.test")["rmse"] == first.evaluate(test)["rmse"]


def test_a_fold_of_the_large_set_from_parquet(data: Path, tmp_path: Path) -> None:
    source, out = data / "ml-1m" / "ratings.parquet", tmp_path / "model"
    settings = ["--epochs", 2, "--n-views", 4]
    values = mfdmc("train", source, "--test", "column:fold=1", "--out", out, *settings)
    assert values["ratings"] + values["test_ratings"] == 1_000_209
    assert values["users"] == 6040
    assert values["rmse"] < 1.0
    model = MFDMC.load(out)
    ratings = read_ratings(source, keep="fold")
    test = ratings.take(ratings.columns["fold"] == 1)
    assert model.evaluate(test)["rmse"] == values["rmse"]
