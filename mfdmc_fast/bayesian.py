"""Bayesian matrix factorization: sweeps of a Gibbs sampler → draws that a model keeps, or posterior means of pairs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from mfdmc_fast import metrics
from mfdmc_fast.config import BayesianMFConfig, with_rank
from mfdmc_fast.data.dataset import RatingsDataset
from mfdmc_fast.errors import TrainingDiverged
from mfdmc_fast.history import EpochRecord, TrainingHistory
from mfdmc_fast.model import BayesianMFModel, draws_kept
from mfdmc_fast.ops import functional
from mfdmc_fast.ops.types import FeatureBags, GibbsSampler
from mfdmc_fast.training import Callback


class SideFeatures(NamedTuple):
    """What is known of the users and items besides their ratings: blocks of features for each side."""

    user: Sequence[FeatureBags] = ()
    item: Sequence[FeatureBags] = ()


def fit(
    model: BayesianMFModel,
    train: RatingsDataset,
    validation: RatingsDataset | None = None,
    callbacks: Sequence[Callback] = (),
    scale: tuple[float, float] | None = None,
    features: SideFeatures = SideFeatures(),
) -> TrainingHistory:
    """Fill a model with draws from the posterior, with the settings in `model.config`. A sweep counts as an epoch.

    Args:
        model: its rows are those of the dataset's vocabularies.
        train: encoded ratings without unknown ids.
        validation: watched each sweep: the RMSE of the draws so far, of a single one while none is kept.
        callbacks: called in order, with each sweep as an epoch of one batch; may ask to stop once a draw is kept.
        scale: lowest and highest rating; None: those of `train`.
        features: of the rows.

    Returns:
        The history; its loss is the variance of a rating around its prediction, as drawn. Deterministic: the same seed,
        data and backend give the same bits, for any number of threads.

    Raises:
        TrainingDiverged: a draw is NaN or infinite.
    """
    start = time.perf_counter()
    config, scale = model.config, scale or train.scale
    model.rating_scale = scale
    history = TrainingHistory(backend=model.training_backend, stop_reason="all sweeps done")
    train = train.sorted()
    history.batch_size = len(train)
    sampler = make_sampler(config, train, features)
    watched = _Watched(sampler, validation, scale) if validation is not None and len(validation) else None
    kept = 0
    try:
        for callback in callbacks:
            callback.on_train_start(model, 1, config.sweeps)
        for sweep, is_kept, seconds in sweeps(sampler, config):
            if is_kept:
                for side, draws in enumerate((model.user_draws, model.item_draws)):
                    draws[kept] = torch.from_numpy(sampler.rows(side))
                model.noise_variance.add_(1 / sampler.noise_precision)
                for side, noise in enumerate((model.user_noise, model.item_noise)):
                    noise.add_(torch.from_numpy(1 / sampler.noise_weights(side)))
                kept += 1
            rmse, mae = watched.errors(keep=is_kept) if watched else (None, None)
            variance = 1 / sampler.noise_precision
            record = EpochRecord(
                epoch=sweep,
                seconds=seconds,
                loss={"total": variance, "mse": variance},
                learning_rate_factor=1.0,
                valid_rmse=rmse,
                valid_mae=mae,
                clusters_user=None,
                clusters_item=None,
            )
            history.epochs.append(record)
            for callback in callbacks:
                callback.on_batch_end(sweep, 1)
            # every callback sees the sweep, also after one of them asked to stop
            if any([callback.on_epoch_end(record, model) for callback in callbacks]) and kept:  # noqa: C419
                history.stop_reason = f"a callback asked to stop after sweep {sweep}"
                model.keep_draws(kept)
                break
        for noise in (model.noise_variance, model.user_noise, model.item_noise):
            noise.div_(kept)
        history.kept_epoch = len(history.epochs)
        history.seconds = time.perf_counter() - start
        for callback in callbacks:
            callback.on_train_end(history)
    finally:
        with ExitStack() as closing:  # each is closed, whatever the others raise
            for callback in reversed(callbacks):
                closing.callback(callback.close)
    return history


def posterior_means(
    config: BayesianMFConfig,
    train: RatingsDataset,
    users: npt.NDArray[np.int32],
    items: npt.NDArray[np.int32],
    scale: tuple[float, float],
    features: SideFeatures = SideFeatures(),
    on_sweep: Callable[[int, int], None] = lambda sweep, sweeps: None,
) -> npt.NDArray[np.float32]:
    """Posterior-mean ratings of P pairs of rows, without keeping any draw: what a model fitted alike would predict.

    Args:
        config: settings of the sampler.
        train: encoded ratings in (user, item) order.
        users, items: [P] rows.
        scale: lowest and highest rating, to which every draw's prediction is clipped.
        features: of the rows.
        on_sweep: told of every sweep and of how many there are.

    Returns:
        [P] float32, rating points. Memory: 4 bytes a pair, 8 bytes a rating and the tables of one draw.
    """
    sums = np.zeros(len(users), dtype=np.float32)
    sampler = make_sampler(config, train, features)
    sampler.watch(users, items, scale, sums)
    for sweep, is_kept, _ in sweeps(sampler, config):
        if is_kept:
            sampler.add_predictions()
        on_sweep(sweep, config.sweeps)
    sums /= draws_kept(config)
    return sums


def make_sampler(config: BayesianMFConfig, train: RatingsDataset, features: SideFeatures) -> GibbsSampler:
    """A sampler of ratings in (user, item) order."""
    rank = with_rank(config, len(train), len(train.users) + len(train.items)).rank
    assert rank is not None
    return functional.gibbs_sampler(
        train.user_offsets,
        train.item_idx,
        train.ratings,
        n_items=len(train.items),
        mean=float(train.ratings.mean(dtype=np.float64)),
        rank=rank,
        seed=config.seed,
        implicit=config.implicit,
        noise_degrees=config.noise_degrees,
        user_bags=features.user,
        item_bags=features.item,
        backend=config.backend,
    )


def sweeps(sampler: GibbsSampler, config: BayesianMFConfig) -> Iterator[tuple[int, bool, float]]:
    """Sweep by sweep: its number from 1, whether its draw is one to keep, and its seconds.

    The draws to keep are spread evenly over the sweeps after burn_in; the last is the last sweep's.
    """
    usable, n_kept = config.sweeps - config.burn_in, draws_kept(config)
    for sweep in range(1, config.sweeps + 1):
        start = time.perf_counter()
        sampler.sweep()
        if not (math.isfinite(sampler.noise_precision) and sampler.noise_precision > 0):
            raise TrainingDiverged(
                f"sweep {sweep} drew a noise precision of {sampler.noise_precision}; ratings of very different"
                " magnitude do that: rescale them"
            )
        past = sweep - config.burn_in
        is_kept = past > 0 and past * n_kept // usable > (past - 1) * n_kept // usable
        yield sweep, is_kept, time.perf_counter() - start


class _Watched:
    """Errors on the validation ratings whose user and item are known, while sampling."""

    def __init__(self, sampler: GibbsSampler, validation: RatingsDataset, scale: tuple[float, float]) -> None:
        known = (validation.user_idx >= 0) & (validation.item_idx >= 0)
        self._sampler, self._ratings = sampler, validation.ratings[known]
        self._draw = np.zeros(len(self._ratings), dtype=np.float32)
        self._sums = np.zeros_like(self._draw)
        self._kept = 0
        sampler.watch(validation.user_idx[known], validation.item_idx[known], scale, self._draw)

    def errors(self, *, keep: bool) -> tuple[float | None, float | None]:
        """RMSE and MAE of known pairs: of the mean of the kept draws, of the last draw where there are none yet."""
        if not len(self._ratings):
            return None, None
        self._draw.fill(0.0)
        self._sampler.add_predictions()
        if keep:
            self._sums += self._draw
            self._kept += 1
        predictions = self._sums / self._kept if self._kept else self._draw
        return metrics.rmse(predictions, self._ratings), metrics.mae(predictions, self._ratings)
