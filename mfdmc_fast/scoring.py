"""Predictions for row indices of which some may be unknown: the one place that says what an unknown entity gets."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mfdmc_fast.data.blocks import blocks
from mfdmc_fast.model import SIDES, Predictor

# pairs scored at a time: bounds the memory of the gathered embeddings
_PAIRS_PER_BLOCK = 1 << 20


def predict_rows(
    model: Predictor,
    user_idx: npt.NDArray[np.signedinteger[Any]],
    item_idx: npt.NDArray[np.signedinteger[Any]],
    scale: tuple[float, float] | None = None,
) -> npt.NDArray[np.float32]:
    """Predicted ratings of index pairs; -1 marks an unknown user or item.

    An unknown user gets global mean + item bias, an unknown item global mean + user bias, both unknown the global mean.
    A model without biases gives the mean training rating for every pair with an unknown side.

    Args:
        model: trained parameters.
        user_idx, item_idx: [N] int32 or int64 in [-1, n).
        scale: lowest and highest rating to clip to, or None.

    Returns:
        [N] float32, rating points.
    """
    biases = [None if bias is None else bias.cpu().numpy() for bias in map(model.bias, SIDES)]
    device = model.device
    out = np.full(len(user_idx), model.train_mean, dtype=np.float32)
    for block in blocks(len(out), _PAIRS_PER_BLOCK):
        users, items, predictions = user_idx[block], item_idx[block], out[block]
        known_user, known_item = users >= 0, items >= 0
        for bias, rows, usable in zip(
            biases, (users, items), (known_user & ~known_item, known_item & ~known_user), strict=True
        ):
            if bias is not None:
                predictions[usable] += bias[rows[usable]]
        known = known_user & known_item
        scores = model.score_pairs(*(torch.from_numpy(rows[known]).to(device, torch.int64) for rows in (users, items)))
        predictions[known] = scores.float().cpu().numpy()
        if scale is not None:
            predictions.clip(*scale, out=predictions)
    return out
