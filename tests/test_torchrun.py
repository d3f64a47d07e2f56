"""`mfdmc train` in processes that torchrun starts: the same model, one writer, and an end when a process is killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_tools import ENVIRONMENT, Ran, mfdmc, write_csv

from mfdmc_fast import MFDMC
from mfdmc_fast.data import make_planted_ratings
from mfdmc_fast.ops import native

pytestmark = [
    pytest.mark.skipif(native.why_unavailable() is not None, reason="the C++ module is not built"),
    pytest.mark.skipif(not Path("/proc/self").exists(), reason="processes are found in /proc"),
]

SMALL = ["--n-views", 2, "--n-clusters", 3, "--seed", 1]
# `mfdmc` whose processes share no memory
BY_MESSAGES = """
import mfdmc_fast.epochs
mfdmc_fast.epochs.open_rings = lambda processes: None
from mfdmc_fast.cli import main
main()
"""


@pytest.fixture(scope="module")
def ratings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_csv(tmp_path_factory.mktemp("ratings") / "ratings.csv", make_planted_ratings(40, 30, 400, seed=1))


def torchrun(size: int, *arguments: Any, script: Path | None = None) -> subprocess.Popen[str]:
    program = ["-m", "mfdmc_fast"] if script is None else [str(script)]
    agent = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
    return subprocess.Popen(
        [*agent, *program, *map(str, arguments)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ran(process: subprocess.Popen[str], seconds: float = 120) -> Ran:
    out, errors = process.communicate(timeout=seconds)
    return Ran(process.returncode, out, errors)


def wait_for_epoch(folder: Path, seconds: float = 60) -> None:
    """Until there is an epoch in a folder; the limit is for a test that hangs."""
    end = time.monotonic() + seconds
    while not list(folder.glob("epoch-*")):
        assert time.monotonic() < end
        time.sleep(0.01)


def workers_of(agent: int) -> dict[int, int]:
    """Process ids of what torchrun has started, by rank."""
    found = {}
    for pid in map(int, Path(f"/proc/{agent}/task/{agent}/children").read_text().split()):
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        ranks = [int(v.removeprefix(b"RANK=")) for v in variables if v.startswith(b"RANK=")]
        found |= dict.fromkeys(ranks, pid)
    return found


@pytest.mark.parametrize("by_messages", [False, True])
def test_two_processes_write_the_model_of_one(by_messages: bool, ratings: Path, tmp_path: Path) -> None:
    script = tmp_path / "by_messages.py"
    script.write_text(BY_MESSAGES)
    options = [*SMALL, "--epochs", 45, "--prune-threshold", 0.3, "--test", "holdout:0.2", "--json"]
    command = ["train", ratings, *options, "--out"]
    shared = ran(torchrun(2, *command, tmp_path / "two", script=script if by_messages else None))
    values, expected = shared.json(), mfdmc(*command, tmp_path / "one").json()
    assert (values["processes"], expected["processes"]) == (2, 1)
    assert values["rmse"] == pytest.approx(expected["rmse"], rel=1e-5)
    for name in ("clusters_user", "clusters_item", "pruned", "ratings", "epochs"):
        assert values[name] == expected[name]
    assert expected["pruned"] > 0
    two, one = (MFDMC.load(tmp_path / name) for name in ("two", "one"))
    users, items = np.arange(1, 41), np.arange(1, 41) % 30 + 1
    np.testing.assert_allclose(two.predict(users, items), one.predict(users, items), rtol=1e-5)
    assert shared.err.count("training ratings from") == 1


def test_a_killed_process_ends_all_and_the_run_continues_with_another_number(ratings: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "run", tmp_path / "model"
    command = ["train", ratings, "--out", out, *SMALL, "--epochs", 300, "--checkpoint-every", 1]
    command += ["--checkpoint-dir", folder]
    process = torchrun(2, *command)
    wait_for_epoch(folder)
    workers = workers_of(process.pid)
    assert sorted(workers) == [0, 1]
    os.kill(workers[1], signal.SIGKILL)
    ended = ran(process, seconds=30)
    assert ended.status not in (0, None)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers.values())
    assert not out.exists()

    resumed = mfdmc(*command, "--resume", "--json")
    assert "continuing after epoch" in resumed.err
    assert resumed.json()["epochs"] == 300
    undisturbed = mfdmc("train", ratings, "--out", tmp_path / "other", *SMALL, "--epochs", 300, "--json").json()
    assert undisturbed["clusters_user"] == resumed.json()["clusters_user"]
    mine, theirs = (MFDMC.load(path).model_.score_pairs(*_some_pairs()) for path in (out, tmp_path / "other"))
    np.testing.assert_allclose(mine.numpy(), theirs.numpy(), rtol=1e-3)


@pytest.mark.parametrize("by_messages", [False, True])
def test_who_is_left_says_what_happened_and_how_to_continue(by_messages: bool, ratings: Path, tmp_path: Path) -> None:
    """Without torchrun, which would end the others before they can say anything."""
    folder = tmp_path / "run"
    command = ["train", ratings, "--out", tmp_path / "model", *SMALL, "--epochs", 3000, "--checkpoint-every", 1]
    command += ["--checkpoint-dir", folder]
    script = tmp_path / "by_messages.py"
    script.write_text(BY_MESSAGES)
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    program = [str(script)] if by_messages else ["-m", "mfdmc_fast"]
    processes = [
        subprocess.Popen(
            [sys.executable, *program, *map(str, command)],
            env={**ENVIRONMENT, "RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}
            | {"MASTER_PORT": str(port)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    wait_for_epoch(folder)
    processes[1].kill()
    processes[1].communicate(timeout=30)
    left = ran(processes[0], seconds=30)
    left.refused(
        1, "process 0 of 2: another of the 2 processes has ended", "--resume continues from the last checkpoint"
    )


def test_other_commands_and_models_are_refused(ratings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    refused = mfdmc("evaluate", tmp_path / "model", ratings)
    refused.refused(2, "process 1 of 2: mfdmc evaluate is one process; start it without torchrun")


@pytest.mark.data
@pytest.mark.parametrize("size", [2, 4])
def test_movielens_1m_comes_out_as_in_one_process(size: int, data: Path, tmp_path: Path) -> None:
    source = data / "ml-1m" / "ratings.parquet"
    command = ["train", source, "--test", "column:fold=1", "--json", "--quiet", "--out", tmp_path / "model"]
    expected = mfdmc(*command).json()
    values = ran(torchrun(size, *command), seconds=300).json()
    assert values["processes"] == size
    assert abs(values["rmse"] - expected["rmse"]) < 0.001
    assert (values["clusters_user"], values["clusters_item"]) == (expected["clusters_user"], expected["clusters_item"])


def _some_pairs() -> Any:
    import torch

    return torch.arange(30), torch.arange(30) % 25
