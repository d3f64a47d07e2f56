"""The `mfdmc` command: what it prints and where, its exit codes, and what it leaves behind."""

from __future__ import annotations

import dataclasses
import gzip
import importlib.util
import os
import pickle
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pexpect
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from cli_tools import ENVIRONMENT, Ran, mfdmc, python_m, table, write_csv

import mfdmc_fast
from mfdmc_fast.cli import commands, output
from mfdmc_fast.config import BayesianMFConfig, FunkMFConfig, MFDMCConfig, with_rates
from mfdmc_fast.data import (
    Ratings,
    Split,
    column_folds,
    holdout,
    kfold,
    leave_last_out,
    make_planted_ratings,
    read_ratings,
)
from mfdmc_fast.errors import MFDMCError
from mfdmc_fast.estimator import MFDMC, FunkMF, RatingEstimator, load_model
from mfdmc_fast.evaluate import cross_validate
from mfdmc_fast.ops import dispatch

SMALL = ["--epochs", "2", "--n-views", "2", "--n-clusters", "3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ratings.csv, .parquet, u1, u2 .base, .test, u.user, u.item, model (MFDMC) and funkmf; not to be changed."""
    folder = tmp_path_factory.mktemp("cli")
    planted = make_planted_ratings(40, 30, 400, seed=2)
    ratings = Ratings(
        planted.users,
        planted.items,
        planted.ratings,
        np.arange(1_000, 1_400),
        {"fold": np.arange(400) % 4 + 1, "part": np.array(["x", "y z"], dtype=object)[np.arange(400) % 2]},
    )
    write_csv(folder / "ratings.csv", ratings)
    pq.write_table(
        pa.table({"user_id": ratings.users, "item_id": ratings.items, "rating": ratings.ratings} | ratings.columns),
        folder / "ratings.parquet",
    )
    for number, split in enumerate(kfold(ratings, 2, seed=0), start=1):
        for part, name in ((split.train, "base"), (split.test, "test")):
            columns = (part.users, part.items, part.ratings.astype(int), part.timestamps)
            rows = ["\t".join(map(str, row)) for row in zip(*columns, strict=True)]
            (folder / f"u{number}.{name}").write_text("\n".join(rows) + "\n")
    users = [f"{k}|{20 + k % 3}|{'FM'[k % 2]}|{['writer', 'doctor'][k % 3 == 0]}|{k:05}" for k in range(1, 41)]
    (folder / "u.user").write_text("\n".join(users) + "\n")
    items = [f"{k}|Title {k}|01-Jan-{1990 + k % 4}|{k % 2}|{k % 3 // 2}" for k in range(1, 31)]
    (folder / "u.item").write_text("\n".join(items) + "\n")
    mfdmc("train", folder / "ratings.csv", "--out", folder / "model", *SMALL, "--json").json()
    mfdmc(
        "train", folder / "ratings.csv", "--out", folder / "funkmf", "--model", "funkmf", "--epochs", 2, "--json"
    ).json()
    return folder


class TestTrain:
    """`mfdmc train` and what `mfdmc evaluate` makes of its model."""

    def test_json_has_everything_about_the_run(self, folder: Path, tmp_path: Path) -> None:
        out = tmp_path / "model"
        values = mfdmc("train", folder / "u1.base", "--test", folder / "u1.test", "--out", out, *SMALL, "--json").json()
        train, test = read_ratings(folder / "u1.base"), read_ratings(folder / "u1.test")
        model = MFDMC(epochs=2, n_views=2, n_clusters=3).fit(train)
        errors = model.evaluate(test)
        assert values.pop("seconds") > 0
        assert values == {
            "model": "mfdmc",
            "out": str(out),
            "rmse": errors["rmse"],
            "mae": errors["mae"],
            "epochs": 2,
            "clusters_user": [3, 3],
            "clusters_item": [3, 3],
            "pruned": 0,
            "users": len(model.users_),
            "items": len(model.items_),
            "ratings": len(train),
            "bad_rows_skipped": 0,
            "repeated_pairs": 0,
            "test_ratings": len(test),
            "unknown_users": errors["unknown_users"],
            "unknown_items": errors["unknown_items"],
            "valid_rmse": None,
            "backend": model.history_.backend,
            "batch_size": model.history_.batch_size,
            "streamed": False,
            "processes": 1,
            "stop_reason": "all epochs done",
            "seed": 0,
        }
        assert mfdmc("evaluate", out, folder / "u1.test", "--json").json() == errors
        assert [p.name for p in tmp_path.iterdir()] == ["model"]

    @pytest.mark.parametrize("how", ["file", "holdout:0.2", "last", "column:fold=3", "column:part=y z"])
    def test_every_kind_of_test_ratings(self, folder: Path, tmp_path: Path, how: str) -> None:
        source, out = folder / "ratings.csv", tmp_path / "model"
        ratings = read_ratings(source, keep=["fold", "part"])
        chosen = {"column:fold=3": ratings.columns["fold"] == 3, "column:part=y z": ratings.columns["part"] == "y z"}
        if how == "file":
            source, how = folder / "u1.base", str(folder / "u1.test")
            split = Split("file", read_ratings(source), read_ratings(how))
        elif how in chosen:
            split = Split(how, ratings.take(~chosen[how]), ratings.take(chosen[how]))
        else:
            split = leave_last_out(ratings) if how == "last" else holdout(ratings, 0.2, 7)
        values = mfdmc("train", source, "--test", how, "--out", out, *SMALL, "--seed", 7, "--json").json()
        assert values["ratings"] == len(split.train)
        assert values["test_ratings"] == len(split.test)
        model = MFDMC(epochs=2, n_views=2, n_clusters=3, seed=7).fit(split.train)
        assert values["rmse"] == pytest.approx(model.evaluate(split.test)["rmse"], rel=1e-12)
        test_file = write_csv(tmp_path / "test.csv", split.test)
        assert mfdmc("evaluate", out, test_file, "--json").json()["rmse"] == values["rmse"]

    def test_without_test_ratings_there_is_no_rmse(self, folder: Path, tmp_path: Path) -> None:
        values = mfdmc("train", folder / "ratings.csv", "--out", tmp_path / "model", *SMALL, "--json").json()
        assert values["rmse"] is values["mae"] is values["test_ratings"] is values["unknown_users"] is None
        assert values["ratings"] == 400

    def test_funkmf_has_no_clusters(self, folder: Path, tmp_path: Path) -> None:
        arguments = ["--model", "funkmf", "--epochs", 2, "--n-factors", 3, "--test", "holdout:0.1", "--json"]
        values = mfdmc("train", folder / "ratings.csv", "--out", tmp_path / "model", *arguments).json()
        assert values["model"] == "funkmf"
        assert values["clusters_user"] is values["clusters_item"] is None
        assert isinstance(load_model(tmp_path / "model"), FunkMF)

    def test_pruning_is_reported(self, folder: Path, tmp_path: Path) -> None:
        arguments = ["--epochs", 4, "--n-views", 2, "--n-clusters", 5, "--prune-start", 2, "--prune-threshold", 0.19]
        values = mfdmc("train", folder / "ratings.csv", "--out", tmp_path / "model", *arguments, "--json").json()
        assert values["pruned"] == 20 - sum(values["clusters_user"]) - sum(values["clusters_item"]) > 0

    def test_validation_ratings(self, folder: Path, tmp_path: Path) -> None:
        arguments = ["--validation", folder / "u1.test", "--out", tmp_path / "model", *SMALL, "--json"]
        values = mfdmc("train", folder / "u1.base", *arguments).json()
        errors = load_model(tmp_path / "model").evaluate(folder / "u1.test")
        assert values["valid_rmse"] == pytest.approx(errors["rmse"], rel=1e-6)
        values = mfdmc("train", folder / "u1.base", *arguments, "--keep", "best", "--patience", 1).json()
        assert values["epochs"] in (1, 2)

    @pytest.mark.parametrize("model", ["mfdmc", "funkmf", "bayesian"])
    def test_every_setting_arrives(self, folder: Path, tmp_path: Path, model: str) -> None:
        """Each option, given a value that is not its default, is that value in the model file."""
        given: dict[str, Any] = {
            "epochs": 2,
            "batch_size": 64,
            "optimizer": "adagrad",
            "learning_rate_schedule": "one-cycle",
            "rating_unit": 2.5,
            "l2_count_power": 0.25,
            "validation_fraction": 0.25,
            "patience": 9,
            "keep": "best",
            "seed": 11,
            "backend": "reference",
            "device": "cpu",
            "n_views": 3,
            "n_clusters": 4,
            "view_dim": 2,
            "combine": "sum",
            "biases": False,
            "center_scale": 0.5,
            "logit_scale": 0.25,
            "learning_rate": 0.02,
            "learning_rate_centers": 0.07,
            "learning_rate_biases": 0.03,
            "weight_spread": 0.1,
            "spread_margin": 2.0,
            "weight_proximity": "0:0.2:5",
            "weight_entropy": 0.0,
            "weight_l2": "0.1:0.2:3",
            "weight_bias_l2": 0.5,
            "teacher": "bayesian",
            "pairs_per_rating": 2.0,
            "pair_smoothing": 4.0,
            "prune": False,
            "prune_start": 3,
            "prune_threshold": 0.01,
            "min_clusters": 1,
            "dtype": "float32",
            "n_factors": 6,
            "factor_scale": 0.3,
            "rank": 3,
            "sweeps": 12,
            "burn_in": 4,
            "n_draws": 5,
            "implicit": False,
            "noise_degrees": 7.0,
        }
        config = {"mfdmc": MFDMCConfig(), "funkmf": FunkMFConfig(), "bayesian": BayesianMFConfig()}[model]
        names = [field.name for field in dataclasses.fields(config)]
        options = ["--model", model]
        for name in names:
            value = given[name]
            assert name in ("device", "dtype") or value != getattr(config, name), name
            flag = "--" + name.replace("_", "-")
            options += [f"--no-{name}"] if value is False else [flag, str(value)]
        mfdmc("train", folder / "ratings.csv", "--out", tmp_path / "model", *options, "--json").json()
        assert load_model(tmp_path / "model").get_params() == {name: given[name] for name in names}

    def test_adagrad_brings_its_own_rates(self, folder: Path, tmp_path: Path) -> None:
        arguments = [folder / "ratings.csv", "--out", tmp_path / "model", *SMALL, "--json"]
        mfdmc("train", *arguments, "--optimizer", "adagrad").json()
        settings = load_model(tmp_path / "model").get_params()
        expected = with_rates(MFDMCConfig(optimizer="adagrad"))
        assert settings["optimizer"] == "adagrad"
        assert settings["learning_rate"] == expected.learning_rate != with_rates(MFDMCConfig()).learning_rate

    def test_an_old_model_is_replaced_only_by_a_finished_one(self, folder: Path, tmp_path: Path) -> None:
        out = tmp_path / "model"
        out.write_bytes((folder / "funkmf").read_bytes())
        arguments = [folder / "ratings.csv", "--out", out, *SMALL]
        mfdmc("train", *arguments, "--learning-rate-centers", "1e30", "--epochs", 20).refused(5, "epoch")
        assert out.read_bytes() == (folder / "funkmf").read_bytes()
        assert [p.name for p in tmp_path.iterdir()] == ["model"]
        mfdmc("train", *arguments, "--json").json()
        assert isinstance(load_model(out), MFDMC)

    def test_the_tables_show_the_numbers(self, folder: Path, tmp_path: Path) -> None:
        arguments = ["--test", folder / "u1.test", "--out", tmp_path / "model", *SMALL]
        ran = mfdmc("train", folder / "u1.base", *arguments)
        rmse = mfdmc("evaluate", tmp_path / "model", folder / "u1.test", "--json").json()["rmse"]
        assert ran.status == 0
        assert re.search(rf"rmse .*{rmse:.4f}", ran.out)
        assert "200 training ratings from" in ran.err
        shown = mfdmc("evaluate", tmp_path / "model", folder / "u1.test")
        assert re.search(rf"rmse .*{rmse:.4f}", shown.out)


class TestConfigFile:
    """`--config FILE.toml`, over which flags win."""

    def test_flags_win_over_the_file(self, folder: Path, tmp_path: Path) -> None:
        config = tmp_path / "settings.toml"
        config.write_text(
            'model = "mfdmc"\nepochs = 3\nseed = 7\nn_views = 2\nn_clusters = 3\nprune = false\n'
            'weight_l2 = "0:0.1:2"\nweight_spread = 1\ncombine = "sum"\nbiases = false\n'
        )
        arguments = ["train", folder / "ratings.csv", "--config", config, "--json", "--out", tmp_path / "model"]
        values = mfdmc(*arguments).json()
        assert (values["epochs"], values["seed"], values["clusters_user"]) == (3, 7, [3, 3])
        settings = load_model(tmp_path / "model").get_params()
        assert settings["weight_l2"] == "0:0.1:2"
        assert (settings["weight_spread"], settings["combine"], settings["biases"]) == (1.0, "sum", False)
        values = mfdmc(*arguments, "--epochs", 2, "--seed", 0, "--biases", "--weight-l2", "0.3").json()
        assert (values["epochs"], values["seed"], values["clusters_user"]) == (2, 0, [3, 3])
        settings = load_model(tmp_path / "model").get_params()
        assert (settings["weight_l2"], settings["biases"], settings["prune"]) == (0.3, True, False)

    def test_the_model_can_be_chosen_in_the_file(self, folder: Path, tmp_path: Path) -> None:
        config = tmp_path / "settings.toml"
        config.write_text('model = "funkmf"\nepochs = 2\nn_factors = 3\n')
        arguments = ["train", folder / "ratings.csv", "--config", config, "--out", tmp_path / "model"]
        assert mfdmc(*arguments, "--json").json()["model"] == "funkmf"
        mfdmc(*arguments, "--model", "mfdmc").refused(2, "n_factors: not a setting of mfdmc")
        assert mfdmc("crossval", folder / "ratings.csv", "--config", config, "--json").json()["model"] == "funkmf"

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("epochs = ", "not a TOML file"),
            ("\xff", "not a TOML file"),
            ("n_view = 2", "n_view: not a setting of mfdmc"),
            ("n_factors = 2", "n_factors: not a setting of mfdmc"),
            ('model = "svd"', "model = 'svd': must be one of mfdmc, funkmf"),
            ("epochs = 0", "epochs = 0: must be 1 or more"),
            ("epochs = 1.5", "epochs = 1.5: must be an integer"),
            ("epochs = true", "epochs = True: must be a number"),
            ('optimizer = "sgd"', "optimizer = 'sgd': must be one of 'adam', 'adagrad'"),
            ('learning_rate = "high"', "learning_rate = 'high': must be a number or unset"),
            ("epochs = []", "epochs = []"),
            ("[training]\nepochs = 2", "training: not a setting of mfdmc"),
            ('biases = "yes"', "biases = 'yes': must be true or false"),
            ('config = "x"', "config: not a setting"),
        ],
        ids=lambda text: text.replace("\n", " ") if text.isascii() else "latin-1",
    )
    def test_a_wrong_file_is_a_wrong_setting(self, folder: Path, tmp_path: Path, text: str, words: str) -> None:
        (tmp_path / "settings.toml").write_bytes(text.encode("latin-1"))
        arguments = ["--config", tmp_path / "settings.toml", "--out", tmp_path / "model"]
        mfdmc("train", folder / "ratings.csv", *arguments).refused(2, words)
        assert not (tmp_path / "model").exists()

    def test_a_missing_file_is_named(self, folder: Path, tmp_path: Path) -> None:
        arguments = ["--config", tmp_path / "none.toml", "--out", tmp_path / "model"]
        mfdmc("train", folder / "ratings.csv", *arguments).refused(2, "none.toml: cannot be read: No such file")


class TestCrossval:
    """`mfdmc crossval`."""

    @pytest.mark.parametrize("how", ["3", "column:fold", "official"])
    @pytest.mark.parametrize("model", ["mfdmc", "funkmf"])
    def test_every_kind_of_folds(self, folder: Path, how: str, model: str) -> None:
        ratings = read_ratings(folder / "ratings.csv", keep="fold")
        estimator: RatingEstimator = MFDMC(epochs=2, n_views=2, n_clusters=3, seed=4)
        settings = SMALL
        if model == "funkmf":
            estimator, settings = FunkMF(epochs=2, seed=4), ["--epochs", "2", "--model", "funkmf"]
        source, splits = folder / "ratings.csv", kfold(ratings, 3, 4)
        if how == "column:fold":
            splits = column_folds(ratings, "fold")
        elif how == "official":
            source = folder
            splits = [
                Split(f"u{k}", read_ratings(folder / f"u{k}.base"), read_ratings(folder / f"u{k}.test")) for k in (1, 2)
            ]
        values = mfdmc("crossval", source, "--folds", how, "--seed", 4, *settings, "--json").json()
        expected = {"model": model, **cross_validate(estimator, splits).to_dict()}
        for result in (values, expected):
            assert result.pop("seconds") >= sum(fold.pop("seconds") for fold in result["folds"]) > 0
        assert values == expected

    def test_the_table_shows_every_fold(self, folder: Path) -> None:
        ran = mfdmc("crossval", folder, "--folds", "official", *SMALL)
        mean = mfdmc("crossval", folder, "--folds", "official", *SMALL, "--json").json()["mean_rmse"]
        assert ran.status == 0
        assert f"mfdmc, 2 folds: RMSE {mean:.4f}" in ran.out
        assert re.search(r"u1.*6 \+ 6", ran.out)
        assert re.search(r"fold u2: RMSE \d\.\d{4} in", ran.err)

    @pytest.mark.parametrize(
        ("source", "folds", "status", "words"),
        [
            ("ratings.csv", "many", 2, "--folds 'many': must be official, a number such as 5, or column:NAME"),
            ("ratings.csv", "1", 2, "k must be an integer from 2"),
            ("ratings.csv", "401", 2, "k must be an integer from 2"),
            ("ratings.csv", "column:", 2, "column:NAME"),
            ("ratings.csv", "column:colour", 3, "colour"),
            (".", "5", 3, "only --folds official takes one"),
            ("nowhere", "official", 3, "NAME1.base"),
            ("ratings.csv", "official", 3, "ratings.csv"),
        ],
    )
    def test_wrong_folds(self, folder: Path, source: str, folds: str, status: int, words: str) -> None:
        mfdmc("crossval", folder / source, "--folds", folds, *SMALL).refused(status, words)


class TestRefusals:
    """Every kind of mistake has its exit code and a message that names it."""

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--epochs", "0"], "epochs = 0: must be 1 or more"),
            (["--epochs", "many"], "--epochs"),
            (["--colour", "red"], "--colour"),
            (["--combine", "product"], "--combine"),
            (["--optimizer", "sgd"], "--optimizer"),
            (["--learning-rate", "0"], "learning_rate = 0.0: must be above 0"),
            (["--learning-rate", "high"], "--learning-rate"),
            (["--weight-l2", "-1"], "weight_l2 = -1.0"),
            (["--weight-l2", "nan"], "weight_l2 = nan"),
            (["--weight-entropy", "0:1"], "weight_entropy = '0:1'"),
            (["--model", "svd"], "--model"),
            (["--model", "funkmf", "--n-views", "2"], "n_views: not a setting of funkmf"),
            (["--model", "funkmf", "--prune", "--view-dim", "3"], "prune, view_dim: not a setting of funkmf"),
            (["--n-factors", "5"], "n_factors: not a setting of mfdmc"),
            (["--n-clusters", "31"], "only 30 items; set n_clusters to 30 or less"),
            (["--patience", "2"], "patience needs validation ratings"),
            (["--keep", "best"], "keep='best' needs validation ratings"),
            (["--test", "holdout:2"], "fraction must lie between 0 and 1"),
            (["--test", "holdout:some"], "--test 'holdout:some': write the held-out share as a number"),
            (["--rating-scale", "5"], "--rating-scale '5': write lowest:highest"),
            (["--rating-scale", "5:1"], "--rating-scale '5:1'"),
            (["--rating-scale", "1:inf"], "rating_scale"),
            (["--backend", "gpu"], "unknown backend 'gpu'"),
            (["--on-bad-row", "ignore"], "--on-bad-row"),
            (["--seed", "-1"], "seed = -1"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_wrong_settings_exit_with_2(self, folder: Path, tmp_path: Path, arguments: list[str], words: str) -> None:
        ran = mfdmc("train", folder / "ratings.csv", "--out", tmp_path / "model", "--epochs", 1, *arguments)
        ran.refused(2, words)
        assert "Traceback" not in ran.err
        assert list(tmp_path.iterdir()) == []

    def test_a_missing_option_or_command_exits_with_2(self, folder: Path) -> None:
        mfdmc("train", folder / "ratings.csv").refused(2, "--out")
        mfdmc("train").refused(2, "ratings")
        mfdmc("tarin").refused(2, "tarin")

    def test_wrong_settings_are_told_before_files_are_read(self, tmp_path: Path) -> None:
        mfdmc("train", tmp_path / "none.csv", "--out", tmp_path / "model", "--epochs", 0).refused(2, "epochs = 0")

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--test", "none.csv"], "none.csv: no such file"),
            (["--test", "column:colour=red"], "colour"),
            (["--test", "column:fold=9"], "column fold: 0 of 400 rows have the value '9'"),
            (["--validation", "none.csv"], "none.csv: no such file"),
            (["--user-column", "person"], "person"),
            (["--rating-scale", "1:4"], "outside the rating scale 1..4"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_unusable_data_exit_with_3(self, folder: Path, tmp_path: Path, arguments: list[str], words: str) -> None:
        ran = mfdmc("train", folder / "ratings.csv", "--out", tmp_path / "model", *SMALL, *arguments)
        ran.refused(3, words)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("text", "where"),
        [
            ("user,item,rating\n1,1,5\n1,2,bad\n", "row 3, column rating: rating 'bad'"),
            ("user,item,rating\n1,1,5\n,2,3\n", "row 3, column user"),
            ("user,item,rating\n1,1,5\n1,2\n", "row 3: 2 fields where the first line has 3"),
            ("1\t1\t5\n1\t2\tnan\n", "row 2, column 3"),
            ("user,item,rating\n", "no ratings"),
            ("", "the file is empty"),
        ],
        ids=["rating", "user", "fields", "no-header", "header-only", "empty"],
    )
    def test_errors_name_file_row_and_column(self, tmp_path: Path, text: str, where: str) -> None:
        path = tmp_path / "broken.csv"
        path.write_text(text)
        mfdmc("train", path, "--out", tmp_path / "model", *SMALL).refused(3, f"{path}", where)

    def test_where_the_model_goes_is_checked_before_the_data_are_read(self, tmp_path: Path) -> None:
        mfdmc("train", tmp_path / "none.csv", "--out", tmp_path / "nowhere" / "m").refused(3, "nowhere does not exist")
        mfdmc("train", tmp_path / "none.csv", "--out", tmp_path).refused(3, "is a folder; give the name of a file")

    @pytest.mark.parametrize("command", [["evaluate"], ["predict"], ["recommend", "--user", "1"]], ids=lambda c: c[0])
    @pytest.mark.parametrize("kind", ["pickle", "torch", "text", "truncated", "missing", "folder"])
    def test_what_is_no_model_exits_with_4(self, folder: Path, tmp_path: Path, command: list[str], kind: str) -> None:
        path = tmp_path / "model"
        if kind == "pickle":
            path.write_bytes(pickle.dumps({"weights": [1, 2]}))
        elif kind == "torch":
            torch.save({"weights": torch.ones(2)}, path)
        elif kind == "text":
            path.write_text("user,item,rating\n")
        elif kind == "truncated":
            path.write_bytes((folder / "model").read_bytes()[:1000])
        elif kind == "folder":
            path.mkdir()
        words = {
            "pickle": "is a pickle or zip archive, which is never loaded because it can run code",
            "torch": "is a pickle or zip archive, which is never loaded because it can run code",
            "missing": "cannot be read: No such file",
            "folder": "cannot be read: Is a directory",
        }.get(kind, "truncated or not a safetensors file")
        data = [folder / "u1.test"] if command[0] != "recommend" else []
        mfdmc(command[0], path, *data, *command[1:]).refused(4, f"error: {path}: {words}")

    def test_diverging_exits_with_5(self, folder: Path, tmp_path: Path) -> None:
        arguments = ["--out", tmp_path / "model", *SMALL, "--epochs", 20, "--learning-rate-centers", "1e30"]
        mfdmc("train", folder / "ratings.csv", *arguments).refused(5, "the loss became", "learning rate of 1e+30")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("how", ["option", "variable"])
    def test_a_backend_that_cannot_run_exits_with_6(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
    ) -> None:
        absent = dataclasses.replace(dispatch.BACKENDS["cpu"], why_unavailable=lambda: "it was not built")
        monkeypatch.setitem(dispatch.BACKENDS, "cpu", absent)
        option = ["--backend", "cpu"]
        if how == "variable":
            monkeypatch.setenv("MFDMC_BACKEND", "cpu")
            option = []
        ran = mfdmc("train", folder / "ratings.csv", "--out", tmp_path / "model", *SMALL, *option)
        ran.refused(6, "backend 'cpu' cannot run", "Available for it here: reference")
        assert list(tmp_path.iterdir()) == []

    def test_an_interruption_exits_with_130(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupted(*arguments: object, **options: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(MFDMC, "fit", interrupted)
        mfdmc("train", folder / "ratings.csv", "--out", tmp_path / "model", *SMALL).refused(130, "interrupted")
        assert list(tmp_path.iterdir()) == []

    def test_any_other_error_of_ours_exits_with_1(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def failing(*arguments: object, **options: object) -> None:
            raise MFDMCError("[red]not markup[/]")

        monkeypatch.setattr(MFDMC, "fit", failing)
        arguments = ["--out", tmp_path / "model", *SMALL, "--quiet"]
        ran = mfdmc("train", folder / "ratings.csv", *arguments)
        ran.refused(1)
        assert ran.err == "error: [red]not markup[/]\n"

    def test_every_error_has_an_exit_code(self) -> None:
        kinds = {kind for kind in vars(mfdmc_fast.errors).values() if isinstance(kind, type)}
        assert {kind for kind, _ in output._EXIT_CODES} == {kind for kind in kinds if issubclass(kind, MFDMCError)}


class TestDataOptions:
    """How a ratings file is read, as told on the command line."""

    @pytest.mark.parametrize("delimiter", [r"\t", "\t", ";", "::"], ids=repr)
    def test_columns_and_delimiter(self, folder: Path, tmp_path: Path, delimiter: str) -> None:
        ratings = read_ratings(folder / "ratings.csv")
        columns = (ratings.ratings, ratings.timestamps, ratings.users, ratings.items)
        separator = delimiter.replace(r"\t", "\t")
        rows = [separator.join(map(str, row)) for row in zip(*columns, strict=True)]
        (tmp_path / "strange").write_text("\n".join(["stars", *rows][1:]) + "\n")
        options = ["--delimiter", delimiter, "--no-header", "--user-column", 2, "--item-column", 3]
        options += ["--rating-column", 0, "--timestamp-column", 1, "--json"]
        values = mfdmc("evaluate", folder / "model", tmp_path / "strange", *options).json()
        assert values == mfdmc("evaluate", folder / "model", folder / "ratings.csv", "--json").json()

    def test_columns_by_name(self, folder: Path, tmp_path: Path) -> None:
        lines = (folder / "ratings.csv").read_text().splitlines()
        (tmp_path / "named.csv").write_text("\n".join(["who,what,how much,when,fold,part", *lines[1:]]) + "\n")
        options = ["--user-column", "who", "--item-column", "what", "--rating-column", "how much", "--json"]
        values = mfdmc("evaluate", folder / "model", tmp_path / "named.csv", *options).json()
        assert values == mfdmc("evaluate", folder / "model", folder / "ratings.csv", "--json").json()

    def test_bad_and_repeated_rows(self, folder: Path, tmp_path: Path) -> None:
        lines = (folder / "ratings.csv").read_text().splitlines()
        changed = lines[1].split(",")
        changed[2] = "1.0" if changed[2] != "1.0" else "5.0"
        (tmp_path / "dirty.csv").write_text("\n".join([*lines, ",2,3,4,5,6", ",".join(changed)]) + "\n")
        arguments = ["train", tmp_path / "dirty.csv", "--out", tmp_path / "model", *SMALL, "--json"]
        mfdmc(*arguments).refused(3, "row 402, column user_id", "--on-bad-row skip")
        values = mfdmc(*arguments, "--on-bad-row", "skip").json()
        assert (values["ratings"], values["bad_rows_skipped"], values["repeated_pairs"]) == (400, 1, 1)
        refused = mfdmc(*arguments, "--on-bad-row", "skip", "--on-repeat", "error")
        refused.refused(3, "row 403", "first in row 2", "--on-repeat last")

    def test_the_rating_scale_is_that_of_the_model(self, folder: Path, tmp_path: Path) -> None:
        arguments = ["--out", tmp_path / "model", *SMALL, "--rating-scale", "0:10", "--json"]
        mfdmc("train", folder / "ratings.csv", *arguments).json()
        assert load_model(tmp_path / "model").rating_scale_ == (0.0, 10.0)
        arguments = [folder / "ratings.csv", "--rating-scale", "1:4"]
        mfdmc("evaluate", folder / "model", *arguments).refused(3, "outside the rating scale")
        mfdmc("crossval", *arguments, *SMALL).refused(3, "outside the rating scale")


class TestRecommend:
    """`mfdmc recommend`."""

    def test_json_agrees_with_python(self, folder: Path) -> None:
        values = mfdmc(
            "recommend", folder / "model", "--user", 7, "--user", "nobody", "-n", 3, "--include-seen", "--json"
        ).json()
        top = load_model(folder / "model").recommend(["7", "nobody"], 3, exclude_seen=False)
        listed = values["recommendations"]
        assert [(entry["user"], entry["known"]) for entry in listed] == [("7", True), ("nobody", False)]
        for entry, items, scores in zip(listed, top.items, top.scores, strict=True):
            assert [row["item"] for row in entry["items"]] == items.tolist()
            assert [row["score"] for row in entry["items"]] == pytest.approx(scores.tolist(), abs=1e-6)

    def test_seen_items_are_left_out(self, folder: Path) -> None:
        ratings = read_ratings(folder / "ratings.csv")
        values = mfdmc("recommend", folder / "model", "--all", "-n", 30, "--json").json()
        assert [entry["user"] for entry in values["recommendations"]] == sorted(set(ratings.users.tolist()))
        for entry in values["recommendations"]:
            seen = set(ratings.items[ratings.users == entry["user"]].tolist())
            assert {row["item"] for row in entry["items"]} == set(range(1, 31)) - seen

    def test_a_file_has_one_row_per_recommendation(self, folder: Path, tmp_path: Path) -> None:
        out = tmp_path / "top.csv"
        values = mfdmc("recommend", folder / "model", "--all", "-n", 4, "--out", out, "--json").json()
        listed = mfdmc("recommend", folder / "model", "--all", "-n", 4, "--json").json()["recommendations"]
        rows = table(out.read_text())
        assert values == {"out": str(out), "users": len(listed), "recommendations": len(rows)}
        expected = [
            (str(e["user"]), str(rank), str(row["item"]), row["score"], "True")
            for e in listed
            for rank, row in enumerate(e["items"], start=1)
        ]
        found = [(r["user"], r["rank"], r["item"], round(float(r["score"]), 6), r["known"]) for r in rows]
        assert found == expected
        assert [p.name for p in tmp_path.iterdir()] == ["top.csv"]

    def test_the_table_shows_the_items_and_a_note_the_unknown(self, folder: Path) -> None:
        ran = mfdmc("recommend", folder / "funkmf", "--user", 7, "--user", "no[bold]body", "-n", 2)
        assert ran.status == 0
        assert ran.err == "not in training: no[bold]body; they get the items with the highest bias\n"
        for item, score in zip(*load_model(folder / "funkmf").recommend("7", 2)[:2], strict=True):
            assert re.search(rf"7 .* {item} .* {score:.4f}", ran.out)
        assert "no[bold]body" in ran.out

    def test_somebody_must_be_named(self, folder: Path, tmp_path: Path) -> None:
        for arguments in ([], ["--all", "--user", "1"]):
            mfdmc("recommend", folder / "model", *arguments).refused(2, "say for whom: --user ID")
        mfdmc("recommend", folder / "model", "--user", 1, "-n", 0).refused(2, "-n")
        mfdmc("recommend", folder / "model", "--user", 1, "--out", tmp_path / "no" / "x").refused(3, "does not exist")

    def test_a_user_who_has_seen_everything(self, tmp_path: Path) -> None:
        (tmp_path / "r.csv").write_text("user,item,rating\na,x,1\na,y,2\na,z,3\nb,x,2\nb,y,3\n")
        arguments = ["--out", tmp_path / "model", "--epochs", 1, "--n-clusters", 2, "--json"]
        mfdmc("train", tmp_path / "r.csv", *arguments).json()
        values = mfdmc("recommend", tmp_path / "model", "--user", "a", "--user", "b", "--json").json()
        items = [[row["item"] for row in entry["items"]] for entry in values["recommendations"]]
        assert items == [[], ["z"]]
        out = tmp_path / "top.csv"
        assert mfdmc("recommend", tmp_path / "model", "--user", "a", "--out", out, "--json").json()["users"] == 1
        assert out.read_text() == "user,rank,item,score,known\n"


class TestPredict:
    """`mfdmc predict`."""

    @pytest.fixture
    def pairs(self, tmp_path: Path) -> Path:
        """Pairs with a repeated and three unknown ones."""
        path = tmp_path / "pairs.csv"
        path.write_text("user,item\n7,3\n7,4\nnobody,3\n7,nothing\nnobody,nothing\n7,3\n")
        return path

    def test_the_lines_are_the_predictions_in_the_order_of_the_pairs(self, folder: Path, pairs: Path) -> None:
        ran = mfdmc("predict", folder / "model", pairs)
        assert ran.status == 0, ran.err
        users, items = zip(*(line.split(",") for line in pairs.read_text().splitlines()[1:]), strict=True)
        predictions, known = load_model(folder / "model").predict(users, items, return_known=True)
        rows = table(ran.out)
        assert [(row["user"], row["item"]) for row in rows] == list(zip(users, items, strict=True))
        assert [float(row["prediction"]) for row in rows] == pytest.approx(predictions.tolist(), rel=1e-5)
        assert [row["known"] for row in rows] == [str(int(k)) for k in known]
        assert known.tolist() == [True, True, False, False, False, True]
        assert ran.out.startswith("user,item,prediction,known\n")

    def test_a_file_and_its_summary(self, folder: Path, pairs: Path, tmp_path: Path) -> None:
        out = tmp_path / "predictions.csv"
        values = mfdmc("predict", folder / "model", pairs, "--out", out, "--json").json()
        assert values == {"out": str(out), "pairs": 6, "unknown": 3}
        assert out.read_text() == mfdmc("predict", folder / "model", pairs).out
        shown = mfdmc("predict", folder / "model", pairs, "--out", out)
        assert shown.status == 0
        assert "unknown" in shown.out

    def test_json_needs_a_file(self, folder: Path, pairs: Path) -> None:
        mfdmc("predict", folder / "model", pairs, "--json").refused(2, "say with --out where the predictions go")

    def test_a_folder_that_is_not_there(self, folder: Path, pairs: Path, tmp_path: Path) -> None:
        ran = mfdmc("predict", folder / "model", pairs, "--out", tmp_path / "nowhere" / "p.csv")
        ran.refused(3, "nowhere does not exist")

    @pytest.mark.parametrize("name", ["u1.test", "ratings.csv", "ratings.parquet"])
    def test_files_of_ratings_are_files_of_pairs(self, folder: Path, name: str) -> None:
        ran = mfdmc("predict", folder / "model", folder / name)
        assert ran.status == 0, ran.err
        rows, ratings = table(ran.out), read_ratings(folder / name)
        assert [int(row["user"]) for row in rows] == ratings.users.tolist()
        assert [int(row["item"]) for row in rows] == ratings.items.tolist()
        predictions = np.array([float(row["prediction"]) for row in rows])
        rmse = np.sqrt(np.mean((predictions - ratings.ratings) ** 2))
        assert load_model(folder / "model").evaluate(ratings)["rmse"] == pytest.approx(rmse, rel=1e-4)

    @pytest.mark.parametrize(
        ("text", "options"),
        [
            ("what;who\n3;7\n4;7\n", ["--user-column", "who", "--item-column", "what"]),
            ("3\t7\n4\t7\n", ["--user-column", "1", "--item-column", "0"]),
            ("7 3\n7 4\n", []),
            ("user::item\n7::3\n7::4\n", []),
        ],
        ids=["names", "positions", "blanks", "double-colons"],
    )
    def test_two_columns_are_enough(self, folder: Path, tmp_path: Path, text: str, options: list[str]) -> None:
        (tmp_path / "pairs").write_text(text)
        ran = mfdmc("predict", folder / "model", tmp_path / "pairs", *options)
        assert ran.status == 0, ran.err
        assert [(row["user"], row["item"], row["known"]) for row in table(ran.out)] == [
            ("7", "3", "1"),
            ("7", "4", "1"),
        ]

    @pytest.mark.parametrize(
        ("text", "words"),
        [("", "empty"), ("user,item\n", "no "), ("user\n1\n2\n", "2 fields"), ("user,item\n1,2\n,2\n", "row 3")],
        ids=["empty", "header-only", "one-column", "missing-id"],
    )
    def test_unusable_pairs(self, folder: Path, tmp_path: Path, text: str, words: str) -> None:
        path = tmp_path / "pairs.csv"
        path.write_text(text)
        mfdmc("predict", folder / "model", path).refused(3, str(path), words)
        mfdmc("predict", folder / "model", tmp_path / "none.csv").refused(3, "none.csv: no such file")


def test_ids_with_commas_quotes_and_line_breaks_survive_csv(tmp_path: Path) -> None:
    users = ["a,b", 'say "hi"', "ü"]
    items = ["x,y", "z", '"']
    rows = [(u, i, float(1 + (j + k) % 5)) for j, u in enumerate(users) for k, i in enumerate(items) if j != k]
    columns = [np.array(column, dtype=object) for column in list(zip(*rows, strict=True))[:2]]
    source = write_csv(tmp_path / "r.csv", Ratings(columns[0], columns[1], np.array([row[2] for row in rows])))
    mfdmc(
        "train", source, "--out", tmp_path / "model", "--epochs", 1, "--n-clusters", 2, "--n-views", 1, "--json"
    ).json()
    mfdmc("recommend", tmp_path / "model", "--all", "--out", tmp_path / "top.csv", "--json").json()
    found = {(row["user"], row["item"]) for row in table((tmp_path / "top.csv").read_text(encoding="utf-8"))}
    assert found == set(zip(users, items, strict=True))
    ran = mfdmc("predict", tmp_path / "model", source)
    assert ran.status == 0, ran.err
    assert [(row["user"], row["item"], row["known"]) for row in table(ran.out)] == [(u, i, "1") for u, i, _ in rows]


class TestStreams:
    """Results on standard output, everything else on standard error."""

    @pytest.fixture(params=["train", "evaluate", "crossval", "recommend", "predict", "demo"])
    def command(
        self, request: pytest.FixtureRequest, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> list[object]:
        """Arguments of a command, each with something to say."""
        planted = make_planted_ratings(60, 50, 900, seed=3)
        monkeypatch.setattr(commands, "make_planted_ratings", lambda seed: planted)
        csv_file = folder / "ratings.csv"
        return {
            "train": ["train", csv_file, "--out", tmp_path / "m", "--test", "holdout:0.1", *SMALL],
            "evaluate": ["evaluate", folder / "model", csv_file],
            "crossval": ["crossval", csv_file, "--folds", "2", *SMALL],
            "recommend": ["recommend", folder / "model", "--user", "nobody"],
            "predict": ["predict", folder / "model", csv_file, "--out", tmp_path / "p.csv"],
            "demo": ["demo", "--out", tmp_path / "m"],
        }[request.param]

    def test_quiet_commands_say_nothing_on_standard_error(self, command: list[object]) -> None:
        ran = mfdmc(*command, "--quiet")
        assert (ran.status, ran.err) == (0, "")
        assert ran.out

    def test_json_is_the_only_line(self, command: list[object]) -> None:
        ran = mfdmc(*command, "--json", "-q")
        assert ran.json()
        assert ran.err == ""
        loud = mfdmc(*command, "--json").json()
        assert loud.keys() == ran.json().keys()


def test_demo_compares_both_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = make_planted_ratings(60, 50, 900, seed=3)
    monkeypatch.setattr(commands, "make_planted_ratings", lambda seed: planted)
    values = mfdmc("demo", "--seed", 3, "--out", tmp_path / "demo", "--json").json()
    _, train, test = holdout(planted, 0.2, 3)
    assert values["mfdmc_rmse"] == pytest.approx(MFDMC(seed=3).fit(train).evaluate(test)["rmse"], rel=1e-12)
    assert values["funkmf_rmse"] == pytest.approx(FunkMF(seed=3).fit(train).evaluate(test)["rmse"], rel=1e-12)
    assert values["ratings"] == 900
    assert MFDMC.load(tmp_path / "demo").evaluate(test)["rmse"] == values["mfdmc_rmse"]
    shown = mfdmc("demo", "--seed", 3)
    assert shown.status == 0
    for word in (f"{values['mfdmc_rmse']:.4f}", f"{values['funkmf_rmse']:.4f}", "clusters of each user view", "Next:"):
        assert word in shown.out


class TestDoctorAndHelp:
    """What the command tells about itself."""

    def test_doctor(self) -> None:
        values = mfdmc("doctor", "--json").json()
        assert values["versions"]["mfdmc_fast"] == mfdmc_fast.__version__
        assert values["versions"]["torch"] == torch.__version__
        assert set(values["backends"]) == set(dispatch.BACKENDS)
        assert values["backends"]["reference"]["why_unavailable"] is None
        shown = mfdmc("doctor")
        assert (shown.status, shown.err) == (0, "")
        for word in (mfdmc_fast.__version__, "reference", "ready"):
            assert word in shown.out

    def test_version(self) -> None:
        assert mfdmc("--version") == Ran(0, mfdmc_fast.__version__ + "\n", "")

    def test_no_arguments_show_the_help(self) -> None:
        ran = mfdmc()
        for word in ("Usage:", "train", "mfdmc demo", "mfdmc train ratings.csv --test holdout:0.1"):
            assert word in ran.out + ran.err

    @pytest.mark.parametrize("command", [c.name for c in commands.app.registered_commands])
    def test_every_command_has_examples_of_itself(self, command: str) -> None:
        ran = mfdmc(command, "--help")
        assert ran.status == 0
        assert "Examples" in ran.out
        assert re.findall(r"^ *mfdmc (\S+)", ran.out.partition("Examples")[2], re.MULTILINE).count(command) >= 1

    def test_every_setting_is_an_option_with_its_default(self) -> None:
        text = re.sub(r"[│\s]+", " ", mfdmc("train", "--help").out)
        for config in (MFDMCConfig(), FunkMFConfig(), BayesianMFConfig()):
            for field in dataclasses.fields(config):
                assert "--" + field.name.replace("_", "-") in text
                assert field.metadata["help"].split(";")[0] in text
        assert f"{MFDMCConfig.epochs} (mfdmc) {FunkMFConfig.epochs} (funkmf)" in text
        assert f"[default: ({MFDMCConfig.weight_entropy})]" in text
        panels = re.findall(r"Settings of ([a-z ]+?) ─", text)
        assert panels == ["every model", "mfdmc and funkmf", "mfdmc", "funkmf", "bayesian"]
        # each option stands under the models that have it
        assert text.index("Settings of mfdmc and funkmf") < text.index("--epochs") < text.index("Settings of mfdmc ─")
        assert text.index("Settings of bayesian") < text.index("--sweeps")

    def test_the_examples_run(self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("ratings.csv", "ratings.parquet", "u1.base", "u1.test"):
            (tmp_path / name).write_bytes((folder / name).read_bytes())
        (tmp_path / "pairs.csv").write_text("user,item\n1,2\n")
        for year in (2024, 2025):
            (tmp_path / f"{year}.parquet").write_bytes((folder / "ratings.parquet").read_bytes())
        (tmp_path / "parts").mkdir()
        (tmp_path / "parts" / "1.csv.gz").write_bytes(gzip.compress((folder / "ratings.csv").read_bytes()))
        (tmp_path / "new-users.csv").write_text("user,item,rating\n901,2,4\n901,3,2\n")
        (tmp_path / "today.csv").write_text("user,item,rating\n1,2,4\n902,3,2\n")
        exporting = all(importlib.util.find_spec(name) for name in ("faiss", "onnx", "onnxruntime"))
        for name, separator in (("u.item", "|"), ("u.user", "|"), ("movies.csv", ",")):
            lines = [separator.join((str(k), f"title {k}", f"label{k % 3}")) for k in range(1, 61)]
            (tmp_path / name).write_text("\n".join([separator.join(("id", "title", "label")), *lines]))
        (tmp_path / "ml-100k").symlink_to(folder)
        monkeypatch.chdir(tmp_path)
        planted = make_planted_ratings(60, 50, 900, seed=3)
        monkeypatch.setattr(commands, "make_planted_ratings", lambda seed: planted)
        ran = 0
        for command in commands.app.registered_commands:
            for example in re.findall(r"^ *(mfdmc .*)$", str(command.epilog), re.MULTILINE):
                words = shlex.split(example.partition("|")[0])[1:]
                if "--faiss" in words and not exporting:
                    continue
                fewer = ["--sweeps", 9, "--burn-in", 3] if "bayesian" in words else ["--epochs", 2]
                result = mfdmc(*words, *(fewer if command.name in ("train", "crossval", "tune") else []))
                assert (result.status, example) == (0, example), result.err
                ran += 1
        assert ran >= 15


class TestProcesses:
    """Real processes: `python -m mfdmc_fast`."""

    def test_a_training_in_the_working_folder(self, folder: Path, tmp_path: Path) -> None:
        for name in ("u1.base", "u1.test"):
            (tmp_path / name).write_bytes((folder / name).read_bytes())
        ran = python_m("train", "u1.base", "--test", "u1.test", "--out", "m", *SMALL, "--json", "-q", cwd=tmp_path)
        assert ran.err == ""
        evaluated = mfdmc("evaluate", tmp_path / "m", folder / "u1.test", "--json").json()
        assert evaluated["rmse"] == ran.json()["rmse"]
        assert sorted(p.name for p in tmp_path.iterdir()) == ["m", "u1.base", "u1.test"]

    def test_a_reader_that_goes_away_is_no_error(self, folder: Path, tmp_path: Path) -> None:
        """As in `mfdmc predict model pairs.csv | head`."""
        pairs = tmp_path / "pairs.csv"
        pairs.write_text("user,item\n" + "7,3\n" * 30_000)
        process = subprocess.Popen(
            [sys.executable, "-m", "mfdmc_fast", "predict", str(folder / "model"), str(pairs)],
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        first = process.stdout.readline()
        process.stdout.close()
        assert process.stderr is not None
        with process.stderr:
            errors = process.stderr.read()
        assert (process.wait(120), first, errors) == (0, "user,item,prediction,known\n", "")

    @pytest.mark.usefixtures("can_be_interrupted")
    def test_ctrl_c_leaves_nothing(self, folder: Path, tmp_path: Path) -> None:
        old = b"an older model"
        (tmp_path / "model").write_bytes(old)
        arguments = ["train", folder / "ratings.csv", "--out", tmp_path / "model", *SMALL, "--epochs", 10**7, "--json"]
        process = subprocess.Popen(
            [sys.executable, "-m", "mfdmc_fast", *map(str, arguments)],
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        first = process.stderr.readline()
        assert "400 training ratings" in first, first + process.stderr.read()
        time.sleep(0.5)  # into the training
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=60)
        assert (process.returncode, out) == (130, "")
        assert "interrupted; nothing was written" in errors
        assert "Traceback" not in errors
        assert [p.name for p in tmp_path.iterdir()] == ["model"]
        assert (tmp_path / "model").read_bytes() == old

    def test_progress_is_shown_in_a_terminal(self, folder: Path, tmp_path: Path) -> None:
        arguments = ["train", folder / "ratings.csv", "--out", tmp_path / "model", *SMALL, "--epochs", 150]
        arguments += ["--validation-fraction", 0.1]
        child = pexpect.spawn(
            sys.executable,
            ["-m", "mfdmc_fast", *map(str, arguments)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm", "COLUMNS": "160", "LINES": "40"},
            dimensions=(40, 160),
            encoding="utf-8",
            timeout=60,
        )
        child.expect(r"training.*epoch \d+/150.*loss \d+\.\d+ · RMSE \d\.\d{4} · clusters 6\+6")
        child.expect("stop_reason")
        child.expect(pexpect.EOF)
        child.close()
        assert child.exitstatus == 0
        assert (tmp_path / "model").exists()
