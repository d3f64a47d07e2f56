"""mfdmc_fast: fast, interpretable matrix factorization with dynamic multi-view clustering (MFDMC, arXiv:2504.14565).

Names are loaded on first use, so that importing the package needs torch and numpy alone and loads no compiled module.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from mfdmc_fast.config import BayesianMFConfig, FunkMFConfig, MFDMCConfig
    from mfdmc_fast.data import Ratings, RatingsDataset, read_ratings
    from mfdmc_fast.errors import (
        BackendUnavailable,
        ConfigError,
        DataError,
        MFDMCError,
        ModelFileError,
        TrainingDiverged,
    )
    from mfdmc_fast.estimator import MFDMC, BayesianMF, FunkMF, load_model
    from mfdmc_fast.evaluate import cross_validate
    from mfdmc_fast.model import FunkMFModel, MFDMCModel
    from mfdmc_fast.ops.functional import batch_loss, score_pairs, top_items
    from mfdmc_fast.ops.types import LossTerms, LossWeights, SideTensors
    from mfdmc_fast.training import Callback

_HOMES = {
    "mfdmc_fast.config": ("BayesianMFConfig", "FunkMFConfig", "MFDMCConfig"),
    "mfdmc_fast.data": ("Ratings", "RatingsDataset", "read_ratings"),
    "mfdmc_fast.errors": (
        "BackendUnavailable",
        "ConfigError",
        "DataError",
        "MFDMCError",
        "ModelFileError",
        "TrainingDiverged",
    ),
    "mfdmc_fast.estimator": ("MFDMC", "BayesianMF", "FunkMF", "load_model"),
    "mfdmc_fast.evaluate": ("cross_validate",),
    "mfdmc_fast.model": ("FunkMFModel", "MFDMCModel"),
    "mfdmc_fast.ops.functional": ("batch_loss", "score_pairs", "top_items"),
    "mfdmc_fast.ops.types": ("LossTerms", "LossWeights", "SideTensors"),
    "mfdmc_fast.training": ("Callback",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "MFDMC",
    "BackendUnavailable",
    "BayesianMF",
    "BayesianMFConfig",
    "Callback",
    "ConfigError",
    "DataError",
    "FunkMF",
    "FunkMFConfig",
    "FunkMFModel",
    "LossTerms",
    "LossWeights",
    "MFDMCConfig",
    "MFDMCError",
    "MFDMCModel",
    "ModelFileError",
    "Ratings",
    "RatingsDataset",
    "SideTensors",
    "TrainingDiverged",
    "__version__",
    "batch_loss",
    "cross_validate",
    "load_model",
    "read_ratings",
    "score_pairs",
    "top_items",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'mfdmc_fast' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
