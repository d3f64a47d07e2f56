"""Drives CMake for the native modules; all other metadata is in pyproject.toml.

`_cpu` takes a C++ compiler, `_cuda` also a CUDA toolkit; they are built one by one, so that one may fail.

MFDMC_NATIVE and MFDMC_CUDA are `auto` (skip with one printed line what cannot be built; the default), `on` (fail
instead) or `off`. CMAKE_ARGS holds further arguments of CMake's configure step.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError


def read_mode(variable: str) -> str:
    value = os.environ.get(variable, "auto")
    if value not in ("auto", "on", "off"):
        raise SystemExit(f"{variable} must be auto, on or off, not {value!r}")
    return value


def run_cmake(*arguments: str) -> None:
    command = [sys.executable, "-m", "cmake"] if find_spec("cmake") else ["cmake"]
    # a ninja installed beside this interpreter need not be on PATH when the build is not isolated
    path = os.pathsep.join(filter(None, [os.environ.get("PATH"), sysconfig.get_path("scripts")]))
    # the C locale: errors are looked up below by their English wording
    environment = {**os.environ, "PATH": path, "LC_ALL": "C"}
    if shutil.which("ninja", path=path):
        environment.setdefault("CMAKE_GENERATOR", "Ninja")
    try:
        run = subprocess.run(
            [*command, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    except OSError as error:
        raise CompileError(f"CMake does not start: {error}") from error
    if run.returncode:
        raise CompileError(run.stdout)
    print(run.stdout)


class Module(Extension):
    """A module that CMake builds.

    Attributes:
        title: what it is called.
        variable: the environment variable that says whether to build it.
        options: for CMake's configure step.
    """

    def __init__(self, name: str, title: str, variable: str, *options: str) -> None:
        self.title, self.variable, self.options = title, variable, options
        super().__init__(name, sources=[], optional=read_mode(variable) == "auto")


MODULES = [
    Module("mfdmc_fast._cpu", "C++", "MFDMC_NATIVE"),
    Module("mfdmc_fast._cuda", "CUDA", "MFDMC_CUDA", "-DMFDMC_CUDA=ON"),
]


class CMakeBuild(build_ext):
    def build_extension(self, ext: Module) -> None:
        module = Path(self.get_ext_fullpath(ext.name)).absolute()
        build_dir = Path(self.build_temp).absolute() / ext.name
        try:
            run_cmake(
                *("-S", str(Path(__file__).parent), "-B", str(build_dir)),
                "--fresh",  # a cache of an earlier isolated build names tools that are gone
                f"-DPython_EXECUTABLE={sys.executable}",
                f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={module.parent}",
                *ext.options,
                *shlex.split(os.environ.get("CMAKE_ARGS", "")),
            )
            target = ext.name.rpartition(".")[2]
            run_cmake("--build", str(build_dir), "--target", target, "--parallel", str(os.cpu_count()))
        except CompileError as error:
            if not ext.optional:
                raise CompileError(f"{ext.variable}=on, but the {ext.title} module cannot be built:\n{error}") from None
            # the message itself stands behind CMake's "CMake Error at FILE:LINE (COMMAND):" and a line break
            reason = re.search(r"(?:CMake Error at .*:\s+|[Ee]rror:\s*)(.+)", str(error))
            print(
                f"mfdmc_fast: {ext.title} module skipped: {(reason[1] if reason else str(error)).strip().rstrip('.')}"
                f" ({ext.variable}=on fails instead and shows everything)"
            )
        else:
            print(f"mfdmc_fast: {ext.title} module built: {module.name}")


setup(
    ext_modules=[module for module in MODULES if read_mode(module.variable) != "off"],
    cmdclass={"build_ext": CMakeBuild},
)
