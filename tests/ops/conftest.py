"""The CUDA kernels compiled for the host: their sources with the threads of a block as a loop (csrc/cuda/block.hpp)."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import shlex
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from mfdmc_fast.ops import cuda, dispatch

ROOT = Path(__file__).parents[2]
CUDA_SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The module `_cuda` compiled by the C++ compiler; it takes pointers to the host's memory."""
    compiler = next(filter(None, map(shutil.which, ("g++", "clang++"))), None)
    if compiler is None:
        pytest.skip("no C++ compiler")
    pybind11 = pytest.importorskip("pybind11")
    path = tmp_path_factory.mktemp("emulation") / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    includes = [ROOT / "csrc", ROOT / "csrc" / "include", pybind11.get_include(), sysconfig.get_path("include")]
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-DMFDMC_EMULATE"]
    flags += shlex.split(os.environ.get("CXXFLAGS", ""))  # such as those of sanitizers
    sources = [*CUDA_SOURCES, ROOT / "csrc" / "bindings_cuda.cpp"]
    command = [compiler, *flags, *(f"-I{folder}" for folder in includes), "-x", "c++", *map(str, sources)]
    run = subprocess.run([*command, "-o", str(path)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert run.returncode == 0, run.stdout
    spec = importlib.util.spec_from_file_location("_cuda", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def emulated_in_order(emulated: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bool], None]]:
    """Lets the backend `cuda` serve CPU tensors. Called, it says whether tasks run in descending order."""
    backend = dataclasses.replace(dispatch.BACKENDS["cuda"], devices=frozenset({"cpu"}), why_unavailable=lambda: None)
    monkeypatch.setitem(dispatch.BACKENDS, "cuda", backend)
    monkeypatch.setattr(cuda, "_load", lambda: emulated)
    monkeypatch.setattr(cuda, "_stream", lambda device: (0, 0))
    yield emulated.set_descending_tasks
    emulated.set_descending_tasks(False)


@pytest.fixture(params=["ascending", "descending", pytest.param("device", marks=pytest.mark.gpu)])
def cuda_backend(request: pytest.FixtureRequest) -> torch.device:
    """The device whose tensors the backend `cuda` serves: the CPU where it is emulated, else a CUDA device.

    The emulation works off tasks in either order: they must not depend on one another.
    """
    if request.param != "device":
        request.getfixturevalue("emulated_in_order")(request.param == "descending")
        return torch.device("cpu")
    reason = cuda.why_unavailable()
    if reason is not None:
        pytest.skip(reason)
    return torch.device("cuda", torch.cuda.current_device())
