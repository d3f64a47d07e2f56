"""The build script, run on a copy of the sources and without a network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
SOURCES = ["pyproject.toml", "setup.py", "CMakeLists.txt", "MANIFEST.in", "LICENSE", "csrc", "mfdmc_fast"]

# CMake looks for a toolkit in more places than PATH
HIDE_TOOLKIT = "-DCMAKE_CUDA_COMPILER=NOTFOUND"

pytest.importorskip("setuptools", "77", reason="building needs setuptools>=77")
needs_compiler = pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler")
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")


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


@pytest.mark.parametrize("title", ["C++", "CUDA"])
def test_auto_without_compiler_skips_with_one_line(title, tree):
    status, output = run_setup(tree, "build_ext", "--inplace", path="")
    assert status == 0, output
    lines = [line for line in output.splitlines() if f"{title} module skipped" in line]
    assert len(lines) == 1, output
    assert "CMake" in lines[0] or "COMPILER" in lines[0]
    assert not list((tree / "mfdmc_fast").glob("_c*"))


@pytest.mark.parametrize(("variable", "title"), [("MFDMC_NATIVE", "C++"), ("MFDMC_CUDA", "CUDA")])
def test_on_without_compiler_fails(variable, title, tree):
    status, output = run_setup(tree, "build_ext", "--inplace", path="", **{variable: "on"})
    assert status
    assert f"{variable}=on, but the {title} module cannot be built" in output


@pytest.fixture
def without_nvcc(tmp_path):
    """A PATH with all that a build takes but nvcc."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for folder in os.environ["PATH"].split(os.pathsep)[::-1]:
        for tool in Path(folder).glob("*"):
            if tool.name != "nvcc":
                (tools / tool.name).unlink(missing_ok=True)
                (tools / tool.name).symlink_to(tool)
    return str(tools)


@needs_compiler
def test_without_nvcc_the_cuda_module_is_skipped_with_the_reason(tree, without_nvcc):
    arguments = {"path": without_nvcc, "MFDMC_NATIVE": "off", "CMAKE_ARGS": HIDE_TOOLKIT}
    status, output = run_setup(tree, "build_ext", "--inplace", **arguments)
    assert status == 0, output
    assert "CUDA module skipped: no CUDA compiler: nvcc is not on PATH (MFDMC_CUDA=on fails" in output
    status, output = run_setup(tree, "build_ext", "--inplace", MFDMC_CUDA="on", **arguments)
    assert status
    assert "no CUDA compiler: nvcc is not on PATH" in output


@needs_compiler
@needs_nvcc
def test_a_cuda_source_that_does_not_compile_shows_nvccs_message(tree):
    (tree / "csrc" / "cuda" / "device.cu").write_text("broken on purpose;\n")
    arguments = {"MFDMC_NATIVE": "off", "CMAKE_ARGS": "-DMFDMC_CUDA_ARCHITECTURES=90-real"}
    status, output = run_setup(tree, "build_ext", "--inplace", MFDMC_CUDA="on", **arguments)
    assert status
    assert "device.cu(1): error" in output


@needs_compiler
@needs_nvcc
def test_the_cuda_module_loads_and_says_what_is_missing(tree):
    arguments = {"MFDMC_NATIVE": "off", "CMAKE_ARGS": "-DMFDMC_CUDA_ARCHITECTURES=90-real"}
    status, output = run_setup(tree, "build_ext", "--inplace", MFDMC_CUDA="on", **arguments)
    assert status == 0, output
    assert "CUDA module built: _cuda" in output
    program = "from mfdmc_fast.ops import dispatch; print(dispatch.BACKENDS['cuda'].why_unavailable())"
    run = subprocess.run([sys.executable, "-c", program], cwd=tree, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    if torch.cuda.is_available():
        assert run.stdout == "None\n"
    else:
        assert run.stdout.startswith("the CUDA module finds no device to run on (")
        assert run.stdout.endswith("it needs an NVIDIA GPU and its driver\n")


@needs_compiler
def test_auto_with_broken_source_names_the_error(tree):
    (tree / "csrc" / "bindings_cpu.cpp").write_text("#error broken on purpose\n")
    status, output = run_setup(tree, "build_ext", "--inplace", MFDMC_CUDA="off")
    assert status == 0, output
    assert "C++ module skipped: #error broken on purpose" in output


def test_off_builds_a_pure_package(tree):
    status, output = run_setup(tree, "build", MFDMC_NATIVE="off", MFDMC_CUDA="off")
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
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*.*")}
    assert sources | {"CMakeLists.txt", "pyproject.toml", "setup.py", "LICENSE", "mfdmc_fast/py.typed"} <= names
    assert not [name for name in names if name.endswith((".so", ".pyc"))]
