"""The estimators to compare with, and to learn from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from mfdmc_fast import bayesian
from mfdmc_fast.bayesian import SideFeatures
from mfdmc_fast.checkpoints import Checkpoints
from mfdmc_fast.config import BayesianMFConfig, FunkMFConfig, WeightSchedule, with_rank
from mfdmc_fast.data import RatingsDataset
from mfdmc_fast.errors import ConfigError
from mfdmc_fast.estimator.base import RatingEstimator
from mfdmc_fast.history import TrainingHistory
from mfdmc_fast.model import BayesianMFModel, FunkMFModel
from mfdmc_fast.training import Callback


class FunkMF(RatingEstimator):
    """FunkMF, the baseline: global mean + biases + dot product of free factors, same data path, trainer and L2 terms.

    All settings are keyword arguments; their meaning and defaults are those of `mfdmc_fast.config.FunkMFConfig`.
    """

    _config_class = FunkMFConfig
    _model_class = FunkMFModel

    def __init__(
        self,
        *,
        n_factors: int = FunkMFConfig.n_factors,
        biases: bool = FunkMFConfig.biases,
        factor_scale: float = FunkMFConfig.factor_scale,
        epochs: int = FunkMFConfig.epochs,
        batch_size: int | None = FunkMFConfig.batch_size,
        optimizer: Literal["adam", "adagrad"] = FunkMFConfig.optimizer,
        learning_rate: float | None = FunkMFConfig.learning_rate,
        learning_rate_biases: float | None = FunkMFConfig.learning_rate_biases,
        learning_rate_schedule: Literal["cosine", "constant", "one-cycle"] = FunkMFConfig.learning_rate_schedule,
        weight_l2: WeightSchedule | None = FunkMFConfig.weight_l2,
        rating_unit: float | None = FunkMFConfig.rating_unit,
        l2_count_power: float = FunkMFConfig.l2_count_power,
        weight_bias_l2: WeightSchedule = FunkMFConfig.weight_bias_l2,
        validation_fraction: float = FunkMFConfig.validation_fraction,
        patience: int | None = FunkMFConfig.patience,
        keep: Literal["last", "best"] = FunkMFConfig.keep,
        seed: int = FunkMFConfig.seed,
        backend: str = FunkMFConfig.backend,
        device: str = FunkMFConfig.device,
    ) -> None:
        self.n_factors = n_factors
        self.biases = biases
        self.factor_scale = factor_scale
        self.epochs = epochs
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.learning_rate_biases = learning_rate_biases
        self.learning_rate_schedule = learning_rate_schedule
        self.weight_l2 = weight_l2
        self.rating_unit = rating_unit
        self.l2_count_power = l2_count_power
        self.weight_bias_l2 = weight_bias_l2
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.keep = keep
        self.seed = seed
        self.backend = backend
        self.device = device


class BayesianMF(RatingEstimator):
    """Bayesian matrix factorization with biases by Gibbs sampling: rating(u, i) ~ Normal(mean + b_u + b_i + p_u · q_i).

    All parameters, also the precisions of the priors and of the noise, are drawn from their posterior, sweep by sweep,
    and a prediction is the mean over the draws. With `implicit`, the prior mean of a user's vector is a sum over the
    items that she has rated, and that of an item's over its users; `user_features` and `item_features` of `fit` add
    further such sums. It has no clusters: it is the most accurate model here, and what teaches a compact MFDMC
    (`MFDMC(teacher="bayesian")`). Gibbs sampling for matrix factorization: Salakhutdinov and Mnih, 2008; feature
    weights in the priors: Simm et al., 2015 (Macau).

    All settings are keyword arguments; their meaning and defaults are those of `mfdmc_fast.config.BayesianMFConfig`.
    """

    _config_class = BayesianMFConfig
    _model_class = BayesianMFModel

    def __init__(
        self,
        *,
        rank: int | None = BayesianMFConfig.rank,
        sweeps: int = BayesianMFConfig.sweeps,
        burn_in: int = BayesianMFConfig.burn_in,
        n_draws: int = BayesianMFConfig.n_draws,
        implicit: bool = BayesianMFConfig.implicit,
        noise_degrees: float = BayesianMFConfig.noise_degrees,
        validation_fraction: float = BayesianMFConfig.validation_fraction,
        seed: int = BayesianMFConfig.seed,
        backend: str = BayesianMFConfig.backend,
        device: str = BayesianMFConfig.device,
    ) -> None:
        self.rank = rank
        self.sweeps = sweeps
        self.burn_in = burn_in
        self.n_draws = n_draws
        self.implicit = implicit
        self.noise_degrees = noise_degrees
        self.validation_fraction = validation_fraction
        self.seed = seed
        self.backend = backend
        self.device = device

    @property
    def takes_features(self) -> bool:
        """It does."""
        return True

    def checkpoints(self, folder: Any, **options: Any) -> None:
        """It keeps none, as a fit cannot continue between two sweeps: raises where some are wanted."""
        if folder is not None:
            raise ConfigError(
                "BayesianMF keeps no checkpoints: a fit that ended starts from its beginning. Leave out checkpoint_dir"
            )
        super().checkpoints(folder, **options)

    def predict(self, X: Any, items: Any = None, *, return_known: bool = False, return_std: bool = False) -> Any:  # noqa: N803
        """As in `RatingEstimator.predict`; with `return_std`, also how far a rating may lie from its prediction.

        Args:
            X, items, return_known: as there.
            return_std: also return [N] float32 predictive standard deviations, rating points: the spread of the draws
                and the noise of a rating together; NaN for pairs with an unknown id.

        Returns:
            [N] float32, or a tuple of it and what was asked for: (predictions, std, known).
        """
        predictions, known = super().predict(X, items, return_known=True)
        out = [predictions]
        if return_std:
            out.append(self._deviations(X, items, known))
        if return_known:
            out.append(known)
        return out[0] if len(out) == 1 else tuple(out)

    def _deviations(self, X: Any, items: Any, known: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:  # noqa: N803
        model: Any = self._state().model
        user_idx, item_idx = self._rows(X, items)
        deviations = np.full(len(known), np.nan, dtype=np.float32)
        rows = (torch.from_numpy(idx[known]).to(model.device, torch.int64) for idx in (user_idx, item_idx))
        deviations[known] = model.predictive_std(*rows).cpu().numpy()
        return deviations

    @property
    def _shares(self) -> bool:
        return False

    @property
    def _streams(self) -> bool:
        return False

    def _new_model(self, config: Any, train: Any) -> Any:
        return super()._new_model(with_rank(config, len(train), len(train.users) + len(train.items)), train)

    def _train(
        self,
        model: Any,
        train: Any,
        validation: RatingsDataset | None,
        callbacks: Sequence[Callback],
        scale: tuple[float, float],
        features: SideFeatures,
        checkpoints: Checkpoints | None,
    ) -> TrainingHistory:
        history = bayesian.fit(model, train, validation, callbacks, scale, features)
        model.to(model.config.device)
        return history
