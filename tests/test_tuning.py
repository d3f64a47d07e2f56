"""The search for settings: its spaces, what it trains on, its budget, and the command."""

from __future__ import annotations

import builtins
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_tools import mfdmc, write_csv
from rich.console import Console

from mfdmc_fast import tuning
from mfdmc_fast.config import PRESETS, config_from_dict, with_l2
from mfdmc_fast.data import Ratings, holdout, make_planted_ratings, read_ratings
from mfdmc_fast.errors import ConfigError, DataError, TrainingDiverged
from mfdmc_fast.estimator import MFDMC, BayesianMF, FunkMF, RatingEstimator
from mfdmc_fast.progress import TrialsBar
from mfdmc_fast.tuning import Choice, Range, Trial, TuningResult, search_space, tune

QUICK: dict[type[RatingEstimator], dict[str, Any]] = {
    MFDMC: {"epochs": 3, "n_views": 2, "n_clusters": 3},
    FunkMF: {"epochs": 3},
    BayesianMF: {"sweeps": 8, "burn_in": 2, "n_draws": 3},
}
KINDS = [MFDMC, FunkMF, BayesianMF]


@pytest.fixture(scope="module")
def parts() -> tuple[Ratings, Ratings]:
    _, train, valid = holdout(make_planted_ratings(40, 30, 500, seed=2), 0.2, 1)
    return train, valid


def search(
    kind: type[RatingEstimator], parts: tuple[Ratings, Ratings], trials: int = 4, **options: Any
) -> TuningResult:
    return tune(kind, *parts, trials, **{"fixed": QUICK[kind], **options})


@pytest.mark.parametrize("kind", KINDS)
def test_the_best_trial_wins_and_can_be_trained_again(
    kind: type[RatingEstimator], parts: tuple[Ratings, Ratings]
) -> None:
    heard: list[Trial] = []
    result = search(kind, parts, on_trial=heard.append)
    assert heard == result.trials
    assert len(result.trials) == 4
    assert not result.interrupted
    rmses = [trial.rmse for trial in result.trials]
    assert result.rmse == min(rmse for rmse in rmses if rmse is not None)
    assert result.settings == result.trials[rmses.index(result.rmse)].settings
    assert len({str(trial.settings) for trial in result.trials}) > 1
    assert kind(**result.settings).fit(parts[0]).evaluate(parts[1])["rmse"] == result.rmse


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_trial_has_the_settings_to_begin_with(
    kind: type[RatingEstimator], parts: tuple[Ratings, Ratings]
) -> None:
    result = search(kind, parts, trials=2, seed=3)
    expected = kind(**QUICK[kind], seed=3).fit(parts[0]).evaluate(parts[1])["rmse"]
    assert result.trials[0].settings == {**QUICK[kind], "seed": 3}
    assert result.start_rmse == result.trials[0].rmse == expected >= result.rmse


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_search(kind: type[RatingEstimator], parts: tuple[Ratings, Ratings]) -> None:
    one, same, other = (
        [(trial.settings, trial.rmse) for trial in search(kind, parts, seed=seed).trials] for seed in (1, 1, 2)
    )
    assert one == same != other


def test_settings_stay_inside_the_space_and_fixed_ones_as_they_are(parts: tuple[Ratings, Ratings]) -> None:
    fixed = {**QUICK[MFDMC], "logit_scale": 0.33}
    result = search(MFDMC, parts, 8, fixed=fixed)
    space = tuning.space_for(MFDMC, {}, parts[0])
    for trial in result.trials[1:]:
        assert {name: trial.settings[name] for name in fixed} == fixed
        for name, values in space.items():
            found = trial.settings[name]
            if name in fixed:
                continue
            if isinstance(values, Choice):
                assert found in values.values
                continue
            if values.ramp:
                start, found, epochs = found.split(":")
                assert (start, epochs) == ("0", "30")
            assert 0.99 * values.low <= float(found) <= 1.01 * values.high
    for name in set(space) - set(fixed):
        assert len({str(trial.settings[name]) for trial in result.trials[1:]}) > 2, name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("optimizer", ["adam", "adagrad"])
@pytest.mark.parametrize("taught", [False, True])
def test_spaces_name_settings_and_reach_around_the_defaults(
    kind: type[RatingEstimator], optimizer: str, taught: bool
) -> None:
    space = search_space(kind, taught=taught, optimizer=optimizer)
    assert set(space) <= set(kind().get_params())
    for values in space.values():
        if isinstance(values, Range):
            assert 0 < values.low < values.high
        else:
            assert len(set(values.values)) == len(values.values) > 1
    if taught and kind is MFDMC:
        assert not {"weight_l2", "teacher"} & set(space)


def test_ranges_of_l2_follow_the_ratings_of_an_entity(parts: tuple[Ratings, Ratings]) -> None:
    for kind in (MFDMC, FunkMF):
        default = with_l2(kind()._config(), len(parts[0]), 70).weight_l2
        found = tuning.space_for(kind, {}, parts[0])["weight_l2"]
        assert isinstance(found, Range)
        assert found.low < default < found.high


def test_spaces_contain_the_presets() -> None:
    space = search_space(MFDMC, taught=True)
    for name in set(PRESETS) - {"fast"}:
        config = config_from_dict(MFDMC._config_class, PRESETS[name])
        for setting in ("learning_rate", "learning_rate_centers", "learning_rate_biases", "center_scale"):
            values = space[setting]
            assert isinstance(values, Range)
            assert values.low <= getattr(config, setting) <= values.high


def test_a_search_without_models() -> None:
    space = {"x": Range(0.1, 10), "kind": Choice(("a", "b"))}
    asked: list[dict[str, Any]] = []

    def evaluate(settings: dict[str, Any]) -> float | None:
        asked.append(settings)
        return None if len(asked) == 2 else abs(settings.get("x", 3) - 1)

    found = tuning.search(space, 12, 5, evaluate)
    assert found[0] == ({}, 2)
    assert found[1][1] is None
    assert [settings for settings, _ in found] == asked
    first, asked[:] = list(asked), []
    assert tuning.search(space, 12, 5, evaluate) == found
    assert asked == first


def test_other_classes_have_no_space() -> None:
    class Other(RatingEstimator):
        pass

    try:
        with pytest.raises(ConfigError, match="no search space for Other"):
            search_space(Other)
    finally:
        del RatingEstimator._kinds["Other"]


def test_a_teacher_is_fitted_once(parts: tuple[Ratings, Ratings], monkeypatch: pytest.MonkeyPatch) -> None:
    fits: list[Any] = []
    fit = BayesianMF.fit

    def counted(self: BayesianMF, *arguments: Any, **options: Any) -> BayesianMF:
        fits.append(options)
        return fit(self, *arguments, **options)

    monkeypatch.setattr(BayesianMF, "fit", counted)
    labels = {item: ["even" if item % 2 == 0 else "odd"] for item in range(1, 31)}
    teacher = BayesianMF(**QUICK[BayesianMF])
    result = search(MFDMC, parts, start={"teacher": teacher}, item_features=labels)
    assert len(fits) == 1
    assert fits[0]["item_features"].ids.tolist() == list(range(1, 31))
    # the winner, taught in the usual way, is as good: its teacher's predictions differ by rounding alone
    assert result.settings["teacher"] is teacher
    again = MFDMC(**result.settings).fit(parts[0], item_features=labels)
    assert again.evaluate(parts[1])["rmse"] == pytest.approx(result.rmse, abs=1e-3)


def test_bayesian_stands_for_a_teacher_with_defaults(parts: tuple[Ratings, Ratings]) -> None:
    result = search(MFDMC, parts, 2, start={**PRESETS["balanced"]})
    assert result.settings["teacher"] == "bayesian"
    assert result.trials[0].settings == {**PRESETS["balanced"], **QUICK[MFDMC], "seed": 0}
    expected = MFDMC(**result.trials[0].settings).fit(parts[0]).evaluate(parts[1])["rmse"]
    assert result.start_rmse == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("kind", "options", "error", "message"),
    [
        (MFDMC, {"trials": 0}, ConfigError, "trials = 0: must be 1 or more"),
        (MFDMC, {"fixed": {"epochs": 0}}, ConfigError, "epochs = 0"),
        (MFDMC, {"start": {"teacher": "file.csv"}}, ConfigError, "may have seen the validation ratings"),
        (MFDMC, {"item_features": {1: ["a"]}}, ConfigError, "MFDMC without a teacher does not use"),
        (FunkMF, {"user_features": {1: ["a"]}}, ConfigError, "FunkMF does not use"),
        (MFDMC, {"start": {"teacher": FunkMF()}, "user_features": {1: ["a"]}}, ConfigError, "with this teacher"),
        (BayesianMF, {"user_features": {"x": ["a"], "y": ["a"]}}, DataError, "none of its ids"),
        (FunkMF, {"fixed": {"epochs": 2, "learning_rate": 1e30}}, TrainingDiverged, "all 4 trials diverged"),
    ],
    ids=["trials", "settings", "file", "features", "funkmf", "teacher", "ids", "diverged"],
)
def test_refusals(
    parts: tuple[Ratings, Ratings],
    kind: type[RatingEstimator],
    options: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        search(kind, parts, **options)


def test_a_trial_that_diverges_is_one_that_failed(parts: tuple[Ratings, Ratings]) -> None:
    space = {"learning_rate": Choice((1e30, 0.01)), "n_factors": Choice((2, 4, 8))}
    result = search(FunkMF, parts, 8, space=space)
    diverged = [trial for trial in result.trials if trial.rmse is None]
    assert diverged
    assert all(trial.settings["learning_rate"] == 1e30 for trial in diverged)
    assert result.settings.get("learning_rate") != 1e30


def test_equal_settings_are_trained_once(parts: tuple[Ratings, Ratings], monkeypatch: pytest.MonkeyPatch) -> None:
    fits: list[Any] = []
    fit = FunkMF.fit
    monkeypatch.setattr(FunkMF, "fit", lambda self, *a, **o: (fits.append(self.n_factors), fit(self, *a, **o))[1])
    result = search(FunkMF, parts, 9, space={"n_factors": Choice((2, 4))})
    assert len(result.trials) == 9
    assert sorted(fits) == [2, 4, 128]


@pytest.mark.parametrize("after", [0, 2])
def test_ctrl_c_keeps_the_best_so_far(
    parts: tuple[Ratings, Ratings], monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    full = search(FunkMF, parts, 5)
    fit, count = FunkMF.fit, iter(range(10))

    def interrupted(self: FunkMF, *arguments: Any, **options: Any) -> FunkMF:
        if next(count) == after:
            raise KeyboardInterrupt
        return fit(self, *arguments, **options)

    monkeypatch.setattr(FunkMF, "fit", interrupted)
    if after == 0:
        with pytest.raises(KeyboardInterrupt):
            search(FunkMF, parts, 5)
        return
    result = search(FunkMF, parts, 5)
    assert result.interrupted
    assert [(t.settings, t.rmse) for t in result.trials] == [(t.settings, t.rmse) for t in full.trials[:after]]
    assert result.rmse == min(trial.rmse or 9 for trial in result.trials)


def without_optuna(monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def absent(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == "optuna":
            raise ImportError("No module named 'optuna'")
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)


def test_without_optuna_the_command_to_install_it_is_told(
    parts: tuple[Ratings, Ratings], monkeypatch: pytest.MonkeyPatch
) -> None:
    without_optuna(monkeypatch)
    with pytest.raises(ConfigError, match=r"tuning needs optuna; install it with: pip install 'mfdmc_fast\[tune\]'"):
        search(FunkMF, parts)


def test_the_bar_shows_the_best_so_far() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=150, color_system=None)
    with TrialsBar(3, console) as bar:
        for rmse in (0.95, None, 0.97):
            bar.update(rmse)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "trial 3/3" in text
    assert "best RMSE 0.9500" in text
    assert "0.9700" not in text


class TestCommand:
    """`mfdmc tune`."""

    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        return write_csv(tmp_path / "ratings.csv", make_planted_ratings(40, 30, 500, seed=2))

    @pytest.mark.parametrize("kind", KINDS)
    def test_the_file_gives_the_same_model_again(
        self, source: Path, tmp_path: Path, kind: type[RatingEstimator]
    ) -> None:
        name = {MFDMC: "mfdmc", FunkMF: "funkmf", BayesianMF: "bayesian"}[kind]
        flags = [x for key, value in QUICK[kind].items() for x in ("--" + key.replace("_", "-"), value)]
        arguments = [source, "--model", name, *flags, "--trials", 3, "--test", "holdout:0.2", "--seed", 5]
        values = mfdmc("tune", *arguments, "--out", tmp_path / "s.toml", "--json").json()
        ratings = read_ratings(source)
        _, train, test = holdout(ratings, 0.2, 5)
        _, searched, watched = holdout(train, 0.1, 5)
        expected = tune(kind, searched, watched, 3, 5, fixed=QUICK[kind])
        assert (values["rmse"], values["start_rmse"]) == (expected.rmse, expected.start_rmse)
        assert values["settings"] == expected.settings
        assert (values["model"], values["trials"], values["interrupted"]) == (name, 3, False)
        # the test ratings are met once, by a training on all the others
        assert values["test_rmse"] == kind(**expected.settings).fit(train).evaluate(test)["rmse"]
        again = ["train", source, "--config", tmp_path / "s.toml", "--test", "holdout:0.2", "--out", tmp_path / "m"]
        trained = mfdmc(*again, "--json").json()
        assert (trained["model"], trained["rmse"]) == (name, values["test_rmse"])
        assert {path.name for path in tmp_path.iterdir()} == {"ratings.csv", "s.toml", "m"}

    def test_presets_files_and_flags(self, source: Path, tmp_path: Path) -> None:
        (tmp_path / "start.toml").write_text("center_scale = 0.9\nprune = false\n")
        quick = ["--epochs", 2, "--n-views", 2, "--n-clusters", 3, "--logit-scale", 0.4, "--trials", 3]
        arguments = [source, "--preset", "balanced", "--config", tmp_path / "start.toml", *quick]
        ran = mfdmc("tune", *arguments, "--valid", "holdout:0.3", "--out", tmp_path / "s.toml", "--json")
        values = ran.json()
        assert "350 ratings to train on, 150 to judge settings by" in ran.err
        assert values["settings"]["logit_scale"] == 0.4
        assert values["settings"]["teacher"] == "bayesian"
        assert values["settings"]["prune"] is False
        assert values["test_rmse"] is None
        text = (tmp_path / "s.toml").read_text()
        assert text.startswith(f"# mfdmc tune: RMSE {values['rmse']:.4f} on holdout:0.3, best of 3 trials\n")
        assert 'teacher = "bayesian"' in text

    def test_a_file_of_ratings_can_judge(self, source: Path, tmp_path: Path) -> None:
        _, train, valid = holdout(read_ratings(source), 0.2, 1)
        write_csv(tmp_path / "a.csv", train), write_csv(tmp_path / "b.csv", valid)
        arguments = ["tune", tmp_path / "a.csv", "--valid", tmp_path / "b.csv", "--model", "funkmf", "--epochs", 2]
        values = mfdmc(*arguments, "--trials", 1, "--json").json()
        assert values["rmse"] == FunkMF(epochs=2).fit(train).evaluate(valid)["rmse"]

    def test_the_tables(self, source: Path) -> None:
        ran = mfdmc("tune", source, "--model", "funkmf", "--epochs", 2, "--trials", 2)
        assert ran.status == 0, ran.err
        for word in ("the best settings", "start_rmse", "epochs"):
            assert word in ran.out

    def test_ctrl_c_writes_the_best_so_far_and_says_so(
        self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fit, count = FunkMF.fit, iter(range(10))

        def interrupted(self: FunkMF, *arguments: Any, **options: Any) -> FunkMF:
            if next(count) == 2:
                raise KeyboardInterrupt
            return fit(self, *arguments, **options)

        monkeypatch.setattr(FunkMF, "fit", interrupted)
        arguments = [source, "--model", "funkmf", "--epochs", 2, "--trials", 5, "--test", "holdout:0.1"]
        ran = mfdmc("tune", *arguments, "--out", tmp_path / "s.toml", "--json")
        assert ran.status == 130
        assert "interrupted after 2 of 5 trials; this is the best of them" in ran.err
        assert '"interrupted": true' in ran.out
        assert '"test_rmse": null' in ran.out
        assert "best of 2 trials" in (tmp_path / "s.toml").read_text()

    @pytest.mark.parametrize(
        ("arguments", "status", "words"),
        [
            (["--trials", "0"], 2, "--trials"),
            (["--valid", "holdout:some"], 2, "--valid 'holdout:some': write the held-out share as a number"),
            (["--valid", "none.csv"], 3, "none.csv: no such file"),
            (["--out", "nowhere/s.toml"], 3, "nowhere does not exist"),
            (["--model", "bayesian", "--epochs", "3"], 2, "epochs: not a setting of bayesian"),
            (["--epochs", "0"], 2, "epochs = 0"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_refusals(self, source: Path, arguments: list[str], status: int, words: str) -> None:
        mfdmc("tune", source, *arguments).refused(status, words)

    def test_without_optuna(self, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        without_optuna(monkeypatch)
        mfdmc("tune", source).refused(2, "pip install 'mfdmc_fast[tune]'")


def test_numbers_in_settings_are_short(parts: tuple[Ratings, Ratings]) -> None:
    """Three digits are what a file of settings should show, and what is trained is what it shows."""
    for trial in search(FunkMF, parts, 5).trials[1:]:
        for name in ("factor_scale", "learning_rate", "weight_l2"):
            assert np.isclose(trial.settings[name], float(f"{trial.settings[name]:.3g}"), rtol=0, atol=0)
