"""The build script, run on a copy of the sources and without a network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ["pyproject.toml", "setup.py", "CMakeLists.txt", "MANIFEST.in", "LICENSE", "csrc", "mfdmc_fast"]

pytest.importorskip("setuptools", "77", reason="building needs setuptools>=77")


@pytest.fixture
def tree(tmp_path):
    """A copy of what a build needs, without anything built."""
    for name in SOURCES:
        source, copy = ROOT / name, tmp_path / "tree" / name
        if source.is_dir():
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        else:
            copy.parent.mkdir(exist_ok=True)
            shutil.copy(source, copy)
    (tmp_path / "tree" / "README.md").touch()  # named in pyproject.toml; its text is of no matter here
    return tmp_path / "tree"


def run_setup(tree: Path, *arguments: str, path: str | None = None, **variables: str) -> tuple[int, str]:
    """Exit status and output of `setup.py`; `path` replaces PATH, and the caller's own build settings are dropped."""
    dropped = ("MFDMC_NATIVE", "MFDMC_CUDA", "CMAKE_ARGS", "CC", "CXX")
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    environment |= variables | ({} if path is None else {"PATH": path})
    run = subprocess.run(
        [sys.executable, "setup.py", *arguments],
        cwd=tree,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return run.returncode, run.stdout


@pytest.mark.parametrize("variable", ["MFDMC_NATIVE", "MFDMC_CUDA"])
def test_unknown_mode_is_refused(variable, tree):
    status, output = run_setup(tree, "--version", **{variable: "yes"})
    assert status
    assert f"{variable} must be auto, on or off, not 'yes'" in output


def test_cuda_cannot_be_forced(tree):
    status, output = run_setup(tree, "build", MFDMC_CUDA="on")
    assert status
    assert "no CUDA sources in this version" in output


def test_auto_without_compiler_skips_with_one_line(tree):
    status, output = run_setup(tree, "build_ext", "--inplace", path="")
    assert status == 0, output
    lines = [line for line in output.splitlines() if "C++ module skipped" in line]
    assert len(lines) == 1, output
    assert "CMake" in lines[0] or "COMPILER" in lines[0]
    assert not list((tree / "mfdmc_fast").glob("_cpu*"))


def test_on_without_compiler_fails(tree):
    status, output = run_setup(tree, "build_ext", "--inplace", path="", MFDMC_NATIVE="on")
    assert status
    assert "MFDMC_NATIVE=on, but the C++ module cannot be built" in output


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler")
def test_auto_with_broken_source_names_the_error(tree):
    (tree / "csrc" / "bindings_cpu.cpp").write_text("#error broken on purpose\n")
    status, output = run_setup(tree, "build_ext", "--inplace")
    assert status == 0, output
    assert "C++ module skipped: #error broken on purpose" in output


def test_off_builds_a_pure_package(tree):
    status, output = run_setup(tree, "build", MFDMC_NATIVE="off")
    assert status == 0, output
    assert (tree / "build" / "lib" / "mfdmc_fast" / "__init__.py").is_file()
    assert (tree / "build" / "lib" / "mfdmc_fast" / "py.typed").is_file()
    assert not (tree / "build" / "lib" / "csrc").exists()


def test_sdist_holds_the_sources_of_the_native_modules(tree):
    status, output = run_setup(tree, "sdist")
    assert status == 0, output
    (archive,) = (tree / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*.?pp")}
    assert sources | {"CMakeLists.txt", "pyproject.toml", "setup.py", "LICENSE", "mfdmc_fast/py.typed"} <= names
    assert not [name for name in names if name.endswith((".so", ".pyc"))]
