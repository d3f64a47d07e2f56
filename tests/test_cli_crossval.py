"""The command line around Bayesian models, baselines, features and presets."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_tools import mfdmc, table, write_csv
from rich.console import Console

from mfdmc_fast.config import PRESETS
from mfdmc_fast.data import Ratings, holdout, kfold, make_planted_ratings, read_features, read_ratings
from mfdmc_fast.estimator import MFDMC, BayesianMF, FunkMF, load_model
from mfdmc_fast.evaluate import compare, cross_validate
from mfdmc_fast.progress import ProgressBar

SMALL = ["--epochs", 2, "--n-views", 2, "--n-clusters", 3]
SAMPLER: dict[str, Any] = {"rank": 2, "sweeps": 9, "burn_in": 3, "n_draws": 3}
SAMPLER_OPTIONS = ["--rank", 2, "--sweeps", 9, "--burn-in", 3, "--n-draws", 3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ratings.csv, u.user, u.item and a Bayesian model; not to be changed."""
    folder = tmp_path_factory.mktemp("crossval")
    ratings = make_planted_ratings(40, 30, 400, seed=2)
    write_csv(folder / "ratings.csv", ratings)
    users = [f"{k}|{20 + k % 3}|{'FM'[k % 2]}|name {k}" for k in range(1, 41)]
    (folder / "u.user").write_text("\n".join(users) + "\n")
    items = [f"{k},Title {k},a|{'bc'[k % 2]}" for k in range(1, 31)]
    (folder / "u.item").write_text("\n".join(["item_id,title,genres", *items]) + "\n")
    arguments = ["--model", "bayesian", *SAMPLER_OPTIONS, "--out", folder / "model", "--json"]
    mfdmc("train", folder / "ratings.csv", *arguments).json()
    return folder


class TestBaseline:
    """`mfdmc crossval --baseline`."""

    @pytest.mark.parametrize("baseline", ["funkmf", "mfdmc"])
    def test_the_baseline_meets_the_same_folds(self, folder: Path, baseline: str) -> None:
        arguments = [folder / "ratings.csv", "--folds", 3, "--model", "bayesian", *SAMPLER_OPTIONS, "--seed", 4]
        values = mfdmc("crossval", *arguments, "--baseline", baseline, "--json").json()
        splits = kfold(read_ratings(folder / "ratings.csv"), 3, 4)
        model = cross_validate(BayesianMF(**SAMPLER, seed=4), splits)
        other = cross_validate({"funkmf": FunkMF, "mfdmc": MFDMC}[baseline](seed=4), splits)
        expected = compare(model, other)
        found = values["baseline"]
        assert found.pop("model") == baseline
        assert found.pop("interval") == pytest.approx(expected.interval)
        assert found == {k: v for k, v in expected.to_dict().items() if k != "interval"}
        assert values["mean_rmse"] == model.mean_rmse
        assert {"mean_rmse", "folds", "seconds"} <= values.keys()
        assert found["difference"] == pytest.approx(values["mean_rmse"] - found["mean_rmse"])

    def test_the_table_shows_the_difference(self, folder: Path) -> None:
        arguments = ["crossval", folder / "ratings.csv", "--folds", 2, *SMALL, "--baseline", "bayesian"]
        values = mfdmc(*arguments, "--json").json()["baseline"]
        ran = mfdmc(*arguments)
        assert ran.status == 0, ran.err
        low, high = values["interval"]
        assert (
            f"mfdmc - bayesian ({values['mean_rmse']:.4f}): {values['difference']:+.4f},"
            f" 95 % interval {low:+.4f} to {high:+.4f}" in ran.out
        )
        assert f"{values['fold_rmse'][1]:.4f}" in ran.out
        assert "bayesian fold fold2: RMSE" in ran.err

    def test_without_a_baseline_there_is_none(self, folder: Path) -> None:
        values = mfdmc("crossval", folder / "ratings.csv", "--folds", 2, *SMALL, "--json").json()
        assert "baseline" not in values

    def test_an_unknown_baseline_is_refused(self, folder: Path) -> None:
        mfdmc("crossval", folder / "ratings.csv", "--baseline", "svd").refused(2, "--baseline")


class TestFeatures:
    """`--users` and `--items`."""

    def test_train_gives_them_to_the_model(self, folder: Path, tmp_path: Path) -> None:
        arguments = [folder / "ratings.csv", "--model", "bayesian", *SAMPLER_OPTIONS, "--test", "holdout:0.2"]
        features = ["--users", folder / "u.user", "--items", folder / "u.item"]
        plain = mfdmc("train", *arguments, "--out", tmp_path / "m", "--json").json()
        ran = mfdmc("train", *arguments, *features, "--out", tmp_path / "m", "--json")
        _, train, test = holdout(read_ratings(folder / "ratings.csv"), 0.2, 0)
        model = BayesianMF(**SAMPLER).fit(
            train, user_features=read_features(folder / "u.user"), item_features=folder / "u.item"
        )
        assert ran.json()["rmse"] == pytest.approx(model.evaluate(test)["rmse"], rel=1e-12)
        assert ran.json()["rmse"] != plain["rmse"]
        assert "u.user: labels from column 2 (3), column 3 (2)" in ran.err
        assert "u.user: column 4 is left out: nearly every row has a value of its own" in ran.err

    def test_crossval_gives_them_to_those_who_take_them(self, folder: Path) -> None:
        arguments = ["crossval", folder / "ratings.csv", "--folds", 2, "--model", "bayesian", *SAMPLER_OPTIONS]
        arguments += ["--items", folder / "u.item", "--baseline", "funkmf", "--json"]
        values = mfdmc(*arguments).json()
        splits = kfold(read_ratings(folder / "ratings.csv"), 2, 0)
        model = cross_validate(BayesianMF(**SAMPLER), splits, item_features=folder / "u.item")
        assert values["mean_rmse"] == model.mean_rmse
        assert values["baseline"]["mean_rmse"] == cross_validate(FunkMF(), splits).mean_rmse

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ([], "MFDMC without a teacher does not use user_features or item_features"),
            (["--model", "funkmf"], "FunkMF does not use user_features or item_features; leave them out"),
            (["--teacher", "predictions.csv"], "MFDMC with this teacher does not use"),
        ],
        ids=["mfdmc", "funkmf", "table"],
    )
    def test_who_does_not_take_them_says_so(self, folder: Path, tmp_path: Path, options: list[str], words: str) -> None:
        arguments = [folder / "ratings.csv", "--items", folder / "u.item", "--out", tmp_path / "m", *options]
        mfdmc("train", *arguments).refused(2, words)

    def test_bad_tables_exit_with_3(self, folder: Path, tmp_path: Path) -> None:
        arguments = ["train", folder / "ratings.csv", "--model", "bayesian", "--out", tmp_path / "m"]
        mfdmc(*arguments, "--users", tmp_path / "none").refused(3, "none: no such file")
        (tmp_path / "twice.csv").write_text("id,kind\n1,a\n1,b\n")
        mfdmc(*arguments, "--users", tmp_path / "twice.csv").refused(
            3, "twice.csv, row 3, column id: id 1 occurs again"
        )
        (tmp_path / "other.csv").write_text("id,kind\nx,a\ny,a\nz,b\nw,b\n")
        mfdmc(*arguments, "--items", tmp_path / "other.csv").refused(3, "such as 'x'", "of the ratings, such as 1")


class TestPresets:
    """`--preset` < settings file < flags."""

    def test_a_file_wins_over_a_preset_and_flags_over_both(self, folder: Path, tmp_path: Path) -> None:
        config = tmp_path / "settings.toml"
        config.write_text("epochs = 2\ncenter_scale = 0.9\nlogit_scale = 0.8\n")
        arguments = ["--preset", "balanced", "--config", config, "--logit-scale", 0.7, "--n-clusters", 3]
        mfdmc("train", folder / "ratings.csv", *arguments, "--out", tmp_path / "model", "--json").json()
        settings = load_model(tmp_path / "model").get_params()
        expected = {**PRESETS["balanced"], "epochs": 2, "center_scale": 0.9, "logit_scale": 0.7, "n_clusters": 3}
        assert {name: settings[name] for name in expected} == expected

    def test_the_file_can_name_the_preset(self, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "s.toml").write_text('preset = "fast"\nepochs = 2\n')
        arguments = [folder / "ratings.csv", "--config", tmp_path / "s.toml", "--out", tmp_path / "model"]
        assert mfdmc("train", *arguments, "--json").json()["epochs"] == 2

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--preset", "best"], "unknown preset 'best'; known are: fast, accurate, balanced"),
            (["--preset", "fast", "--model", "funkmf"], "presets are settings of mfdmc, not of funkmf"),
        ],
    )
    def test_refusals(self, folder: Path, tmp_path: Path, arguments: list[str], words: str) -> None:
        mfdmc("train", folder / "ratings.csv", *arguments, "--out", tmp_path / "m").refused(2, words)
        mfdmc("crossval", folder / "ratings.csv", *arguments).refused(2, words)


class TestTeachers:
    """`--teacher`."""

    def test_a_file_of_a_model_teaches(self, folder: Path, tmp_path: Path) -> None:
        teacher = tmp_path / "teacher.safetensors"
        load_model(folder / "model").save(teacher)
        arguments = [folder / "ratings.csv", *SMALL, "--teacher", teacher, "--out", tmp_path / "m", "--json"]
        mfdmc("train", *arguments).json()
        expected = MFDMC(epochs=2, n_views=2, n_clusters=3, teacher=load_model(teacher)).fit(folder / "ratings.csv")
        pairs = read_ratings(folder / "ratings.csv")
        found = load_model(tmp_path / "m").predict(pairs.users, pairs.items)
        np.testing.assert_array_equal(found, expected.predict(pairs.users, pairs.items))

    def test_cross_validation_and_tuning_refuse_it(self, folder: Path) -> None:
        arguments = [folder / "ratings.csv", *SMALL, "--teacher", folder / "model"]
        mfdmc("crossval", *arguments).refused(2, "may have seen the test ratings", "teacher='bayesian'")
        mfdmc("tune", *arguments).refused(2, "may have seen the validation ratings", "teacher='bayesian'")


class TestStd:
    """`mfdmc predict --std`."""

    def test_a_column_of_deviations(self, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "pairs.csv").write_text("user,item\n1,2\n3,4\n1,999\n")
        ran = mfdmc("predict", folder / "model", tmp_path / "pairs.csv", "--std")
        assert ran.status == 0, ran.err
        rows = table(ran.out)
        assert list(rows[0]) == ["user", "item", "prediction", "std", "known"]
        model = load_model(folder / "model")
        predictions, deviations = model.predict([1, 3, 1], [2, 4, 999], return_std=True)
        assert [float(row["prediction"]) for row in rows] == pytest.approx(predictions.tolist(), rel=1e-5)
        assert [float(row["std"]) for row in rows[:2]] == pytest.approx(deviations[:2].tolist(), rel=1e-5)
        assert [(row["std"] == "", row["known"]) for row in rows] == [(False, "1"), (False, "1"), (True, "0")]
        plain = table(mfdmc("predict", folder / "model", tmp_path / "pairs.csv").out)
        assert plain == [{k: v for k, v in row.items() if k != "std"} for row in rows]

    def test_other_models_have_none(self, folder: Path, tmp_path: Path) -> None:
        FunkMF(epochs=1).fit(folder / "ratings.csv").save(tmp_path / "m")
        ran = mfdmc("predict", tmp_path / "m", folder / "ratings.csv", "--std")
        ran.refused(2, "--std", "is of kind FunkMF, which has no standard deviations; train with --model bayesian")


class TestProgress:
    """What the bar says of sweeps and epochs."""

    def shown(self, model: Any, ratings: Ratings) -> str:
        console = Console(file=io.StringIO(), force_terminal=True, width=150, color_system=None)
        model.fit(ratings, callbacks=[ProgressBar(console)])
        return str(console.file.getvalue())  # type: ignore[attr-defined]

    def test_sweeps_of_a_teacher_come_before_epochs(self) -> None:
        ratings = make_planted_ratings(40, 30, 400, seed=2)
        settings: dict[str, Any] = {"epochs": 2, "n_views": 2, "n_clusters": 3}
        text = self.shown(MFDMC(**settings, teacher=[BayesianMF(**SAMPLER), BayesianMF(**SAMPLER)]), ratings)
        assert text.count("teacher sweep 9/9") >= 2
        assert text.rindex("teacher sweep") < text.index("epoch 2/2")
        assert "teacher" not in self.shown(MFDMC(**settings), ratings)

    def test_a_bayesian_model_has_sweeps(self) -> None:
        text = self.shown(BayesianMF(**SAMPLER), make_planted_ratings(40, 30, 400, seed=2))
        assert "sweep 9/9" in text
        assert "epoch" not in text
        assert "teacher" not in text
