"""Running commands in tests, and the files that they read."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mfdmc_fast.cli import commands
from mfdmc_fast.data import Ratings

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "dumb", "NO_COLOR": "1", "COLUMNS": "200"}


@dataclasses.dataclass
class Ran:
    """What a command left: exit status, standard output, standard error."""

    status: int
    out: str
    err: str

    def json(self) -> dict[str, Any]:
        """The values of the only line on standard output."""
        assert self.status == 0, self.err
        assert self.out.endswith("\n")
        assert self.out.count("\n") == 1
        values: dict[str, Any] = json.loads(self.out, parse_constant=pytest.fail)
        return values

    def refused(self, status: int, *words: str) -> None:
        """It ended with this status, nothing on standard output, and all these words on standard error."""
        assert (self.status, self.out) == (status, ""), self.err
        for word in words:
            assert word in self.err


def mfdmc(*arguments: object) -> Ran:
    """Run a command in this process."""
    result = CliRunner().invoke(
        commands.app, list(map(str, arguments)), env={"TERMINAL_WIDTH": "200", "COLUMNS": "200", "NO_COLOR": "1"}
    )
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return Ran(result.exit_code, result.stdout, result.stderr)


def python_m(*arguments: object, cwd: Path | None = None) -> Ran:
    """Run a command as a process of its own."""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-m", "mfdmc_fast", *map(str, arguments)],
        env=ENVIRONMENT,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return Ran(run.returncode, run.stdout, run.stderr)


def write_csv(path: Path, ratings: Ratings) -> Path:
    """Ratings as text with a header, with timestamps and further columns where there are any."""
    columns = {"user_id": ratings.users, "item_id": ratings.items, "rating": ratings.ratings}
    if ratings.timestamps is not None:
        columns["timestamp"] = ratings.timestamps
    columns |= ratings.columns
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*(values.tolist() for values in columns.values()), strict=True))
    return path


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))
