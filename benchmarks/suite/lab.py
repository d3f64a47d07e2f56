"""Running cells once: a file of finished rows, keys that say when a row still holds, and processes to run jobs in.

A row is one JSON line, written with a single append, so that a run may be killed at any time and started again, and
several runs may share a file. The key of a row is a hash of everything that its figures depend on: the job, how its
settings were sought, versions of the packages, threads, PROTOCOL, and for our own models the sources below. A commit
that touches none of them (texts, command line, tests, the report) leaves finished rows valid; rows also name the commit
they were measured at.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.results_file import provenance
from benchmarks.suite.models import Model, model_of
from benchmarks.suite.peers import libmf_program

# to be raised with every change of datasets, measures or models here that changes figures
PROTOCOL = 1
ROOT = Path(__file__).parents[2]
_MODULES = ("config", "model", "epochs", "optim", "pruning", "training", "bayesian", "scoring")
_SOURCES = (
    *("mfdmc_fast/data/*.py", "mfdmc_fast/ops/*.py", "mfdmc_fast/estimator/*.py", "csrc/**/*.cpp", "csrc/**/*.hpp"),
    *(f"mfdmc_fast/{name}.py" for name in _MODULES),
)
_PROVENANCE = ("date", "commit", "dirty", "cpu", "cpus", "python")


@cache
def source_hash() -> str:
    """Of all sources that figures of our models depend on."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in _SOURCES for path in ROOT.glob(pattern)}):
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def versions(model: Model) -> dict[str, str]:
    """Of the packages that a model's figures depend on; a hash of the program for LIBMF."""
    found = {}
    for package in model.packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    if model.name == "libmf" and (program := libmf_program("mf-train")) is not None:
        found["mf-train"] = hashlib.sha256(Path(program).read_bytes()).hexdigest()[:12]
    return found


class Store:
    """The rows of a file of JSON lines. A line that was cut short is ignored."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        for line in text.splitlines():
            try:
                self.rows.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        self._cut = bool(text) and not text.endswith("\n")
        self._finished = {row["key"]: row for row in self.rows if "error" not in row}

    def finished(self, key: str) -> dict[str, Any] | None:
        """The last row with this key that is not an error."""
        return self._finished.get(key)

    def add(self, row: dict[str, Any]) -> None:
        """Append a row, on disk before this returns."""
        line = "\n" * self._cut + json.dumps(row) + "\n"
        self._cut = False
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(handle, line.encode())
            os.fsync(handle)
        finally:
            os.close(handle)
        self.rows.append(row)
        if "error" not in row:
            self._finished[row["key"]] = row


class Worker:
    """A process that runs jobs one after the other; started anew after it dies or takes too long."""

    def __init__(self, threads: int, timeout: float) -> None:
        self._threads, self._timeout = threads, timeout
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()
            self._log.close()

    def run(self, job: dict[str, Any]) -> dict[str, Any]:
        """The result of a job, `error` in it where it failed, crashed, or took longer than the timeout."""
        if self._process is None:
            counts = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(self._threads))
            paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
            environment = {**os.environ, **counts, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
            self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.suite.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env=environment,
                text=True,
            )
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        watchdog = threading.Timer(self._timeout, process.kill)
        watchdog.start()
        try:
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        finally:
            late = not watchdog.is_alive()
            watchdog.cancel()
        if answer:
            result: dict[str, Any] = json.loads(answer)
            return result
        process.wait()
        self._log.seek(0)
        last = " ".join(self._log.read().split()[-40:])
        code = process.returncode
        self.close()
        if late:
            return {"error": f"took longer than {self._timeout:g} s"}
        return {"error": f"the process ended with {code}: {last}"}


class Lab:
    """Runs jobs that no row holds yet.

    Args:
        store: where rows are.
        threads: that models may use.
        timeout: seconds for a job.
        command: for the rows.
        source: hash of the sources that rows of our models must come from; default: that of the present ones. With
            the hash of an older row a run can be carried on after a change that is known not to touch any figure.
    """

    def __init__(self, store: Store, threads: int, timeout: float, command: str, source: str | None = None) -> None:
        self.store, self.threads, self.timeout = store, threads, timeout
        self.source = source or source_hash()
        self._provenance = {name: value for name, value in provenance(command).items() if name in _PROVENANCE}
        self.ran = 0

    def key(self, job: dict[str, Any], **why: Any) -> str:
        """Of the row that a job gives; `why` is what else must be equal."""
        model = model_of(job["model"])
        parts = {"job": job, "why": why, "protocol": PROTOCOL, "threads": self.threads, "versions": versions(model)}
        if model.own:
            parts["source"] = self.source
        return _hash(parts)

    def run(self, job: dict[str, Any], kind: str, worker: Worker | None = None, **why: Any) -> dict[str, Any]:
        """The row of a job, from the file or by running it: in a process of its own, or in the given one."""
        model = model_of(job["model"])
        key = self.key(job, **why)
        row = self.store.finished(key)
        if row is not None:
            return row
        if worker is not None:
            result = worker.run({**job, "threads": self.threads})
        else:
            with Worker(self.threads, self.timeout) as own:
                result = own.run({**job, "threads": self.threads})
        self.ran += 1
        row = {"kind": kind, "key": key, **job, **why, **result}
        if model.own:
            row["source"] = source_hash()
        row |= {"threads": self.threads, "versions": versions(model), **self._provenance}
        self.store.add(row)
        return row


def _hash(parts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
