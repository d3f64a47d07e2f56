"""Fixtures and switches that all tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from mfdmc_fast.testing import data_folder


@pytest.fixture(scope="session")
def data() -> Path:
    """Folder of the rating datasets; tests that need it skip where it is missing."""
    folder = data_folder()
    if folder is None:
        pytest.skip("the rating datasets are not here; point MFDMC_DATA to them")
    return folder
