"""What `mfdmc doctor` finds out about this installation."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

import mfdmc_fast
from mfdmc_fast import environment
from mfdmc_fast.ops import dispatch, native

_PACKAGES = ("torch", "triton", "numpy", "pyarrow", "safetensors", "scikit-learn", "typer", "rich")


def examine() -> dict[str, Any]:
    """Versions, machine and backends, as plain values."""
    unavailable = native.why_unavailable()
    return {
        "versions": {"mfdmc_fast": mfdmc_fast.__version__, "python": platform.python_version()}
        | {name: _version(name) for name in _PACKAGES},
        "machine": {
            "system": platform.platform(),
            "cpus": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "cuda_device": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
            "native_build": unavailable or ", ".join(f"{k}: {v}" for k, v in native.build_info().items()),
            "MFDMC_BACKEND": environment.default_backend(),
        },
        "backends": {
            name: {"ops": sorted(backend.ops), "why_unavailable": backend.why_unavailable()}
            for name, backend in dispatch.BACKENDS.items()
        },
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
