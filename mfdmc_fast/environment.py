"""Every environment variable that the package reads, in one place.

| variable | default | meaning |
|---|---|---|
| `MFDMC_BACKEND` | `auto` | backend used where a call or setting says `auto` |
| `MFDMC_CPU_KERNELS` | best there is | instruction set of the C++ training: `baseline`, `avx2`, `avx512` |
| `TRITON_INTERPRET` | `0` | Triton's own; `1` runs its kernels slowly on CPU tensors, without a GPU |

`MFDMC_NATIVE` and `MFDMC_CUDA` (`auto`, `on`, `off`) are read by setup.py at build time only; `MFDMC_DATA` names the
folder of rating datasets for the tests and benchmarks.
"""

from __future__ import annotations

import os


def default_backend() -> str:
    """Value of `MFDMC_BACKEND`, or `auto`."""
    return os.environ.get("MFDMC_BACKEND") or "auto"


def cpu_kernels() -> str | None:
    """Value of `MFDMC_CPU_KERNELS`, or None for the best that the processor can run."""
    return os.environ.get("MFDMC_CPU_KERNELS") or None


def triton_interprets() -> bool:
    """Whether `TRITON_INTERPRET` asks Triton to run its kernels in Python, read as Triton reads it."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")
