"""The frame of benchmarks.gpu: rows, budget, verdicts. That its sections run is seen by `.ci/run`, interpreted."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.gpu.session import Section, Skip, line_of

ROOT = Path(__file__).parents[1]


def section(folder: Path, *, tiny: bool = False, seconds: float = 100.0) -> Section:
    return Section("parity", folder / "gpu.jsonl", torch.device("cpu"), tiny, time.monotonic() + seconds)


def rows_of(own: Section) -> list[dict[str, object]]:
    return [json.loads(line) for line in own.log.read_text(encoding="utf-8").splitlines()]


def test_every_item_leaves_a_row_whatever_happens(tmp_path: Path) -> None:
    own = section(tmp_path)

    def skip() -> dict[str, object]:
        raise Skip("no such tool")

    own.item("good", lambda: {"value": 2.0, "unit": "ms"})
    own.item("skipped", skip)
    own.item("broken", lambda: {"value": 1 / 0})
    own.item("wrong", lambda: own.passed(False, value=3.0, unit="of the bound"))
    own.item("too late", lambda: {}, needs_seconds=1000)
    rows = rows_of(own)
    assert [row["status"] for row in rows] == ["ok", "skipped", "failed", "failed", "not run"]
    assert rows[1]["reason"] == "no such tool"
    assert str(rows[2]["reason"]).startswith("ZeroDivisionError")
    assert "it needs about 1000" in str(rows[4]["reason"])


def test_targets_are_judged_but_in_tiny_runs(tmp_path: Path) -> None:
    own = section(tmp_path)
    assert own.judged(50.0, "ms", 60, 26, most=True) | {"value": 50.0} == {
        "value": 50.0, "unit": "ms", "target": "≤ 60, aim 26", "met": True,
    }  # fmt: skip
    assert own.judged(61.0, "ms", 60, most=True)["met"] is False
    assert own.judged(55.0, "%", 60, most=False)["met"] is False
    assert section(tmp_path, tiny=True).judged(55.0, "%", 60, most=False)["met"] is None
    missed = {"section": "kernels", "name": "x", "status": "ok", **own.judged(61.0, "ms", 60, most=True)}
    assert line_of(missed).endswith("MISSED")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_it_says_what_to_do(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--out", str(tmp_path / "out")]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 2
    assert "torch finds no CUDA device; --interpret --tiny" in ran.stderr
    assert not (tmp_path / "out").exists()
