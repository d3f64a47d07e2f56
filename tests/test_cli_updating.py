"""`mfdmc fold-in` and `mfdmc export`, as a person would run them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cli_tools import mfdmc, write_csv

from mfdmc_fast.data import Ratings, make_planted_ratings
from mfdmc_fast.estimator import FunkMF, load_model


@pytest.fixture
def ratings() -> Ratings:
    return make_planted_ratings(60, 40, 1100, seed=2)


@pytest.fixture
def model(ratings: Ratings, tmp_path: Path) -> Path:
    """The file of a model of the users up to 50."""
    path = tmp_path / "model.safetensors"
    known = ratings.take(np.flatnonzero(ratings.users <= 50))
    FunkMF(n_factors=3, epochs=5, seed=1).fit(known, rating_scale=(1, 5)).save(path)
    return path


def test_fold_in(ratings: Ratings, model: Path, tmp_path: Path) -> None:
    new = write_csv(tmp_path / "new.csv", ratings.take(np.flatnonzero(ratings.users > 50)))
    values = mfdmc("fold-in", model, new, "--out", tmp_path / "two.safetensors", "--json").json()
    assert (values["new_users"], values["users"], values["new_items"]) == (10, 60, 0)
    known = load_model(tmp_path / "two.safetensors").predict(55, 3, return_known=True)[1]
    assert known.all()
    assert len(load_model(model).users_) == 50
    shown = mfdmc("fold-in", model, new, "--out", tmp_path / "two.safetensors")
    assert "new_users" in shown.out


def test_update_and_over_the_model_itself(ratings: Ratings, model: Path, tmp_path: Path) -> None:
    everything = write_csv(tmp_path / "all.csv", ratings)
    refused = mfdmc("fold-in", model, everything, "--out", tmp_path / "two.safetensors")
    refused.refused(3, "all.csv", "--update", "partial_fit")
    assert not (tmp_path / "two.safetensors").exists()
    before = load_model(model).predict(1, 1)
    values = mfdmc("fold-in", model, everything, "--out", model, "--update", "--json").json()
    assert values["users"] == 60
    assert load_model(model).predict(1, 1) != before


def test_fold_in_needs_a_place(ratings: Ratings, model: Path, tmp_path: Path) -> None:
    new = write_csv(tmp_path / "new.csv", ratings)
    mfdmc("fold-in", model, new, "--out", tmp_path / "missing" / "two.safetensors").refused(3, "does not exist")


@pytest.mark.parametrize("format", ["parquet", "npy"])
def test_export(model: Path, tmp_path: Path, format: str) -> None:
    values = mfdmc("export", model, "--out", tmp_path / "out", "--format", format, "--json").json()
    assert (values["kind"], values["users"], values["dimension"]) == ("FunkMF", 50, 4)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {*values["files"], "manifest.json"}
    assert (
        f"item{'s' if format == 'parquet' else '_vectors'}.{format}"
        in mfdmc("export", model, "--out", tmp_path / "out", "--format", format).out
    )


def test_export_into_a_file(model: Path, tmp_path: Path) -> None:
    mfdmc("export", model, "--out", model).refused(3, "cannot be made a folder")
    assert load_model(model).is_fitted


@pytest.mark.parametrize("command", ["fold-in", "export"])
def test_help_has_examples(command: str) -> None:
    shown = mfdmc(command, "--help").out
    assert "Examples" in shown
    assert f"mfdmc {command} model.safetensors" in shown
