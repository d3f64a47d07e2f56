"""Forks, threads, signals, folders that cannot be written, and two processes that write one file."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_tools import ENVIRONMENT, python_m, write_csv

from mfdmc_fast import MFDMC
from mfdmc_fast.data import make_planted_ratings
from mfdmc_fast.estimator.base import load_model

RATINGS = make_planted_ratings(n_users=100, n_items=80, n_ratings=3000, seed=1)


def fitted(seed: int = 1) -> MFDMC:
    return MFDMC(epochs=2, n_views=2, n_clusters=3, view_dim=2, seed=seed).fit(RATINGS)


def predicted(model: MFDMC) -> np.ndarray:
    predictions: np.ndarray = model.predict(RATINGS.users, RATINGS.items)
    return predictions


def n_threads() -> int:
    return len(os.listdir("/proc/self/task"))


@pytest.fixture
def torch_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def use_in_child(model: MFDMC, queue: Any) -> None:
    queue.put((predicted(model), predicted(fitted()), n_threads()))


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.usefixtures("torch_threads")
def test_a_forked_child_predicts_and_trains_with_threads_of_its_own() -> None:
    torch.set_num_threads(3)
    model = fitted()
    expected = predicted(model)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=use_in_child, args=(model, queue))
    child.start()
    try:
        of_child, trained_there, _ = queue.get(timeout=60)
        child.join(60)
    finally:
        child.kill()
    assert child.exitcode == 0
    np.testing.assert_array_equal(of_child, expected)
    np.testing.assert_array_equal(trained_there, expected)
    np.testing.assert_array_equal(predicted(model), expected)


_COUNT = """
import os, torch
from mfdmc_fast import MFDMC
from mfdmc_fast.data import make_planted_ratings
ratings = make_planted_ratings(n_users=100, n_items=80, n_ratings=3000, seed=1)
def threads(): return len(os.listdir("/proc/self/task"))
if {n}: torch.set_num_threads({n})
before = threads()
MFDMC(epochs=2, n_views=2, n_clusters=3, view_dim=2, seed=1).fit(ratings)
print(torch.get_num_threads(), threads() - before)
"""


@pytest.mark.parametrize(("variable", "set_to", "n"), [("1", 0, 1), ("2", 1, 1), ("1", 3, 3)])
def test_training_starts_as_many_threads_as_it_is_told(variable: str, set_to: int, n: int) -> None:
    run = subprocess.run(
        [sys.executable, "-c", _COUNT.format(n=set_to)],
        env={**ENVIRONMENT, "OMP_NUM_THREADS": variable},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    told, started = map(int, run.stdout.split())
    assert told == n
    # the calling thread works too; torch may start a team of the same size, and one thread that watches over them
    assert started <= 2 * (n - 1) + 1


def fit_in_worker(seed: int) -> tuple[int, int, np.ndarray]:
    """Threads that a worker is told to use, those that a fit has started, and what the model predicts."""
    before = n_threads()
    predictions = predicted(fitted(seed))
    return torch.get_num_threads(), n_threads() - before, predictions


def assert_keep_to(most: int, results: list[tuple[int, int, np.ndarray]]) -> None:
    for seed, (told, started, predictions) in zip((1, 2), results, strict=True):
        assert told <= most
        assert started <= 2 * (most - 1) + (most > 1)  # as in the test above
        np.testing.assert_array_equal(predictions, predicted(fitted(seed)))


def test_workers_of_joblib_share_the_cores() -> None:
    joblib = pytest.importorskip("joblib")
    results = joblib.Parallel(n_jobs=2)(joblib.delayed(fit_in_worker)(seed) for seed in (1, 2))
    assert_keep_to(max(1, (os.cpu_count() or 1) // 2), results)


@pytest.mark.parametrize("most", [1, 3])
def test_workers_of_joblib_use_as_many_threads_as_joblib_tells_them(most: int) -> None:
    joblib = pytest.importorskip("joblib")
    with joblib.parallel_config("loky", n_jobs=2, inner_max_num_threads=most):
        results = joblib.Parallel()(joblib.delayed(fit_in_worker)(seed) for seed in (1, 2))
    assert_keep_to(most, results)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.usefixtures("torch_threads")
@pytest.mark.parametrize("most", [1, 3])
def test_forked_workers_use_as_many_threads_as_their_parent(most: int) -> None:
    torch.set_num_threads(most)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        results = pool.map_async(fit_in_worker, [1, 2], chunksize=1).get(timeout=60)
    assert_keep_to(most, results)


def test_spawned_workers_keep_to_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        results = pool.map_async(fit_in_worker, [1, 2], chunksize=1).get(timeout=120)
    assert_keep_to(1, results)


def many_epochs(path: Path) -> list[str]:
    arguments = ["train", str(path), "--out", str(path.with_name("model.safetensors")), "--epochs", "1000000"]
    return [sys.executable, "-m", "mfdmc_fast", *arguments]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143)])
def test_a_command_that_is_told_to_end_leaves_no_file(tmp_path: Path, number: int, status: int) -> None:
    path = write_csv(tmp_path / "ratings.csv", RATINGS)
    process = subprocess.Popen(
        many_epochs(path), env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        process.stderr.readline()  # it trains
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == status, said
    assert "Traceback" not in said
    assert os.listdir(tmp_path) == ["ratings.csv"]


_WRITE_SLOWLY = """
import sys, time
from mfdmc_fast import cli
from mfdmc_fast.cli import commands
from mfdmc_fast.files import replacing
def demo():
    with replacing(sys.argv[1]) as temporary:
        temporary.write_text("half")
        print("writing", flush=True)
        time.sleep(60)
commands.app = demo
cli.main()
"""


def test_what_is_half_written_is_removed_when_told_to_end(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _WRITE_SLOWLY, str(tmp_path / "out")], stdout=subprocess.PIPE, env=ENVIRONMENT, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
    finally:
        process.kill()
        process.communicate()
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not Path("/proc/sys").is_dir(), reason="needs a file system that nobody can write")
def test_a_folder_that_cannot_be_written_is_one_sentence_and_a_status(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "ratings.csv", RATINGS)
    ran = python_m("train", path, "--epochs", 1, "--quiet", "--out", "/proc/model.safetensors")
    ran.refused(3, "/proc/model.safetensors", "cannot be written")
    assert ran.err.count("\n") == 1


def save_often(seed: int, path: Path) -> None:
    model = fitted(seed)
    for _ in range(20):
        model.save(path)


def test_two_processes_that_save_to_one_path_leave_one_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    context = multiprocessing.get_context("forkserver")
    children = [context.Process(target=save_often, args=(seed, path)) for seed in (1, 2)]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
    assert [child.exitcode for child in children] == [0, 0]
    assert os.listdir(tmp_path) == [path.name]
    found = predicted(load_model(path))
    assert any(np.array_equal(found, predicted(fitted(seed))) for seed in (1, 2))
