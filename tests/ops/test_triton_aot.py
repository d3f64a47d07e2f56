"""Every Triton kernel compiles for GPUs, without spills: in another process, as this one interprets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]
KERNELS = {
    "cluster_usage",
    "count",
    "deal",
    "entity_backward",
    "entity_forward",
    "exclude",
    "place",
    "rating_pass",
    "row_squares",
    "score_keys",
    "score_pairs",
    "spread",
    "step_centers",
    "terms",
}


def _compile(tmp_path: Path, *arguments: str) -> list[dict[str, Any]]:
    report = tmp_path / "resources.json"
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"OMP_NUM_THREADS": "1", "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-W", "error", "-m", "benchmarks.triton_resources", "--json", str(report), *arguments]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
    assert run.returncode == 0, run.stderr
    return list(json.loads(report.read_text(encoding="utf-8"))["kernels"])


@pytest.mark.parametrize(
    "arguments",
    [
        ["--architecture", "90", "--shape", "concat-V8-K10-d4"],
        ["--architecture", "80", "100", "--shape", "sum-V4-K10-d16", "--only", "prediction"],
    ],
    ids=["all-of-sm_90", "some-of-others"],
)
def test_kernels_compile_without_spills(arguments: list[str], tmp_path: Path) -> None:
    kernels = _compile(tmp_path, *arguments)
    assert {k["architecture"] for k in kernels} == {int(a) for a in arguments if a.isdigit()}
    if "--only" not in arguments:
        assert {k["kernel"] for k in kernels} == KERNELS
    for kernel in kernels:
        assert kernel["stack_bytes"] == kernel["local_bytes"] == 0, kernel
        assert kernel["shared_bytes"] <= 48 * 1024, kernel
        # so that at least 8 warps a scheduler find room
        assert kernel["registers"] <= 128, kernel
    gathers = [k["global_loads"] for k in kernels if k["kernel"] in ("rating_pass", "score_pairs")]
    assert all("4" in widths for widths in gathers), "embeddings are read four numbers at a time"


def test_it_refuses_a_process_that_interprets() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.triton_resources", "--shape", "sum-V4-K10-d16", "--architecture", "90"],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert run.returncode != 0
    assert "TRITON_INTERPRET is set" in run.stderr
