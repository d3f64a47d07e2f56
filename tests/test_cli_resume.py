"""`mfdmc train` with checkpoints, as a person runs it: interrupted, killed, resumed, and told what is wrong."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from cli_tools import ENVIRONMENT, mfdmc, write_csv
from rich.console import Console

from mfdmc_fast import MFDMC, MFDMCConfig, MFDMCModel
from mfdmc_fast.data import make_planted_ratings
from mfdmc_fast.progress import ProgressBar
from mfdmc_fast.tensor_files import read_tensors
from mfdmc_fast.training import Callback, EpochRecord

SMALL = ["--n-views", 2, "--n-clusters", 3, "--seed", 1]


@pytest.fixture(scope="module")
def ratings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_csv(tmp_path_factory.mktemp("ratings") / "ratings.csv", make_planted_ratings(40, 30, 400, seed=1))


def train(ratings: Path, folder: Path, out: Path, *options: Any) -> list[str]:
    fixed: list[Any] = ["train", ratings, "--out", out, *SMALL, "--checkpoint-dir", folder]
    return list(map(str, [*fixed, *options]))


def started(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "mfdmc_fast", *arguments],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class Ended(Callback):
    """Ends a run after its third epoch."""

    def on_epoch_end(self, record: EpochRecord, model: Any) -> None:
        if record.epoch == 3:
            raise KeyboardInterrupt


def ended(ratings: Path, folder: Path, epochs: int) -> None:
    """What `train` with SMALL leaves where it is killed in the third epoch."""
    model = MFDMC(n_views=2, n_clusters=3, seed=1, epochs=epochs)
    with pytest.raises(KeyboardInterrupt):
        model.fit(ratings, callbacks=[Ended()], checkpoint_dir=folder, checkpoint_every=1)


def wait_for(path: Path, seconds: float = 60) -> None:
    """Until there is an epoch in a folder; the limit is for a test that hangs."""
    end = time.monotonic() + seconds
    while not list(path.glob("epoch-*")):
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.usefixtures("can_be_interrupted")
def test_ctrl_c_says_how_to_continue_and_the_same_command_does(ratings: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "run", tmp_path / "model"
    # long enough to be interrupted: an epoch with its checkpoint takes milliseconds
    command = train(ratings, folder, out, "--checkpoint-every", 1, "--epochs", 3000, "--json")
    process = started(command)
    wait_for(folder)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    last = max(folder.glob("epoch-*"))
    epoch = int(last.stem.removeprefix("epoch-"))
    assert f"interrupted; {last} holds the state after epoch {epoch}" in errors
    assert "to continue, give the same command with --resume" in errors
    assert not out.exists()
    assert not list(folder.glob(".*"))
    mfdmc(*command).refused(2, f"epoch {epoch}: continue that run with resume")

    process = started([*command, "--resume"])
    assert process.stderr is not None
    lines = [process.stderr.readline(), process.stderr.readline()]
    assert lines[1] == f"continuing after epoch {epoch}: {last}\n"
    process.kill()
    process.communicate(timeout=60)


def test_the_result_is_that_of_a_run_that_nothing_ended(ratings: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    ended(ratings, folder, epochs=40)
    resumed = mfdmc(*train(ratings, folder, tmp_path / "resumed", "--epochs", 40, "--resume", "--json"))
    undisturbed = mfdmc("train", ratings, "--out", tmp_path / "undisturbed", *SMALL, "--epochs", 40, "--json")
    assert "continuing after epoch 2" in resumed.err
    assert resumed.json()["epochs"] == undisturbed.json()["epochs"] == 40
    one, other = (read_tensors(tmp_path / name)[1] for name in ("resumed", "undisturbed"))
    assert one.keys() == other.keys()
    assert all(one[name].numpy().tobytes() == other[name].numpy().tobytes() for name in one)


def test_a_finished_run_writes_its_model_again(ratings: Path, tmp_path: Path) -> None:
    command = train(ratings, tmp_path / "run", tmp_path / "model", "--epochs", 3, "--resume")
    mfdmc(*command, "--json").json()
    (tmp_path / "model").unlink()
    again = mfdmc(*command, "--json")
    assert again.json()["epochs"] == 3
    assert "continuing after epoch 3" in again.err
    assert (tmp_path / "model").exists()
    assert "continuing" not in mfdmc(*command, "--quiet").err


@pytest.mark.filterwarnings("default::mfdmc_fast.errors.DamagedCheckpoint")
def test_a_damaged_checkpoint_is_one_line(ratings: Path, tmp_path: Path) -> None:
    command = train(ratings, tmp_path / "run", tmp_path / "model", "--epochs", 4, "--checkpoint-every", 2, "--resume")
    mfdmc(*command)
    (tmp_path / "run" / "epoch-00004.safetensors").write_bytes(b"\x03half")
    ran = mfdmc(*command, "--json")
    assert ran.json()["epochs"] == 4
    lines = [line for line in ran.err.splitlines() if "warning:" in line]
    assert len(lines) == 1
    assert "epoch-00004.safetensors: truncated or damaged" in lines[0]
    assert "continuing after epoch 2" in ran.err


def test_what_is_wrong_is_said_before_the_ratings_are_read(ratings: Path, tmp_path: Path) -> None:
    missing = tmp_path / "no ratings.csv"
    out = ["--out", tmp_path / "model"]
    mfdmc("train", missing, *out, "--resume").refused(2, "resume is of use only with checkpoint_dir")
    mfdmc("train", missing, *out, "--checkpoint-every", 5).refused(2, "checkpoint_every is of use only with")
    folder = ["--checkpoint-dir", tmp_path / "run"]
    mfdmc("train", missing, *out, *folder, "--checkpoint-every", "5s").refused(2, "epochs such as 5, or minutes")
    mfdmc("train", missing, *out, *folder, "--checkpoint-keep", 0).refused(2, "must be 1 or more")
    mfdmc("train", missing, *out, *folder, "--model", "bayesian").refused(2, "BayesianMF keeps no checkpoints")
    mfdmc("train", missing, *out, "--checkpoint-dir", ratings).refused(3, "is not a folder")
    assert list(tmp_path.iterdir()) == []


def test_other_settings_are_named(ratings: Path, tmp_path: Path) -> None:
    command = train(ratings, tmp_path / "run", tmp_path / "model", "--epochs", 2, "--resume")
    mfdmc(*command)
    other = mfdmc(*command, "--seed", 7, "--learning-rate", 0.5)
    other.refused(2, "belongs to another run", "seed was 1 and is 7", "learning_rate was 0.03 and is 0.5")


def test_the_bar_goes_on_from_where_the_run_was() -> None:
    bar = ProgressBar(Console(file=io.StringIO(), force_terminal=True))
    bar.on_train_start(MFDMCModel(3, 3, MFDMCConfig()), n_batches=10, epochs=60)
    bar.on_resume(20, "epoch-00020.safetensors")
    assert bar._progress is not None
    task = bar._progress.tasks[0]
    assert (task.completed, task.total, task.fields["epoch"]) == (200, 600, "20/60")
    assert task.time_remaining is None  # the epochs before say nothing about what is left
    bar.close()
