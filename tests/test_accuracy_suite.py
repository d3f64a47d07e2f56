"""The accuracy suite's machinery on generated ratings: nothing runs twice, all can be repeated, figures by hand."""

from __future__ import annotations

import importlib.util
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.stats
from rich.console import Console

from benchmarks import accuracy
from benchmarks.suite import lab as lab_module
from benchmarks.suite import models, ranking, report, statistics, worker
from benchmarks.suite.datasets import DATASETS
from benchmarks.suite.lab import Lab, Store, Worker
from benchmarks.suite.models import OWN_MODELS, SUM_MODELS, Task, all_models
from benchmarks.suite.peers import PEERS
from mfdmc_fast.data import Ratings, holdout, make_planted_ratings
from mfdmc_fast.estimator import MFDMC, BayesianMF

needs_optuna = pytest.mark.skipif(importlib.util.find_spec("optuna") is None, reason="optuna is not installed")
FIGURES = ("rmse", "mae", "ndcg", "recall", "ranked_users")


def ratings_of(rows: list[tuple[int, int, float]]) -> Ratings:
    users, items, values = (np.array(column) for column in zip(*rows, strict=True))
    return Ratings(users=users, items=items, ratings=values.astype(float))


def small(job: dict[str, Any]) -> dict[str, Any]:
    """A job that takes no time and is the same in kind."""
    few = {"epochs": 2, "n_factors": 4} if job["model"] == "funkmf" else {}
    return {**job, "settings": {**job["settings"], **few}}


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Jobs run in this process, made small, and are written down."""
    jobs: list[dict[str, Any]] = []

    def run(self: Worker, job: dict[str, Any]) -> dict[str, Any]:
        jobs.append(job)
        return worker.run_job(small(job))

    monkeypatch.setattr(Worker, "run", run)
    return jobs


def run(path: Path, plan: accuracy.Plan) -> Lab:
    lab = Lab(Store(path), 1, 60, "test")
    accuracy.run_plan(plan, lab, Console(file=io.StringIO()))
    return lab


PLAN = accuracy.Plan(("planted",), ("biases", "funkmf-tuned"), trials=3, seeds=2, at_most=1)


@needs_optuna
def test_nothing_that_is_finished_runs_again(in_process: list[dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert run(path, PLAN).ran == len(in_process) == 2 + 3 + 2
    assert run(path, PLAN).ran == 0
    more = accuracy.Plan(PLAN.datasets, PLAN.models, trials=4, seeds=3, at_most=1)
    # a fourth trial; biases' third seed; the tuned model's cells belong to another search
    assert run(path, more).ran == 1 + 1 + 3
    # killed in the middle of a line: the row is run again, the others are not
    text = path.read_text()
    path.write_text(text[: text.rstrip().rfind("\n") + 30])
    assert run(path, more).ran == 1
    assert run(path, more).ran == 0


@needs_optuna
def test_a_second_run_gives_every_number_again(in_process: list[dict[str, Any]], tmp_path: Path) -> None:
    runs = [run(tmp_path / name, PLAN).store.rows for name in ("first", "second")]
    assert len(runs[0]) == len(runs[1]) == 7
    for first, second in zip(*runs, strict=True):
        assert first["key"] == second["key"]
        assert first["settings"] == second["settings"]
        assert {name: first.get(name) for name in FIGURES} == {name: second.get(name) for name in FIGURES}


@needs_optuna
def test_cells_are_compared_with_what_they_were(in_process: list[dict[str, Any]], tmp_path: Path) -> None:
    lab, console = run(tmp_path / "rows", PLAN), Console(file=io.StringIO())
    assert accuracy.repeat(PLAN, lab, console) == 4
    assert accuracy.repeat(PLAN, lab, console, limit=3) == 3
    cell = next(row for row in lab.store.rows if row["kind"] == "cell")
    cell["mae"] += 1e-9
    with pytest.raises(SystemExit, match="planted biases fold1 seed 0: mae was"):
        accuracy.repeat(PLAN, lab, console)
    with pytest.raises(SystemExit, match="no finished cell"):
        accuracy.repeat(accuracy.Plan(("filmtrust",), ("biases",), trials=1, seeds=1), lab, console)


@needs_optuna
def test_test_ratings_decide_nothing(in_process: list[dict[str, Any]], tmp_path: Path) -> None:
    run(tmp_path / "rows", PLAN)
    trials = [job for job in in_process if job["model"] == "funkmf"][:3]
    assert [job["fold"] for job in trials] == [worker.VALIDATION] * 3
    split, validation = DATASETS["planted"].split(0), DATASETS["planted"].validation()
    pairs = [set(zip(r.users.tolist(), r.items.tolist(), strict=True)) for r in (*validation[1:], split.train)]
    assert pairs[0] | pairs[1] == pairs[2]
    assert not pairs[0] & pairs[1]
    best = min(trials, key=lambda job: worker.run_job(small(job))["rmse"])
    assert in_process[-1]["settings"] == best["settings"]


def test_keys_change_with_what_figures_depend_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lab = Lab(Store(tmp_path / "rows"), 1, 60, "test")
    job = {"dataset": "planted", "fold": 0, "model": "funkmf", "settings": {}, "seed": 0}
    key = lab.key(job, variant="funkmf")
    assert key == lab.key(dict(reversed(job.items())), variant="funkmf")
    others = [lab.key({**job, name: value}) for name, value in (("fold", 1), ("seed", 1), ("settings", {"epochs": 3}))]
    others += [lab.key(job, variant="funkmf-tuned"), Lab(lab.store, 2, 60, "test").key(job, variant="funkmf")]
    others += [Lab(lab.store, 1, 60, "test", source="older").key(job, variant="funkmf")]
    monkeypatch.setattr(lab_module, "PROTOCOL", lab_module.PROTOCOL + 1)
    others += [lab.key(job, variant="funkmf")]
    assert len({key, *others}) == len(others) + 1


def test_errors_are_run_again_and_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answers = [{"error": "ValueError: broken"}, {"rmse": 1.0, "fold_name": "fold1"}]
    monkeypatch.setattr(Worker, "run", lambda self, job: answers.pop(0))
    lab = Lab(Store(tmp_path / "rows"), 1, 60, "test")
    job = {"dataset": "planted", "fold": 0, "model": "biases", "settings": {}, "seed": 0}
    assert lab.run(job, "cell", variant="biases")["error"] == "ValueError: broken"
    assert "Not run: biases: ValueError: broken" in report.markdown(report.sort_out(lab.store.rows))
    assert "error" not in lab.run(job, "cell", variant="biases")
    assert lab.run(job, "cell", variant="biases")["rmse"] == 1.0
    assert lab.ran == 2


def test_processes_answer_crash_and_time_out() -> None:
    job = {"dataset": "planted", "fold": 0, "model": "biases", "settings": {}, "seed": 0, "rank": True}
    with Worker(1, 120) as process:
        answer = process.run(job)
        assert {name: answer[name] for name in FIGURES} == {name: worker.run_job(job)[name] for name in FIGURES}
        assert answer["peak_rss_mb"] >= answer["rss_before_mb"] > 50
        wrong = {**job, "model": "funkmf", "settings": {"epoch": 3}}
        assert process.run(wrong)["error"].startswith("TypeError: ")
        assert process.run(job)["rmse"] == answer["rmse"]
        assert process._process is not None
        process._process.kill()
        assert process.run(job)["error"].startswith("the process ended with -9")
    with Worker(1, 0.01) as process:
        assert process.run(job)["error"] == "took longer than 0.01 s"


class _Table:
    """Scores as given."""

    def __init__(self, scores: list[list[float]]) -> None:
        self._scores = np.array(scores, dtype=float)

    def scores(self, users: Any) -> Any:
        return self._scores[np.asarray(users) - 1]

    def predict(self, users: Any, items: Any) -> Any:
        raise NotImplementedError

    def details(self) -> dict[str, Any]:
        return {}


def test_rankings_by_hand() -> None:
    # items 10, 20, 30, 40 have training ratings, item 99 has none
    train = ratings_of([(1, 10, 5), (2, 20, 1), (3, 30, 2), (2, 40, 3)])
    test = ratings_of([(1, 30, 4), (1, 20, 3), (1, 99, 5), (2, 10, 4), (3, 10, 1), (7, 10, 5)])
    fitted = _Table([[9, 3, 2, 1], [1, 9, 1, 9], [0, 0, 0, 0]])
    measures = ranking.ranking_measures(fitted, train, test, 4)
    # user 1: 10 is seen, ranks 20, 30, 40; relevant 30 at rank 2 and 99, which cannot be ranked
    # user 2: 20 and 40 are seen, ranks 10, 30 (a tie: by id); relevant 10 at rank 1
    # user 3 has no relevant item, user 7 no training rating
    ndcg = [(1 / np.log2(3)) / (1 + 1 / np.log2(3)), 1.0]
    assert measures["ranked_users"] == 2
    assert measures["ndcg"] == pytest.approx(np.mean(ndcg), rel=1e-14)
    assert measures["recall"] == pytest.approx((0.5 + 1.0) / 2, rel=1e-14)
    assert ranking.ranking_measures(fitted, train, test, 6) == {"ndcg": None, "recall": None, "ranked_users": 0}
    assert ranking.ranking_measures(fitted, train, test, 4, max_users=1)["ranked_users"] == 1


def test_the_top_of_scores() -> None:
    scores = np.array([2.0, -np.inf, 5.0, 2.0, 2.0, 7.0])
    assert ranking.top(scores, 3).tolist() == [5, 2, 0]
    assert ranking.top(scores, 10).tolist() == [5, 2, 0, 3, 4]
    noise = np.random.default_rng(0).integers(0, 20, 500).astype(float)
    assert ranking.top(noise, 40).tolist() == np.argsort(-noise, kind="stable")[:40].tolist()


def test_intervals_are_scipys() -> None:
    ours, theirs = [0.91, 0.93, 0.90, 0.92, 0.915], [0.92, 0.95, 0.905, 0.93, 0.93]
    found = statistics.paired_interval([a - b for a, b in zip(ours, theirs, strict=True)])
    expected = scipy.stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-12)
    assert found.mean == pytest.approx(-0.012, rel=1e-12)
    assert statistics.paired_interval([0.5]) == (0.5, None, None, 1, "folds")


def test_pairs_are_folds_and_seeds_only_where_there_is_one_fold() -> None:
    ours = {("u1", 0): 1.0, ("u1", 1): 2.0, ("u2", 0): 5.0, ("u3", 0): 9.0}
    theirs = {("u1", 0): 0.0, ("u1", 1): 0.0, ("u2", 0): 4.0}
    found = statistics.paired_difference(ours, theirs)
    assert found is not None
    assert (found.mean, found.n, found.pairs) == (1.25, 2, "folds")
    assert statistics.mean_and_sd(ours) == (pytest.approx(15.5 / 3), pytest.approx(np.std([1.5, 5, 9], ddof=1)))
    one = {key: value for key, value in ours.items() if key[0] == "u1"}
    seeds = statistics.paired_difference(one, theirs)
    assert seeds is not None
    assert (seeds.mean, seeds.n, seeds.pairs) == (1.5, 2, "seeds")
    assert statistics.paired_difference(one, {}) is None


def test_registry() -> None:
    names = list(all_models())
    assert len(set(names)) == len(names) == len(OWN_MODELS) + len(SUM_MODELS) + len(PEERS)
    train = make_planted_ratings(50, 40, 900, seed=1)
    for model in all_models().values():
        assert model.space(train)
        assert model.own == (model.sanity is None)
    with pytest.raises(SystemExit, match="unknown model 'mfdcm-tuned'"):
        models.model_of("mfdcm-tuned")


@needs_optuna
def test_students_of_all_trials_have_one_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    teachers: list[Any] = []
    fit = MFDMC.fit

    def watched(self: MFDMC, *arguments: Any, **options: Any) -> MFDMC:
        teachers.append(self.teacher)
        return fit(self, *arguments, **options)

    monkeypatch.setattr(MFDMC, "fit", watched)
    worker._teacher.cache_clear()
    job = {"dataset": "planted", "fold": worker.VALIDATION, "model": "mfdmc-accurate", "seed": 0}
    jobs = [{**job, "settings": {"epochs": 2, "spread_margin": margin}} for margin in (0.5, 0.6)]
    for job in [*jobs, {**jobs[0], "fold": 0}]:
        worker.run_job(job)
    assert isinstance(teachers[0], BayesianMF)
    assert teachers[1] is teachers[0]
    assert teachers[2] == "bayesian"


@pytest.mark.parametrize("name", list(all_models()))
def test_rankings_are_by_the_predictions(name: str) -> None:
    model = all_models()[name]
    if reason := model.missing():
        pytest.skip(reason)
    _, train, _ = holdout(make_planted_ratings(60, 40, 1200, seed=3), 0.2, 1)
    quick = {
        "surprise": {"n_epochs": 3},
        "cornac": {"max_iter": 3},
        "myfm": {"n_iter": 8, "rank": 3},
        "libmf": {"k": 4},
    }
    settings = next((s for start, s in quick.items() if name.startswith(start)), {})
    settings |= {"sweeps": 8, "burn_in": 2} if name == "bayesian" else {"epochs": 3} if model.name[:2] in "fumf" else {}
    # a scale that clips nothing, as rankings do not
    fitted = model.fit(Task(train, (-100.0, 100.0), 1), settings)
    users = np.unique(train.users)[:7]
    items = np.unique(train.items)
    scores = np.asarray(fitted.scores(users))
    assert scores.shape == (7, len(items))
    pairs = np.repeat(users, len(items)), np.tile(items, 7)
    np.testing.assert_allclose(scores.ravel(), fitted.predict(*pairs), rtol=2e-4, atol=2e-4)
    strangers = np.asarray(fitted.predict(np.array([9999, users[0]]), np.array([items[0], 9999])), dtype=float)
    assert strangers.shape == (2,)


def made_rows() -> list[dict[str, Any]]:
    where = {"commit": "abc", "dirty": False, "cpu": "a processor", "threads": 2, "python": "3.11"}
    rows: list[dict[str, Any]] = []
    for variant, level in (("funkmf-tuned", 0.9), ("mfdmc", 0.91), ("libmf", 0.95)):
        for fold in ("u1", "u2"):
            for seed in (0, 1):
                value = level + 0.01 * (fold == "u2") + 0.001 * seed * (variant == "mfdmc")
                figures = {
                    "rmse": value,
                    "mae": 0.7,
                    "ndcg": 0.1,
                    "recall": 0.2,
                    "fit_seconds": 1.5,
                    "peak_rss_mb": 300.0,
                }
                row = {"kind": "cell", "key": f"{variant}{fold}{seed}", "dataset": "ml-100k", "variant": variant}
                row |= {"model": variant, "fold_name": fold, "seed": seed, "settings": {"n_factors": 16}, **where}
                rows.append({**row, **figures, "trials": 5, "validation_rmse": 0.88})
    rows.append({"kind": "skipped", "key": "", "dataset": "ml-100k", "variant": "myfm", "reason": "not installed"})
    check = {"kind": "sanity", "key": "s", "model": "libmf", "settings": {"k": 32}, "band": "0.9162 … 0.9282"}
    rows.append({**check, "rmse": 0.99, "valid": False})
    return rows


def test_the_report(tmp_path: Path) -> None:
    results = report.sort_out(made_rows())
    text = report.markdown(results)
    assert "| ml-100k | mfdmc | +0.0105 [+0.0105, +0.0105] | 2 folds |" in text
    assert "| funkmf-tuned | 0.9050 ± 0.0071 | 0.7000 ± 0.0000 |" in text
    assert text.index("| funkmf-tuned | 0.9050") < text.index("| mfdmc | 0.9155")
    assert "~~libmf~~ (invalid)" in text
    assert "| libmf | {'k': 32} | 0.9900 | 0.9162 … 0.9282 | NO |" in text
    assert "Not run: myfm: not installed" in text
    assert "| ml-100k | funkmf-tuned | 5 | 0.8800 | n_factors 16 |" in text
    assert "- 12 cells at commit abc, a processor, 2 threads, Python 3.11" in text
    assert report.markdown(report.sort_out([])).startswith("# Accuracy")
    # a later row of the same cell replaces an earlier one
    again = {**made_rows()[0], "rmse": 0.5}
    assert report.sort_out([*made_rows(), again]).values("ml-100k", "funkmf-tuned", "rmse")["u1", 0] == 0.5
    assert not report.plot(report.sort_out([]), tmp_path / "plot.png")


def test_the_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    assert report.plot(report.sort_out(made_rows()), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_missing_is_skipped_with_a_word(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LIBMF_TRAIN", str(tmp_path / "mf-train"))
    plan = accuracy.Plan(("planted",), ("libmf",), trials=2, seeds=1)
    for _ in range(2):
        store = run(tmp_path / "rows", plan).store
    assert [row["reason"] for row in store.rows] == [
        "LIBMF's mf-train and mf-predict is neither on PATH nor beside LIBMF_TRAIN"
    ]
    slow = SimpleNamespace(small_only=True, missing=lambda: None)
    assert plan.why_not(DATASETS["epinions"], slow) == "too slow for this dataset"  # type: ignore[arg-type]


def test_plans_from_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.suite.datasets.data_folder", lambda: None)
    assert accuracy.plan_of(accuracy.parse(["--quick"])).datasets == ("planted",)
    plan = accuracy.plan_of(accuracy.parse(["--datasets", "planted", "--models", "own", "--trials", "7"]))
    assert plan.models[:4] == ("biases", "biases-tuned", "funkmf", "funkmf-tuned")
    assert plan.trials == 7
    with pytest.raises(SystemExit, match="ml-1m is not here"):
        accuracy.plan_of(accuracy.parse(["--datasets", "ml-1m"]))
    with pytest.raises(SystemExit, match="unknown dataset 'ml'"):
        accuracy.plan_of(accuracy.parse(["--datasets", "ml"]))


@pytest.mark.data
@pytest.mark.parametrize("name", [name for name, dataset in DATASETS.items() if dataset.small])
def test_no_pair_is_in_both_parts(name: str, data: Path) -> None:
    dataset = DATASETS[name]
    assert len(dataset.load(data)) == dataset.folds
    for fold in range(dataset.folds):
        split = dataset.split(fold)
        pairs = [set(zip(part.users.tolist(), part.items.tolist(), strict=True)) for part in split[1:]]
        assert [len(p) for p in pairs] == [len(part) for part in split[1:]]
        assert not pairs[0] & pairs[1]
        assert split.train.ratings.min() >= dataset.scale[0]
        assert split.train.ratings.max() <= dataset.scale[1]


@pytest.mark.data
def test_the_split_by_probe(data: Path) -> None:
    split = DATASETS["ml-1m-probe"].split(0)
    assert (len(split.train), len(split.test)) == (900_000, 100_209)


def test_rows_are_lines_of_json(tmp_path: Path) -> None:
    store = Store(tmp_path / "new" / "rows.jsonl")
    store.add({"key": "a", "value": 1})
    store.add({"key": "a", "value": 2})
    assert [json.loads(line)["value"] for line in store.path.read_text().splitlines()] == [1, 2]
    last = Store(store.path).finished("a")
    assert last is not None
    assert last["value"] == 2
