"""Ctrl-C, also a second one, and SIGTERM, at every stage of a command that runs as a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_tools import ENVIRONMENT, mfdmc, write_csv

from mfdmc_fast.cli import signals
from mfdmc_fast.data import make_planted_ratings
from mfdmc_fast.tensor_files import read_tensors

pytestmark = pytest.mark.usefixtures("can_be_interrupted")

LOADING = """
import importlib.abc, sys, time
class Slow(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "mfdmc_fast.cli.commands":
            print("at work", flush=True)
            time.sleep(60)
sys.meta_path.insert(0, Slow())
from mfdmc_fast import cli
cli.main()
"""
COMMAND = """
import hashlib, time
from mfdmc_fast import cli
from mfdmc_fast.cli import commands
def work():
    {work}
commands.app = work
cli.main()
"""
# without a look at what Python's handlers have to do
IN_C = "print('at work', flush=True); hashlib.pbkdf2_hmac('sha256', b'x', b'y', 10**9)"
CLEANING = """try:
        print("at work", flush=True)
        time.sleep(60)
    finally:
        print("cleaning", flush=True)
        time.sleep(60)
"""


def started(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Status and standard error of a process that ends by itself."""
    try:
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    return process.returncode, errors


def test_while_a_command_is_loaded() -> None:
    process = started("-c", LOADING)
    assert line_of(process) == "at work\n"
    process.send_signal(signal.SIGINT)
    assert ended(process) == (130, "interrupted; ended at once\n")


@pytest.mark.parametrize("work", [IN_C, CLEANING], ids=["in C", "cleaning up"])
def test_a_second_one_ends_a_command_at_once(work: str) -> None:
    process = started("-c", COMMAND.format(work=work))
    assert line_of(process) == "at work\n"
    time.sleep(0.3)  # until it is in C
    process.send_signal(signal.SIGINT)
    if work == CLEANING:
        assert line_of(process) == "cleaning\n"
    time.sleep(2 * signals._SECONDS_OF_ONE_INTERRUPTION)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert ended(process) == (130, "interrupted; ended at once\n")


def test_one_that_comes_twice_counts_once() -> None:
    process = started("-c", COMMAND.format(work=CLEANING.replace("60", "1")))
    assert line_of(process) == "at work\n"
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    assert line_of(process) == "cleaning\n"
    assert "ended at once" not in ended(process)[1]


def test_one_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = started("-c", COMMAND.format(work="print('at work', flush=True); time.sleep(1); print('done')"))
    finally:
        signal.signal(signal.SIGINT, before)
    assert line_of(process) == "at work\n"
    process.send_signal(signal.SIGINT)
    assert line_of(process) == "done\n"
    assert ended(process) == (0, "")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_with_checkpoints_keeps_a_whole_one(tmp_path: Path, number: int, status: int) -> None:
    ratings = write_csv(tmp_path / "ratings.csv", make_planted_ratings(40, 30, 400, seed=1))
    folder, out = tmp_path / "run", tmp_path / "model"
    command = ["train", ratings, "--out", out, "--checkpoint-dir", folder, "--checkpoint-every", 1, "--n-clusters", 3]
    process = started("-m", "mfdmc_fast", *map(str, command), "--epochs", "100000")
    end = time.monotonic() + 60
    while not list(folder.glob("epoch-*")):
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(number)
    found, errors = ended(process)
    assert found == status, errors
    assert "Traceback" not in errors
    assert errors.count("\n") <= 3
    left = sorted(os.listdir(folder))
    assert left[-1] == "lock"
    assert left[:-1]
    assert all(name.startswith("epoch-") for name in left[:-1])
    read_tensors(folder / left[-2], sealed=True)
    assert sorted(os.listdir(tmp_path)) == ["ratings.csv", "run"]
    # nothing holds the folder any more
    mfdmc(*command, "--epochs", 100000).refused(2, "continue that run with resume")
