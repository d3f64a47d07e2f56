"""What commands print: one JSON line or tables on standard output; progress, notes and errors on standard error."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mfdmc_fast.cli.signals import INTERRUPTED
from mfdmc_fast.data import PrepareProgress
from mfdmc_fast.distributed import n_started
from mfdmc_fast.errors import (
    BackendUnavailable,
    ConfigError,
    DataError,
    MFDMCError,
    ModelFileError,
    ProcessEnded,
    TrainingDiverged,
)
from mfdmc_fast.progress import PrepareBar, ProgressBar, TrialsBar
from mfdmc_fast.training import Callback
from mfdmc_fast.tuning import Trial

# documented in the README; 2 is also what typer uses for a wrong command line
_EXIT_CODES: tuple[tuple[type[MFDMCError], int], ...] = (
    (ConfigError, 2),
    (DataError, 3),
    (ModelFileError, 4),
    (TrainingDiverged, 5),
    (BackendUnavailable, 6),
    (ProcessEnded, 1),
    (MFDMCError, 1),
)


class Output:
    """Where a command's words go.

    Args:
        as_json: print one JSON line at the end and no tables.
        quiet: no progress and no notes.
    """

    def __init__(self, *, as_json: bool, quiet: bool) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self.out = Console()
        self.err = Console(stderr=True)

    def result(self, values: dict[str, Any], show: Callable[[], None]) -> None:
        """Print the result: as one JSON line, or by calling `show`."""
        if self.as_json:
            print(json.dumps(values, allow_nan=False), flush=True)
        else:
            show()

    def note(self, text: str) -> None:
        """A line for people on standard error."""
        if not self.quiet:
            self.err.print(escape(text), style="dim", highlight=False)

    def progress(self, label: str) -> list[Callback]:
        """Callbacks that show training."""
        return [] if self.quiet else [_ResumeNote(self), ProgressBar(self.err, label)]

    @contextmanager
    def preparing(self) -> Iterator[Callable[[PrepareProgress], None]]:
        """Show how ratings are prepared; yields what is to be called with every step."""
        if self.quiet:
            yield lambda progress: None
            return
        with PrepareBar(self.err) as bar:
            yield bar.update

    @contextmanager
    def trials(self, n: int) -> Iterator[Callable[[Trial], None]]:
        """Show a search of n trials; yields what is to be called with each."""
        if self.quiet:
            yield lambda trial: None
            return
        with TrialsBar(n, self.err) as bar:
            yield lambda trial: bar.update(trial.rmse)

    def table(self, title: str, columns: list[str], rows: list[list[Any]]) -> None:
        """A table on standard output; numbers to the right."""
        table = Table(title=escape(title), title_justify="left")
        for k, column in enumerate(columns):
            numeric = bool(rows) and all(isinstance(row[k], (int, float)) for row in rows)
            table.add_column(column, justify="right" if numeric else "left", overflow="fold")
        for row in rows:
            table.add_row(*(f"{x:.4f}" if isinstance(x, float) else escape(str(x)) for x in row))
        self.out.print(table)


class _ResumeNote(Callback):
    """Says from which checkpoint a run continues."""

    def __init__(self, output: Output) -> None:
        self._output = output

    def on_resume(self, epoch: int, source: str) -> None:
        what = f"continuing after epoch {epoch}" if epoch else "the teacher's predictions are known"
        self._output.note(f"{what}: {source}")


def _show_warning(message: Warning | str, *args: Any, **kwargs: Any) -> None:
    """A warning in one line, without the place in the sources, which says nothing to users of a command."""
    Console(stderr=True).print(f"[bold yellow]warning:[/] {escape(str(message))}", highlight=False, soft_wrap=True)


def _whose() -> str:
    """Which of several processes says something, to begin a line with."""
    try:
        n = n_started()
    except ConfigError:  # which is what is said
        return ""
    return f"process {os.environ['RANK']} of {n}: " if n > 1 else ""


@contextmanager
def errors_to_exit_codes() -> Iterator[None]:
    """Turn the package's errors into one line on standard error and the documented exit code."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            yield
    except MFDMCError as error:
        Console(stderr=True).print(
            f"[bold red]error:[/] {_whose()}{escape(str(error))}", highlight=False, soft_wrap=True
        )
        raise typer.Exit(next(code for kind, code in _EXIT_CODES if isinstance(error, kind))) from error
    except KeyboardInterrupt as interruption:
        said = str(interruption) or "nothing was written"
        Console(stderr=True).print(f"{_whose()}interrupted; {escape(said)}", highlight=False, soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        # the reader of our output, such as head, went away: not an error of ours
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None
