"""Outputs that cannot be written: one sentence and a status from every command, where possible before the work; and
outputs that two processes want.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_tools import mfdmc, write_csv

from mfdmc_fast import MFDMC
from mfdmc_fast.data import make_planted_ratings
from mfdmc_fast.errors import DataError
from mfdmc_fast.export import export
from mfdmc_fast.files import alone_in

RATINGS = make_planted_ratings(40, 30, 400, seed=1)
# a file system on which nobody can make a file, the superuser included
NOWHERE = Path("/proc")
needs_nowhere = pytest.mark.skipif(not (NOWHERE / "self").exists(), reason="needs a file system that nobody can write")

COMMANDS: dict[str, list[Any]] = {
    "train": ["train", "ratings.csv", "--epochs", 1, "--n-clusters", 3],
    "predict": ["predict", "model", "ratings.csv"],
    "recommend": ["recommend", "model", "--all"],
    "fold-in": ["fold-in", "model", "ratings.csv", "--update"],
    "report": ["report", "model"],
    "tune": ["tune", "ratings.csv", "--trials", 1, "--epochs", 1, "--n-clusters", 3],
    "export": ["export", "model"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With ratings and a model."""
    folder = tmp_path_factory.mktemp("inputs")
    write_csv(folder / "ratings.csv", RATINGS)
    MFDMC(epochs=1, n_views=2, n_clusters=3).fit(RATINGS).save(folder / "model")
    return folder


@needs_nowhere
@pytest.mark.parametrize("name", COMMANDS)
def test_no_file_can_be_made(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    if name == "tune":
        pytest.importorskip("optuna")
    if name == "report":
        pytest.importorskip("jinja2")
    monkeypatch.chdir(folder)
    ran = mfdmc(*COMMANDS[name], "--quiet", "--out", NOWHERE / "out")
    ran.refused(3, f"error: {NOWHERE}", "cannot be")
    assert ran.err.count("\n") == 1


@needs_nowhere
def test_no_folder_of_checkpoints_can_be_made(folder: Path, tmp_path: Path) -> None:
    ran = mfdmc(
        *COMMANDS["train"][:1], folder / "ratings.csv", "--out", tmp_path / "m", "--checkpoint-dir", NOWHERE / "run"
    )
    ran.refused(3, f"{NOWHERE / 'run'}: no checkpoints can be written")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "export"])
def test_a_read_only_file_system_is_named_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Here, there are not even inputs."""
    if name == "tune":
        pytest.importorskip("optuna")
    monkeypatch.chdir(tmp_path)
    # the answer of the system for such a file system, also to the superuser
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    mfdmc(*COMMANDS[name], "--out", tmp_path / "out").refused(3, "cannot be written; choose another")


def test_two_exports_to_one_folder_are_not_mixed(folder: Path, tmp_path: Path) -> None:
    model = MFDMC.load(folder / "model")
    with alone_in(tmp_path), pytest.raises(DataError, match="another process is writing to this folder"):
        export(model, tmp_path)
    assert list(tmp_path.iterdir()) == []
    export(model, tmp_path)
    with alone_in(tmp_path):  # nothing holds it any more
        pass


def test_an_export_that_fails_leaves_no_manifest_of_other_files(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = MFDMC.load(folder / "model")
    export(model, tmp_path, format="npy")
    before = sorted(os.listdir(tmp_path))
    saved, calls = np.save, [0]

    def full(*arguments: Any, **options: Any) -> None:
        calls[0] += 1
        if calls[0] == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        saved(*arguments, **options)

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(DataError, match=r"user_constants\.npy: cannot be written: No space left on device"):
        export(model, tmp_path, format="npy")
    assert sorted(os.listdir(tmp_path)) == [name for name in before if name != "manifest.json"]


def test_a_folder_that_is_not_there_cannot_be_held(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be opened: No such file"), alone_in(tmp_path / "x"):
        pytest.fail("the body must not run")  # pragma: no cover
