"""Runs that end anywhere and are resumed: the same bits, whatever ended them; and folders that cannot be written."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_cases import (
    MODELS,
    Ended,
    Listener,
    files,
    fit,
    read,
    result,
    undisturbed,
)

import mfdmc_fast.checkpoints
from mfdmc_fast.checkpoints import Checkpoint, Checkpoints, digest
from mfdmc_fast.errors import ConfigError, DataError


class TestResume:
    @pytest.mark.parametrize("model", sorted(set(MODELS) - {"long"}))
    def test_a_run_that_is_ended_after_every_epoch_gives_the_same_bits(self, tmp_path: Path, model: str) -> None:
        expected = undisturbed(model)
        last = len(expected[1]["epochs"])
        for epoch in range(1, last + 1):
            listener = Listener(end_after=epoch)
            with pytest.raises(Ended):
                fit(model, tmp_path, listener)
            # the state after the epoch that ended was not written: the callback came before
            assert listener.epochs == ([epoch - 1, epoch] if epoch > 1 else [epoch])
        assert result(fit(model, tmp_path)) == expected
        # the cases are what they claim to be
        if model in ("cpu", "reference", "adagrad", "taught"):
            assert {event["side"] for event in expected[1]["prune_events"]} == {"user", "item"}
        if model in ("best", "patience"):
            assert expected[1]["kept_epoch"] < last
        if model == "patience":
            assert "no better validation RMSE" in expected[1]["stop_reason"]

    def test_a_finished_run_returns_at_once(self, tmp_path: Path) -> None:
        fit("taught", tmp_path)
        listener = Listener()
        again = fit("taught", tmp_path, listener)
        assert result(again) == undisturbed("taught")
        assert (listener.sweeps, listener.epochs) == (0, [])
        assert listener.resumed == [(0, "teacher.safetensors"), (12, "epoch-00012.safetensors")]

    def test_the_end_is_written_whatever_the_interval(self, tmp_path: Path) -> None:
        fit("funkmf", tmp_path, checkpoint_every="60min")
        assert files(tmp_path) == ["epoch-00008.safetensors", "lock"]

    def test_a_teacher_that_is_done_is_not_asked_again(self, tmp_path: Path) -> None:
        with pytest.raises(Ended):
            fit("taught", tmp_path, Listener(end_after=1))
        assert files(tmp_path) == ["lock", "teacher.safetensors"]
        listener = Listener()
        assert result(fit("taught", tmp_path, listener)) == undisturbed("taught")
        assert (listener.sweeps, listener.resumed) == (0, [(0, "teacher.safetensors")])

    def test_seconds_are_those_of_all_parts(self, tmp_path: Path) -> None:
        with pytest.raises(Ended):
            fit("taught", tmp_path, Listener(end_after=6))
        _, tensors, state = read(tmp_path / "epoch-00005.safetensors")
        before, teacher = state["history"]["seconds"], read(tmp_path / "teacher.safetensors")[2]["seconds"]
        assert 0 < sum(epoch["seconds"] for epoch in state["history"]["epochs"]) <= before
        history = fit("taught", tmp_path).history_
        assert history.teacher_seconds == teacher
        assert history.seconds >= before + teacher + sum(epoch.seconds for epoch in history.epochs[5:])
        assert tensors["model.user.centers"].dtype == torch.float32

    @pytest.mark.parametrize(("keep", "kept"), [(1, [8]), (2, [6, 8]), (3, [3, 6, 8])])
    def test_the_last_few_stay(self, tmp_path: Path, keep: int, kept: list[int]) -> None:
        fit("funkmf", tmp_path, checkpoint_every="3", checkpoint_keep=keep)
        assert files(tmp_path) == [*(f"epoch-{epoch:05d}.safetensors" for epoch in kept), "lock"]

    def test_minutes_are_counted_from_the_last_checkpoint(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = [1000.0]
        monkeypatch.setattr(mfdmc_fast.checkpoints.time, "monotonic", lambda: now[0])
        with Checkpoints(tmp_path, every="0.5min") as checkpoints:
            now[0] += 29.9
            assert not checkpoints.due(7)
            now[0] += 0.2
            assert checkpoints.due(7)
            checkpoints.save_epoch(7, {}, {"x": torch.zeros(1)})
            assert not checkpoints.due(8)
            now[0] += 30
            assert checkpoints.due(9)


class TestWriting:
    def test_no_room_at_the_end_of_a_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(Ended):
            fit("cpu", tmp_path, Listener(end_after=3))

        def full(handle: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(DataError, match=r"epoch-00003.*cannot be written: No space left on device"):
                fit("cpu", tmp_path)
        assert files(tmp_path) == ["epoch-00001.safetensors", "epoch-00002.safetensors", "lock"]

    def test_a_folder_that_cannot_be_made_or_written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(DataError, match="file: is not a folder"):
            fit("cpu", tmp_path / "file")
        with pytest.raises(DataError, match="no checkpoints can be written: Not a directory"):
            fit("cpu", tmp_path / "file" / "below")
        # the superuser may write everywhere, so the answer of the system is put in its mouth
        monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
        with pytest.raises(DataError, match="the folder cannot be written; give another one for checkpoints"):
            fit("cpu", tmp_path)

    def test_a_folder_belongs_to_one_process(self, tmp_path: Path) -> None:
        with (
            Checkpoints(tmp_path / "deep" / "folder"),
            pytest.raises(ConfigError, match="another process is training with this folder"),
        ):
            fit("cpu", tmp_path / "deep" / "folder")
        fit("cpu", tmp_path / "deep" / "folder")

    def test_what_a_killed_process_left_is_cleared_and_nothing_else(self, tmp_path: Path) -> None:
        for name in (".epoch-00003.safetensors.x1.tmp", ".teacher.safetensors.x2.tmp", "notes.tmp", "epoch-9.txt"):
            (tmp_path / name).touch()
        with Checkpoints(tmp_path):
            assert files(tmp_path) == ["epoch-9.txt", "lock", "notes.tmp"]


def test_a_digest_tells_arrays_apart() -> None:
    arrays: list[list[np.ndarray[Any, Any]]] = [
        [],
        [np.zeros(0)],
        [np.zeros(2)],
        [np.zeros(2), np.zeros(0)],
        [np.zeros(2, dtype=np.float32)],
        [np.zeros((1, 2))],
        [np.zeros(1), np.zeros(1)],
        [np.array([0.0, -0.0])],
    ]
    assert len({digest(one) for one in arrays}) == len(arrays)
    assert digest([np.arange(6)[::2]]) == digest([np.array([0, 2, 4])])


def test_tensors_and_state_come_back(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, resume=True) as checkpoints:
        assert checkpoints.last(lambda found: None) is None
        tensors = {"x": torch.randn(3, 2), "n": torch.arange(4, dtype=torch.int32), "step": torch.tensor(2.0)}
        checkpoints.identify(seed=1)
        checkpoints.save_epoch(3, {"loss": 0.1 + 0.2}, tensors)
        found = checkpoints.last(lambda found: None)
    assert isinstance(found, Checkpoint)
    assert (found.path, found.state) == (tmp_path / "epoch-00003.safetensors", {"loss": 0.1 + 0.2})
    assert found.tensors.keys() == tensors.keys()
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in tensors.items())
