"""Progress bars of training, of tuning and of preparing ratings, on standard error."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from typing_extensions import Self

from mfdmc_fast.data import PrepareProgress
from mfdmc_fast.history import EpochRecord
from mfdmc_fast.model import BayesianMFModel, Predictor
from mfdmc_fast.training import Callback


class ProgressBar(Callback):
    """Epochs or sweeps done, time left, loss, validation RMSE and active clusters, while training runs.

    The sweeps of a teacher, or of several one after the other, have bars of their own before.

    Args:
        console: where to draw; default: standard error.
        label: text before the bar.
    """

    def __init__(self, console: Console | None = None, label: str = "training") -> None:
        self._console = console or Console(stderr=True)
        self._label = label
        self._progress: Progress | None = None

    def on_teacher_sweep(self, sweep: int, sweeps: int) -> None:
        if sweep == 1:  # there may be several teachers
            self.close()
            self._start("teacher sweep", sweeps)
        if self._progress is not None:
            self._progress.update(self._task, completed=sweep, epoch=f"{sweep}/{sweeps}")

    def on_train_start(self, model: Predictor, n_batches: int, epochs: int) -> None:
        self.close()  # of the teacher
        self._n_batches, self._epochs = n_batches, epochs
        self._start("sweep" if isinstance(model, BayesianMFModel) else "epoch", epochs, n_batches)

    def _start(self, what: str, rounds: int, steps: int = 1) -> None:
        self._progress = Progress(
            TextColumn(self._label),
            BarColumn(bar_width=24),
            TextColumn(what + " {task.fields[epoch]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[status]}"),
            console=self._console,
            # a log file should not fill with half-drawn bars
            disable=not self._console.is_terminal,
            transient=True,
        )
        self._task = self._progress.add_task("", total=rounds * steps, epoch=f"1/{rounds}", status="")
        self._progress.start()

    def on_resume(self, epoch: int, source: str) -> None:
        if self._progress is not None:
            # not an update, by which the epochs before would seem to have taken no time
            self._progress.reset(
                self._task, completed=epoch * self._n_batches, epoch=f"{epoch}/{self._epochs}", status=""
            )

    def on_batch_end(self, epoch: int, batch: int) -> None:
        if self._progress is not None:
            done = (epoch - 1) * self._n_batches + batch
            self._progress.update(self._task, completed=done, epoch=f"{epoch}/{self._epochs}")

    def on_epoch_end(self, record: EpochRecord, model: Predictor) -> None:
        if self._progress is not None:
            self._progress.update(self._task, status=describe(record))

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


class TrialsBar:
    """Trials of a search done, time left and the best validation RMSE so far; a context manager.

    Args:
        trials: how many there will be.
        console: where to draw; default: standard error.
    """

    def __init__(self, trials: int, console: Console | None = None) -> None:
        console = console or Console(stderr=True)
        self._trials, self._done = trials, 0
        self._progress = Progress(
            TextColumn("tuning"),
            BarColumn(bar_width=24),
            TextColumn("trial {task.fields[trial]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[status]}"),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._progress.add_task("", total=trials, trial=f"0/{trials}", status="")
        self._best: float | None = None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def update(self, rmse: float | None) -> None:
        """One more trial is done, with this RMSE; None where it diverged."""
        self._done += 1
        if rmse is not None and (self._best is None or rmse < self._best):
            self._best = rmse
        status = "" if self._best is None else f"best RMSE {self._best:.4f}"
        self._progress.update(self._task, completed=self._done, trial=f"{self._done}/{self._trials}", status=status)


class PrepareBar:
    """Share of the sources that is read, or of the ratings that is sorted, time left and rows per second; a context
    manager.

    Args:
        console: where to draw; default: standard error.
    """

    def __init__(self, console: Console | None = None) -> None:
        console = console or Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[rate]}"),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._stage: str | None = None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def update(self, progress: PrepareProgress) -> None:
        """Show how far it is; every stage has a bar of its own."""
        if progress.stage != self._stage:
            self._stage, self._start = progress.stage, time.perf_counter()
            if self._progress.task_ids:
                self._progress.remove_task(self._progress.task_ids[0])
            self._task = self._progress.add_task(progress.stage, total=1.0, rate="")
        seconds = time.perf_counter() - self._start
        rate = f"{progress.rows / seconds / 1e6:.1f} M rows/s" if seconds > 0.1 else ""
        self._progress.update(self._task, completed=progress.share, rate=rate)


def describe(record: EpochRecord) -> str:
    """One epoch in a few words: loss, validation RMSE and active clusters."""
    parts = [f"loss {record.loss['total']:.4f}"]
    if record.valid_rmse is not None:
        parts.append(f"RMSE {record.valid_rmse:.4f}")
    if record.clusters_user is not None and record.clusters_item is not None:
        parts.append(f"clusters {sum(record.clusters_user)}+{sum(record.clusters_item)}")
    return " · ".join(parts)
