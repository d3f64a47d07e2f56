"""Every CUDA source compiles, and no kernel spills registers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks.cuda_resources import SOURCES, kernel_resources, parse_report, table
from mfdmc_fast.errors import BackendUnavailable

REPORT = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN5mfdmc4cuda10run_kernelINS0_13_GLOBAL__N__a17CompactEEEvT_' for 'sm_90'
ptxas info    : Function properties for _ZN5mfdmc4cuda10run_kernel
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 33 registers, used 1 barriers
"""


def test_the_report_of_ptxas_is_understood() -> None:
    (kernel,) = parse_report(REPORT, "a.cu")
    expected = {"source": "a.cu", "kernel": "Compact", "architecture": "sm_90", "registers": 33}
    assert kernel == expected | {"stack": 16, "spill_stores": 8, "spill_loads": 12}
    all_kinds = [kernel | {"architecture": name} for name in ("sm_80", "sm_90", "sm_100")]
    assert table(all_kinds).splitlines()[-1] == "| a.cu | Compact | 33 | 33 | 33 | 20 |"


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_no_kernel_spills(source: Path) -> None:
    kernels = kernel_resources(source, "sm_90")
    assert bool(kernels) == (source.stem != "device")
    for kernel in kernels:
        assert (kernel["stack"], kernel["spill_stores"], kernel["spill_loads"]) == (0, 0, 0), kernel


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
def test_what_nvcc_says_is_passed_on(tmp_path: Path) -> None:
    (tmp_path / "wrong.cu").write_text("wrong\n")
    with pytest.raises(BackendUnavailable, match=r"(?s)nvcc cannot compile wrong\.cu:.*error"):
        kernel_resources(tmp_path / "wrong.cu", "sm_90")
