"""Validation errors on a device: the ratings stay there, and an epoch costs one pass over them and one wait."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mfdmc_fast.data.dataset import RatingsDataset
from mfdmc_fast.model import SIDES, MFDMCModel, SideName
from mfdmc_fast.ops.triton_kernels import launch
from mfdmc_fast.ops.triton_kernels.entity_forward import entity_forward
from mfdmc_fast.ops.triton_kernels.score_pairs import score_embedded

# pairs scored at a time: bounds the memory of scores and errors
_PAIRS_PER_BLOCK = 1 << 24


@dataclass(frozen=True)
class _Pairs:
    """Pairs of rows and their ratings, [P] each, on the device; -1 marks an unknown entity."""

    rows: dict[SideName, Tensor]
    ratings: Tensor


class DeviceValidation:
    """`training.evaluate_dataset` of one dataset again and again, by the Triton kernels.

    Args:
        model: on the device.
        dataset: its rows have been checked once, by `RatingsDataset`.
        scale: lowest and highest rating, to which predictions are clipped.
    """

    def __init__(self, model: MFDMCModel, dataset: RatingsDataset, scale: tuple[float, float]) -> None:
        self._model, self._scale, self._n_ratings = model, scale, len(dataset)
        known = (dataset.user_idx >= 0) & (dataset.item_idx >= 0)
        self._known, self._unknown = (self._pairs(dataset, mask) for mask in (known, ~known))

    @torch.no_grad()
    def errors(self) -> dict[str, float]:
        """`rmse` and `mae` of clipped predictions, rating points. Deterministic."""
        sums = torch.zeros(2, dtype=torch.float64, device=self._model.device)
        self._add_errors(sums, self._fallback(), self._unknown.ratings)
        if len(self._known.ratings):
            with launch.on(self._model.device):
                self._add_known(sums)
        squares, absolute = (sums / self._n_ratings).cpu().tolist()  # the only wait
        return {"rmse": float(np.sqrt(squares)), "mae": absolute}

    def _add_known(self, sums: Tensor) -> None:
        model, rows = self._model, self._known.rows
        user, item = (entity_forward(model.native_parameters(side), model.config.combine) for side in SIDES)
        mean = user.z.new_full((1,), model.global_mean)
        for start in range(0, len(self._known.ratings), _PAIRS_PER_BLOCK):
            block = slice(start, start + _PAIRS_PER_BLOCK)
            ratings = self._known.ratings[block]
            scores = torch.empty_like(ratings)
            score_embedded(user, item, rows["user"][block], rows["item"][block], mean, scores)
            self._add_errors(sums, scores, ratings)

    def _fallback(self) -> Tensor:
        """What `scoring.predict_rows` says of pairs with an unknown side: the mean, and the bias of a known one."""
        predictions = torch.full_like(self._unknown.ratings, self._model.train_mean)
        for side in SIDES:
            bias, rows = self._model.bias(side), self._unknown.rows[side]
            if bias is not None:
                predictions += bias[rows.clamp(min=0)].where(rows >= 0, 0.0)
        return predictions

    def _add_errors(self, sums: Tensor, predictions: Tensor, ratings: Tensor) -> None:
        errors = (predictions.clamp(*self._scale) - ratings).double()
        sums += torch.stack([errors.square().sum(), errors.abs().sum()])

    def _pairs(self, dataset: RatingsDataset, mask: npt.NDArray[np.bool_]) -> _Pairs:
        def on_device(column: npt.NDArray[np.generic]) -> Tensor:
            return torch.from_numpy(column[mask]).to(self._model.device)

        return _Pairs(
            {"user": on_device(dataset.user_idx), "item": on_device(dataset.item_idx)}, on_device(dataset.ratings)
        )
