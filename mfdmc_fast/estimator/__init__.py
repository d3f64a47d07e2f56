"""Estimators with scikit-learn's manners, on raw ids: the lowest layer that sees them."""

from mfdmc_fast.estimator.base import RatingEstimator, Recommendations, load_model
from mfdmc_fast.estimator.baselines import BayesianMF, FunkMF
from mfdmc_fast.estimator.mfdmc import MFDMC

__all__ = [
    "MFDMC",
    "BayesianMF",
    "FunkMF",
    "RatingEstimator",
    "Recommendations",
    "load_model",
]
