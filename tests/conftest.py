"""Fixtures and switches that all tests share."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mfdmc_fast.testing import data_folder

# Triton decides when a kernel is defined, so before any test imports one
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# for the tests of the benchmarks; last, so that the package under test stays the installed one
sys.path.append(str(Path(__file__).parents[1]))


@pytest.fixture(scope="session")
def data() -> Path:
    """Folder of the rating datasets; tests that need it skip where it is missing."""
    folder = data_folder()
    if folder is None:
        pytest.skip("the rating datasets are not here; point MFDMC_DATA to them")
    return folder


@pytest.fixture
def can_be_interrupted() -> Iterator[None]:
    """Children inherit an ignored SIGINT, as a shell's background job has it; here they get the usual one."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
