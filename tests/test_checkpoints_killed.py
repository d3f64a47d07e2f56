"""Runs that are killed at any moment, also while a checkpoint is written, and a disk that is full."""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import shutil
import signal
import time
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_cases import MODELS, Ended, Listener, files, fit, result, undisturbed

from mfdmc_fast.errors import DataError


@pytest.fixture(scope="module")
def server() -> ForkServerContext:
    """Where children come from that have imported everything, also what a torch optimizer loads in a second."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["torch._dynamo", "mfdmc_fast.estimator", "safetensors.torch", "test_checkpoints_killed"]
    )
    return context


def train_in_child(model: str, folder: Path, out: Path, started: Any, kill_at: tuple[str, int] | None = None) -> None:
    """Train, write the model; where asked for, die at the n-th call of a function while a checkpoint is written."""
    torch.set_num_threads(1)
    if kill_at is not None:
        die_at(*kill_at)
    started.set()
    fit(model, folder).save(out)


def die_at(function: str, call: int) -> None:
    import safetensors.torch

    home: Any = safetensors.torch if function == "save_file" else os
    original, calls = getattr(home, function), [0]

    def dying(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            if function == "save_file":  # with a part of the content
                Path(arguments[1]).write_bytes(b"\x10\x00\x00")
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)

    setattr(home, function, dying)


def assert_same_file(out: Path, expected: tuple[list[bytes], dict[str, Any]], model: str) -> None:
    loaded = type(MODELS[model]()).load(out)
    assert result(loaded) == expected


class TestKilled:
    @pytest.mark.parametrize(("model", "kills"), [("long", 20), ("reference", 5), ("taught", 5), ("funkmf", 5)])
    def test_at_random_moments(self, tmp_path: Path, server: ForkServerContext, model: str, kills: int) -> None:
        chance = random.Random(model)
        folder, out = tmp_path / "checkpoints", tmp_path / "model.safetensors"

        def start() -> Any:
            started = server.Event()
            child = server.Process(target=train_in_child, args=(model, folder, out, started))
            child.start()
            assert started.wait(60)
            return child

        def finish(child: Any) -> None:
            child.join(60)
            assert child.exitcode == 0
            assert_same_file(out, undisturbed(model), model)
            assert not [name for name in files(folder) if name.endswith(".tmp")]
            shutil.rmtree(folder)
            out.unlink()

        whole, began = start(), time.monotonic()
        whole.join(60)
        seconds = time.monotonic() - began
        finish(whole)
        killed, resumed, tries = 0, 0, 0
        # many of them must have something to continue from, which on a busy machine takes more kills
        while killed < kills or resumed < kills / 5:
            tries += 1
            assert tries < 10 * kills
            resumed += folder.exists() and any(name.startswith("epoch") for name in files(folder))
            child = start()
            time.sleep(chance.uniform(0, 0.8 * seconds))
            child.kill()
            child.join(60)
            killed += child.exitcode == -signal.SIGKILL
            if child.exitcode == 0:  # it was done already: the next begins another run
                finish(child)
        finish(start())

    @pytest.mark.parametrize(
        ("function", "call"),
        [("save_file", 1), ("save_file", 4), ("fsync", 7), ("fsync", 8), ("replace", 4), ("chmod", 4), ("unlink", 2)],
        ids=str,
    )
    def test_while_a_checkpoint_is_written(
        self, tmp_path: Path, server: ForkServerContext, function: str, call: int
    ) -> None:
        folder, out = tmp_path / "checkpoints", tmp_path / "model.safetensors"
        for kill_at, status in (((function, call), -signal.SIGKILL), (None, 0)):
            started = server.Event()
            child = server.Process(target=train_in_child, args=("cpu", folder, out, started, kill_at))
            child.start()
            child.join(60)
            assert child.exitcode == status
        assert_same_file(out, undisturbed("cpu"), "cpu")
        assert files(folder) == ["epoch-00011.safetensors", "epoch-00012.safetensors", "lock"]


def run_out_of_room(folder: Path, message: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
    try:
        fit("cpu", folder)
    except DataError as error:
        message.write_text(str(error), encoding="utf-8")


def test_a_full_disk_is_an_error_that_leaves_the_old_checkpoint(tmp_path: Path, server: ForkServerContext) -> None:
    folder = tmp_path / "checkpoints"
    with pytest.raises(Ended):
        fit("cpu", folder, Listener(end_after=6))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    child = server.Process(target=run_out_of_room, args=(folder, tmp_path / "message"))
    child.start()
    child.join(60)
    said = (tmp_path / "message").read_text(encoding="utf-8")
    assert "epoch-00006.safetensors: cannot be written" in said
    assert "The checkpoints before it are intact" in said
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert result(fit("cpu", folder)) == undisturbed("cpu")
