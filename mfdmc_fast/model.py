"""The parameters as `torch.nn.Module`s: MFDMC with its two sides, FunkMF, and what training asks of any model."""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mfdmc_fast.config import (
    BayesianMFConfig,
    FunkMFConfig,
    MFDMCConfig,
    ModelConfig,
    TrainingConfig,
    l2_at,
    unit_of,
    weight_at,
    with_rates,
)
from mfdmc_fast.errors import ConfigError
from mfdmc_fast.ops import dispatch, functional, native
from mfdmc_fast.ops.types import FactorTensors, LossTerms, LossWeights, SideTensors

SideName = Literal["user", "item"]
SIDES: tuple[SideName, SideName] = ("user", "item")


class Predictor(nn.Module):
    """What the estimators need of a model. Indices are rows, never raw ids.

    Attributes:
        config: the settings it was built with.
        train_mean: mean training rating, rating points; what a pair of unknown entities gets.
        global_mean: rating points, added to every prediction: `train_mean`, or 0 for models without biases.
        n_entities: rows of each side.
        rating_scale: lowest and highest rating, for models whose scores depend on it.
    """

    config: ModelConfig
    train_mean: float
    global_mean: float
    n_entities: dict[SideName, int]
    rating_scale: tuple[float, float] = (-math.inf, math.inf)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    @abstractmethod
    def score_pairs(self, user_idx: Tensor, item_idx: Tensor) -> Tensor:
        """Predicted ratings [B], not clipped, without gradients."""

    @abstractmethod
    def embeddings(self, side: SideName) -> Tensor:
        """[n, D] embeddings of one side, without gradients."""

    @abstractmethod
    def bias(self, side: SideName) -> Tensor | None:
        """[n] biases of one side, or None."""

    def prunable_sides(self) -> dict[SideName, Side]:
        """The sides whose clusters can be pruned; empty for models without clusters."""
        return {}

    def clusters(self, side: SideName) -> list[int] | None:
        """Active clusters of each view, or None for models without clusters."""
        found = self.prunable_sides().get(side)
        return list(found.n_clusters) if found else None


class RatingModel(Predictor):
    """What `training.fit` needs besides: a model trained by gradients."""

    config: TrainingConfig

    @abstractmethod
    def batch_loss(self, user_idx: Tensor, item_idx: Tensor, ratings: Tensor, *, epoch: int) -> LossTerms:
        """Loss terms of a batch (all [B]) with the weights of that epoch."""

    @abstractmethod
    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameter groups with their learning rates, as `torch.optim` takes them."""

    @property
    @abstractmethod
    def training_backend(self) -> str:
        """Name of the backend that `batch_loss` uses; raises `BackendUnavailable` where the wanted one cannot."""

    def set_l2_scales(self, counts: dict[SideName, npt.NDArray[np.int64]]) -> None:
        """Let the L2 weight of an entity with c training ratings be `weight_l2` times c^-l2_count_power, scaled so that
        the mean over the ratings of a side stays `weight_l2`.

        Args:
            counts: [n] training ratings of each entity.
        """
        power = self.config.l2_count_power
        for side, of_side in counts.items():
            scale = None
            if power:
                relative = np.maximum(of_side, 1).astype(np.float64) ** -power
                relative *= of_side.sum() / max(1.0, (of_side * relative).sum())
                scale = torch.from_numpy(relative).to(next(self.parameters()))
            self.set_l2_scale(side, scale)

    def drop_l2_scales(self) -> None:
        """Forget them: they are for the rows of the training that is over."""
        for side in SIDES:
            self.set_l2_scale(side, None)

    @abstractmethod
    def set_l2_scale(self, side: SideName, scale: Tensor | None) -> None: ...

    @abstractmethod
    def native_parameters(self, side: SideName) -> native.SideParameters:
        """The trainable tensors of a side, for the native engine."""

    @abstractmethod
    def native_options(self, epoch: int) -> Any:
        """Loss weights and constants of an epoch, for the native engine."""


class Side(nn.Module):
    """One side of MFDMC: n entities, V views with K_v clusters each, S = sum(K_v).

    Attributes:
        assignment_logits: [n, S] parameter, views side by side; columns of pruned clusters are gone, not masked.
        centers: [S, d] parameter.
        bias: [n] parameter, or None.
        cluster_ids: original number of each surviving cluster, one tuple a view; pruning never renumbers.
        l2_scale: [n] or None, see `RatingModel.set_l2_scales`.
    """

    def __init__(self, n: int, config: MFDMCConfig, generator: torch.Generator) -> None:
        super().__init__()
        n_columns, size = config.n_views * config.n_clusters, config.center_scale * math.sqrt(unit_of(config))
        self.assignment_logits = nn.Parameter(torch.randn(n, n_columns, generator=generator) * config.logit_scale)
        self.centers = nn.Parameter(torch.randn(n_columns, config.view_dim, generator=generator) * size)
        self.bias = nn.Parameter(torch.zeros(n)) if config.biases else None
        self.cluster_ids = (tuple(range(config.n_clusters)),) * config.n_views
        self.l2_scale: Tensor | None
        self.register_buffer("l2_scale", None, persistent=False)

    @property
    def n_clusters(self) -> tuple[int, ...]:
        """Active clusters of each view."""
        return tuple(len(ids) for ids in self.cluster_ids)

    def tensors(self) -> SideTensors:
        """The parameters as the ops take them."""
        return SideTensors(self.assignment_logits, self.centers, self.n_clusters, self.bias, self.l2_scale)

    def assignment_weights(self) -> list[Tensor]:
        """Assignment weights of every entity, one [n, K_v] a view, without gradients."""
        logits = self.assignment_logits.detach().split(self.n_clusters, dim=1)
        return [torch.softmax(view_logits, dim=1) for view_logits in logits]


class MFDMCModel(RatingModel):
    """Matrix factorization with dynamic multi-view clustering, arXiv:2504.14565, as a module for own training loops.

    rating(u, i) = global_mean + user_bias + item_bias + z_u · z_i, where z_e holds, for each view, the softmax-weighted
    mean of the view's centers (Eq. 2 of the paper). Dot product, weighted centers, the loss terms' names and pruning
    are the paper's; biases, the joining of views (`combine`), the terms' exact forms and the L2 terms are this
    project's.

    Args:
        n_users, n_items: rows of the two sides.
        config: hyper-parameters; initial values are drawn from `config.seed` alone.
        train_mean: mean training rating.
    """

    config: MFDMCConfig

    def __init__(self, n_users: int, n_items: int, config: MFDMCConfig, train_mean: float = 0.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(config.seed)
        self.config = config
        self.train_mean = train_mean
        self.global_mean = train_mean if config.biases else 0.0
        self.n_entities = {"user": n_users, "item": n_items}
        self.user = Side(n_users, config, generator)
        self.item = Side(n_items, config, generator)

    def loss_weights(self, epoch: int) -> LossWeights:
        """Weights of the loss terms in an epoch (the first is 1).

        Squared errors grow with the square of the unit of ratings, lengths of embeddings with its root.
        """
        c, unit = self.config, unit_of(self.config)
        return LossWeights(
            spread=weight_at(c.weight_spread, epoch) * unit,
            proximity=weight_at(c.weight_proximity, epoch) * unit,
            entropy=weight_at(c.weight_entropy, epoch) * unit**2,
            l2=l2_at(c, epoch) * unit,
            bias_l2=weight_at(c.weight_bias_l2, epoch),
        )

    @property
    def spread_margin(self) -> float:
        """Distance from which on two centers do not repel each other."""
        return self.config.spread_margin * math.sqrt(unit_of(self.config))

    def batch_loss(self, user_idx: Tensor, item_idx: Tensor, ratings: Tensor, *, epoch: int) -> LossTerms:
        return functional.batch_loss(
            self.user.tensors(),
            self.item.tensors(),
            self.global_mean,
            user_idx,
            item_idx,
            ratings,
            combine=self.config.combine,
            weights=self.loss_weights(epoch),
            spread_margin=self.spread_margin,
            backend=self.config.backend,
        )

    def score_pairs(self, user_idx: Tensor, item_idx: Tensor) -> Tensor:
        return functional.score_pairs(
            self.user.tensors(),
            self.item.tensors(),
            self.global_mean,
            user_idx,
            item_idx,
            combine=self.config.combine,
            backend=self.config.backend,
        )

    @property
    def training_backend(self) -> str:
        centers = self.user.centers
        sides = self.user.tensors(), self.item.tensors()
        limits = functional.columns_of(*sides), functional.view_of(*sides)
        return dispatch.choose("batch_loss", centers.device, centers.dtype, self.config.backend, *limits).name

    def native_parameters(self, side: SideName) -> native.SideParameters:
        return native.SideParameters.of(self._side(side).tensors())

    def native_options(self, epoch: int) -> Any:
        return native.loss_options(
            self.loss_weights(epoch),
            spread_margin=self.spread_margin,
            global_mean=self.global_mean,
            combine=self.config.combine,
        )

    @torch.no_grad()
    def embeddings(self, side: SideName) -> Tensor:
        # the reference serves every backend here: one pass over a side, never in the training loop
        return functional.embed(self._side(side).tensors(), combine=self.config.combine, backend="reference")

    def bias(self, side: SideName) -> Tensor | None:
        bias = self._side(side).bias
        return None if bias is None else bias.detach()

    def parameter_groups(self) -> list[dict[str, Any]]:
        c, unit = with_rates(self.config), unit_of(self.config)
        sides = (self.user, self.item)
        assert c.learning_rate_centers is not None
        assert c.learning_rate_biases is not None
        groups: list[dict[str, Any]] = [
            {"params": [s.assignment_logits for s in sides], "lr": c.learning_rate, "name": "assignment_logits"},
            {"params": [s.centers for s in sides], "lr": c.learning_rate_centers * math.sqrt(unit), "name": "centers"},
        ]
        biases = [s.bias for s in sides if s.bias is not None]
        if biases:
            groups.append({"params": biases, "lr": c.learning_rate_biases * unit, "name": "biases"})
        return groups

    def prunable_sides(self) -> dict[SideName, Side]:
        return {"user": self.user, "item": self.item}

    def set_l2_scale(self, side: SideName, scale: Tensor | None) -> None:
        self._side(side).l2_scale = scale

    def _side(self, side: SideName) -> Side:
        return self.user if side == "user" else self.item


class FunkMFModel(RatingModel):
    """FunkMF: rating(u, i) = global_mean + user_bias + item_bias + p_u · q_i with free factors.
    Trained by squared error plus the same batch-mean L2 terms as MFDMC, so that only the embeddings differ.
    """

    config: FunkMFConfig

    def __init__(self, n_users: int, n_items: int, config: FunkMFConfig, train_mean: float = 0.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(config.seed)
        self.config = config
        self.train_mean = train_mean
        self.global_mean = train_mean if config.biases else 0.0
        self.n_entities = {"user": n_users, "item": n_items}
        size, scale = config.n_factors, config.factor_scale * math.sqrt(unit_of(config))
        self.user_factors = nn.Parameter(torch.randn(n_users, size, generator=generator) * scale)
        self.item_factors = nn.Parameter(torch.randn(n_items, size, generator=generator) * scale)
        self.user_bias = nn.Parameter(torch.zeros(n_users)) if config.biases else None
        self.item_bias = nn.Parameter(torch.zeros(n_items)) if config.biases else None
        self.user_l2_scale: Tensor | None
        self.item_l2_scale: Tensor | None
        for side in SIDES:
            self.register_buffer(f"{side}_l2_scale", None, persistent=False)

    def set_l2_scale(self, side: SideName, scale: Tensor | None) -> None:
        setattr(self, f"{side}_l2_scale", scale)

    def batch_loss(self, user_idx: Tensor, item_idx: Tensor, ratings: Tensor, *, epoch: int) -> LossTerms:
        return functional.funkmf_loss(
            *self._sides(),
            self.global_mean,
            user_idx,
            item_idx,
            ratings,
            weights=self.loss_weights(epoch),
            backend=self.config.backend,
        )

    @property
    def training_backend(self) -> str:
        factors = self.user_factors
        return dispatch.choose(
            "funkmf_loss", factors.device, factors.dtype, self.config.backend, self.config.n_factors
        ).name

    def loss_weights(self, epoch: int) -> LossWeights:
        """Weights of the loss terms in an epoch (the first is 1)."""
        c = self.config
        return LossWeights(l2=l2_at(c, epoch) * unit_of(c), bias_l2=weight_at(c.weight_bias_l2, epoch))

    def native_parameters(self, side: SideName) -> native.SideParameters:
        user, item = self._sides()
        return native.SideParameters.of(user if side == "user" else item)

    def native_options(self, epoch: int) -> Any:
        return native.loss_options(
            self.loss_weights(epoch), spread_margin=0.0, global_mean=self.global_mean, combine="concat"
        )

    def _sides(self) -> tuple[FactorTensors, FactorTensors]:
        return (
            FactorTensors(self.user_factors, self.user_bias, self.user_l2_scale),
            FactorTensors(self.item_factors, self.item_bias, self.item_l2_scale),
        )

    @torch.no_grad()
    def score_pairs(self, user_idx: Tensor, item_idx: Tensor) -> Tensor:
        functional.check_rows("user_idx", user_idx, self.n_entities["user"])
        functional.check_rows("item_idx", item_idx, self.n_entities["item"])
        prediction = (self.user_factors[user_idx] * self.item_factors[item_idx]).sum(1)
        for bias, idx in ((self.bias("user"), user_idx), (self.bias("item"), item_idx)):
            if bias is not None:
                prediction = prediction + bias[idx]
        return prediction + self.global_mean

    def embeddings(self, side: SideName) -> Tensor:
        return (self.user_factors if side == "user" else self.item_factors).detach()

    def bias(self, side: SideName) -> Tensor | None:
        bias = self.user_bias if side == "user" else self.item_bias
        return None if bias is None else bias.detach()

    def parameter_groups(self) -> list[dict[str, Any]]:
        c, unit = with_rates(self.config), unit_of(self.config)
        assert c.learning_rate is not None
        assert c.learning_rate_biases is not None
        rate = c.learning_rate * math.sqrt(unit)
        groups: list[dict[str, Any]] = [
            {"params": [self.user_factors, self.item_factors], "lr": rate, "name": "factors"}
        ]
        biases = [b for b in (self.user_bias, self.item_bias) if b is not None]
        if biases:
            groups.append({"params": biases, "lr": c.learning_rate_biases * unit, "name": "biases"})
        return groups


class BayesianMFModel(Predictor):
    """Draws from the posterior of rating(u, i) = global_mean + b_u + b_i + p_u · q_i + noise; see `ops/README.md`.

    A prediction is the mean over the draws of the rating, clipped to the rating scale: as ratings cannot lie beyond it,
    clipping every draw is the better estimate.

    Attributes:
        user_draws, item_draws: [D, n, rank + 1], factors and then the bias. Parameters so that they are saved and
            moved like those of other models; nothing trains them.
        noise_variance: [1], variance of a rating around its prediction where the next two are 1, mean over the draws.
        user_noise, item_noise: [n], by how much a user's, an item's ratings vary more, means over the draws.
    """

    config: BayesianMFConfig

    def __init__(self, n_users: int, n_items: int, config: BayesianMFConfig, train_mean: float = 0.0) -> None:
        super().__init__()
        if config.rank is None:
            raise ConfigError("rank is unset; `with_rank` chooses one by the number of ratings")
        self.config = config
        self.train_mean = self.global_mean = train_mean
        self.n_entities = {"user": n_users, "item": n_items}
        kept, width = draws_kept(config), config.rank + 1
        self.user_draws = nn.Parameter(torch.zeros(kept, n_users, width), requires_grad=False)
        self.item_draws = nn.Parameter(torch.zeros(kept, n_items, width), requires_grad=False)
        self.noise_variance = nn.Parameter(torch.zeros(1), requires_grad=False)
        self.user_noise = nn.Parameter(torch.zeros(n_users), requires_grad=False)
        self.item_noise = nn.Parameter(torch.zeros(n_items), requires_grad=False)

    @property
    def training_backend(self) -> str:
        """Name of the backend that draws for this model."""
        return dispatch.choose("gibbs_sampler", self.device, torch.float32, self.config.backend).name

    def score_pairs(self, user_idx: Tensor, item_idx: Tensor) -> Tensor:
        return self.posterior_scores(user_idx, item_idx)[0]

    def keep_draws(self, n: int) -> None:
        """Forget all but the first n draws: the others were not drawn. The settings say so, for the model file."""
        self.user_draws.data, self.item_draws.data = self.user_draws.data[:n].clone(), self.item_draws.data[:n].clone()
        self.config = dataclasses.replace(self.config, n_draws=n)

    def posterior_scores(self, user_idx: Tensor, item_idx: Tensor) -> tuple[Tensor, Tensor]:
        """Means and standard deviations [B] of the predictions over the draws, without the noise of a rating."""
        return functional.posterior_scores(
            self.user_draws,
            self.item_draws,
            self.global_mean,
            user_idx,
            item_idx,
            scale=self.rating_scale,
            backend=self.config.backend,
        )

    def predictive_std(self, user_idx: Tensor, item_idx: Tensor) -> Tensor:
        """[B] standard deviations of ratings: the spread of the draws and the noise of a rating together."""
        _, spread = self.posterior_scores(user_idx, item_idx)
        noise = self.noise_variance * self.user_noise[user_idx] * self.item_noise[item_idx]
        return (spread.square() + noise).sqrt()

    def embeddings(self, side: SideName) -> Tensor:
        # the factors of all draws side by side: the dot product of two is the mean of the draws' dot products
        draws = self.user_draws if side == "user" else self.item_draws
        return draws[:, :, :-1].transpose(0, 1).flatten(1) / math.sqrt(len(draws))

    def bias(self, side: SideName) -> Tensor | None:
        return (self.user_draws if side == "user" else self.item_draws)[:, :, -1].mean(0)


def draws_kept(config: BayesianMFConfig) -> int:
    """How many draws a model with these settings has."""
    return min(config.n_draws, config.sweeps - config.burn_in)
