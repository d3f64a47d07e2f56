"""Life after training: new users and items by fold-in, new ratings of known ones, without training again.

A known row has no old ratings any more, but the model remembers which items a user has rated, and has fitted them: the
squared errors of its old ratings are, but for a constant, those of its own predictions for the same pairs. With these
and its present place as the mean of its prior, new ratings move a row as far as their number against that of the old
ones allows. That is what the old ratings themselves would do if rows were free and the rest stayed fixed.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mfdmc_fast.data import Ratings, RatingsDataset, Vocabulary
from mfdmc_fast.errors import ConfigError, DataError
from mfdmc_fast.fold_in import Population, append_rows, embeddings_and_biases, other_side, population, solve_rows
from mfdmc_fast.model import SIDES, MFDMCModel, RatingModel, SideName
from mfdmc_fast.ops.types import LossWeights, RowRatings
from mfdmc_fast.scoring import predict_rows
from mfdmc_fast.serialization import FittedState, SeenItems

Entities = tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]  # users and items of pairs
Pairs = tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.float32]]


def fold_in(state: FittedState, ratings: Ratings) -> FittedState:
    """The state with the users and items that it does not know; those it knows stay as they are.

    Args:
        state: of MFDMC or FunkMF.
        ratings: each of a new user, a new item or both.

    Raises:
        DataError: ratings of which the model knows both ids, or ids that its vocabulary cannot hold. ConfigError: a
        model that takes no new rows.
    """
    known = (state.users.encode(ratings.users) >= 0) & (state.items.encode(ratings.items) >= 0)
    if known.any():
        first = int(np.argmax(known))
        user, item = (ids[first : first + 1].tolist()[0] for ids in (ratings.users, ratings.items))
        raise DataError(
            f"{int(known.sum())} ratings are of users and items that the model knows, the first of user {user!r} and"
            f" item {item!r}; fold_in takes new users and items, partial_fit (mfdmc fold-in --update) takes these"
            " ratings too",
            source=ratings.source,
        )
    return _updated(state, ratings, known_rows=False)


def partial_fit(state: FittedState, ratings: Ratings) -> FittedState:
    """The state with new users and items folded in and with known ones moved by their new ratings.

    Args:
        state: of MFDMC or FunkMF.
        ratings: any; a pair that was rated before gets the new rating.

    Raises:
        As `fold_in`, but for ratings of known users and items.
    """
    return _updated(state, ratings, known_rows=True)


def _updated(state: FittedState, ratings: Ratings, *, known_rows: bool) -> FittedState:
    if not isinstance(state.model, RatingModel):
        raise ConfigError(
            f"{state.kind} takes no new users, items or ratings: what was drawn for it is a sample of one posterior."
            " MFDMC and FunkMF do; train an MFDMC with teacher='bayesian', or train again"
        )
    model, history = copy.deepcopy(state.model), state.history
    if history.train_rmse is None:
        raise ConfigError(
            "this model does not say how far ratings lie from its predictions: it was trained by an earlier version."
            " Train it again"
        )
    span = state.rating_scale[1] - state.rating_scale[0]
    noise = max(history.train_rmse**2, 1e-6 * span**2, 1e-12)
    n_old = dict(model.n_entities)
    users, items = _grown(state.users, ratings.users, "user"), _grown(state.items, ratings.items, "item")
    new = RatingsDataset.encode(ratings, users, items).sorted()
    pairs: Pairs = (new.user_idx, new.item_idx, new.ratings)
    weights = LossWeights()
    if isinstance(model, MFDMCModel):
        last = model.loss_weights(max(1, history.kept_epoch))
        weights = LossWeights(proximity=last.proximity, entropy=last.entropy)
    trained = {"user": history.n_users or n_old["user"], "item": history.n_items or n_old["item"]}
    every = {"user": np.diff(state.seen.offsets), "item": np.bincount(state.seen.items, minlength=n_old["item"])}
    counts = {side: torch.from_numpy(every[side][: trained[side]]).to(model.device) for side in SIDES}
    populations: dict[SideName, Population] = {}
    for side, vocabulary in zip(SIDES, (users, items), strict=True):
        grows = len(vocabulary) - n_old[side]
        if grows or known_rows:
            populations[side] = population(model, side, counts[side], counts[other_side(side)], noise)
        if grows:
            append_rows(model, side, grows, populations[side])
    if "user" in populations:
        of_known_items = _taken(pairs, new.item_idx < n_old["item"])
        _solve_new(model, "user", n_old["user"], of_known_items, populations["user"], weights)
    if "item" in populations:
        _solve_new(model, "item", n_old["item"], pairs, populations["item"], weights)
    old_users = np.repeat(np.arange(n_old["user"], dtype=np.int32), np.diff(state.seen.offsets))
    old = old_users, state.seen.items
    if known_rows:
        old = _not_rated_again(old, pairs, len(items))
        for side in SIDES:
            _move_known(model, side, n_old[side], pairs, old, populations[side])
    seen = _seen(np.concatenate([old[0], pairs[0]]), np.concatenate([old[1], pairs[1]]), users, items)
    return dataclasses.replace(state, model=model, users=users, items=items, seen=seen)


def _solve_new(
    model: RatingModel, side: SideName, n_old: int, pairs: Pairs, like: Population, weights: LossWeights
) -> None:
    """The rows of a side from n_old on, by their ratings."""
    own = pairs[SIDES.index(side)]
    rows = np.arange(n_old, model.n_entities[side])
    if len(rows):
        grouped = _grouped(_taken(pairs, own >= n_old), side, rows, model)
        solve_rows(model, side, rows, grouped, like, weights=weights)


def _move_known(
    model: RatingModel,
    side: SideName,
    n_old: int,
    pairs: Pairs,
    old: Entities,
    like: Population,
) -> None:
    """The rows of a side before n_old that have new ratings."""
    column = SIDES.index(side)
    moved = np.zeros(model.n_entities[side], dtype=bool)
    moved[pairs[column]] = True
    moved[n_old:] = False
    rows = np.flatnonzero(moved)
    if not len(rows):
        return
    users, items, ratings = _taken(pairs, moved[pairs[column]])
    kept = moved[old[column]]
    old_users, old_items = old[0][kept], old[1][kept]
    fitted = predict_rows(model, old_users, old_items)
    both: Pairs = (
        np.concatenate([old_users, users]),
        np.concatenate([old_items, items]),
        np.concatenate([fitted, ratings]),
    )
    means = embeddings_and_biases(model, side)[torch.from_numpy(rows)]
    # memberships are as sharp as training made them; sharpening them again with every update would go too far
    solve_rows(model, side, rows, _grouped(both, side, rows, model), like, means=means, weights=LossWeights())


def _grouped(pairs: Pairs, side: SideName, rows: npt.NDArray[Any], model: RatingModel) -> RowRatings:
    """The ratings of the given rows, ascending, of a side."""
    column = SIDES.index(side)
    own, partners, ratings = pairs[column], pairs[1 - column], pairs[2]
    order = np.argsort(own, kind="stable")
    offsets = np.append(np.searchsorted(own[order], rows), len(own))
    return RowRatings(*(torch.from_numpy(a).to(model.device) for a in (offsets, partners[order], ratings[order])))


def _taken(pairs: Pairs, chosen: npt.NDArray[np.bool_]) -> Pairs:
    return pairs[0][chosen], pairs[1][chosen], pairs[2][chosen]


def _grown(vocabulary: Vocabulary, ids: npt.NDArray[Any], name: str) -> Vocabulary:
    """The vocabulary with the ids that it does not know, in ascending order, at its end."""
    new = Vocabulary.from_values(ids[vocabulary.encode(ids) < 0])
    if not len(new):
        return vocabulary
    if vocabulary.kind == "int" and new.kind == "str":
        raise DataError(f"the model's {name} ids are integers, and {new.ids[0]!r} is none")
    added = new.ids if vocabulary.kind == new.kind else np.array([str(i) for i in new.ids.tolist()], dtype=object)
    return Vocabulary(np.concatenate([vocabulary.ids, added]))


def _not_rated_again(old: Entities, pairs: Pairs, n_items: int) -> Entities:
    """The old pairs without the new ones."""
    kept = ~np.isin(old[0].astype(np.int64) * n_items + old[1], pairs[0].astype(np.int64) * n_items + pairs[1])
    return old[0][kept], old[1][kept]


def _seen(
    user_idx: npt.NDArray[np.int32], item_idx: npt.NDArray[np.int32], users: Vocabulary, items: Vocabulary
) -> SeenItems:
    dataset = RatingsDataset(user_idx, item_idx, np.zeros(len(user_idx), dtype=np.float32), users, items).sorted()
    return SeenItems(dataset.user_offsets, dataset.item_idx)
