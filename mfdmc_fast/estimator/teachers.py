"""Who can teach an MFDMC, and what it is taught: predicted ratings of pairs, in place of the ratings themselves."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import clone

from mfdmc_fast import bayesian
from mfdmc_fast.bayesian import SideFeatures
from mfdmc_fast.checkpoints import Checkpoint, digest
from mfdmc_fast.config import MFDMCConfig
from mfdmc_fast.data import RatingsDataset, read_ratings
from mfdmc_fast.data.blocks import blocks
from mfdmc_fast.data.pairs import sample_pairs
from mfdmc_fast.errors import ConfigError, DataError
from mfdmc_fast.estimator.base import RatingEstimator, load_model
from mfdmc_fast.estimator.baselines import BayesianMF
from mfdmc_fast.scoring import predict_rows

BAYESIAN, CUSTOM = "bayesian", "custom"
# tensors of a teacher's checkpoint
PAIRS = "user_idx", "item_idx", "ratings"
# pairs that a model of somebody else's is asked about at a time
_PAIRS_PER_CALL = 1 << 20


def teacher_name(teacher: Any) -> str | None:
    """What a model file says of a teacher: nothing, `bayesian`, or `custom` for everything that it cannot hold."""
    return teacher if teacher is None or (isinstance(teacher, str) and teacher == BAYESIAN) else CUSTOM


def teacher_identity(teacher: Any) -> Any:
    """Plain values that tell a teacher from others, as far as can be: a file by its content, a model of this package by
    its settings and parameters, anything else by its type alone.
    """
    if isinstance(teacher, list):
        return [teacher_identity(one) for one in teacher]
    if isinstance(teacher, str):
        content = Path(teacher).read_bytes() if Path(teacher).is_file() else b""
        return [teacher, digest([np.frombuffer(content, dtype=np.uint8)])] if content else teacher
    if not isinstance(teacher, RatingEstimator):
        return type(teacher).__name__
    parameters = [p.detach().cpu().numpy() for p in teacher.model_.parameters()] if teacher.is_fitted else []
    return [type(teacher).__name__, teacher._config().to_dict(), digest(parameters)]


def learns_afresh(teacher: Any) -> bool:
    """Whether a teacher knows nothing but the ratings that it is fitted on together with its student."""
    teachers = teacher if isinstance(teacher, list) else [teacher]
    return all(
        t is None or (isinstance(t, str) and t == BAYESIAN) or (isinstance(t, RatingEstimator) and not t.is_fitted)
        for t in teachers
    )


def uses_features(teacher: Any) -> bool:
    """Whether some teacher is fitted together with its student on features as well."""
    teachers = teacher if isinstance(teacher, list) else [teacher]
    return any(
        (isinstance(t, str) and t == BAYESIAN)
        or (isinstance(t, RatingEstimator) and not t.is_fitted and t.takes_features)
        for t in teachers
    )


def lessons(
    teacher: Any,
    config: MFDMCConfig,
    train: RatingsDataset,
    scale: tuple[float, float],
    features: SideFeatures,
    on_sweep: Callable[[int, int], None],
) -> RatingsDataset:
    """The pairs that a student trains on, with a teacher's predictions as ratings.

    Args:
        teacher: `bayesian`; an unfitted estimator, which is fitted on the same ratings; a fitted one, or anything with
            `predict(user_ids, item_ids)`; a list of these, to be averaged; a model file; or a table of predictions,
            anything `read_ratings` takes, which also says which pairs.
        config: of the student; says how many pairs, and seeds them.
        train: encoded ratings in (user, item) order.
        scale: lowest and highest rating.
        features: for a Bayesian teacher that is fitted here.
        on_sweep: told of every sweep of such a teacher.

    Returns:
        `config.pairs_per_rating` pairs a rating in (user, item) order, with the vocabularies of `train`.

    Raises:
        ConfigError: not a teacher. DataError: a table with ids that are not in the training ratings, or predictions
        that are not finite.
    """
    if isinstance(teacher, str) and teacher == CUSTOM:
        raise ConfigError(
            "teacher = 'custom' stands for a teacher that the model file does not hold; set `teacher` to one, or to"
            " 'bayesian' or None"
        )
    teachers = list(teacher) if isinstance(teacher, list) else [teacher]
    teachers = [_loaded(t, config) for t in teachers]
    if not teachers:
        raise ConfigError("teacher = []: an average needs at least one teacher")
    if len(teachers) == 1 and not _predicts(teachers[0]):
        return _encoded_table(teachers[0], train)
    n_pairs = max(1, round(config.pairs_per_rating * len(train)))
    users, items = sample_pairs(train, n_pairs, config.pair_smoothing, config.seed)
    pairs = RatingsDataset(users, items, np.zeros(n_pairs, dtype=np.float32), train.users, train.items).sorted()
    targets = pairs.ratings
    for one in teachers:
        if not _predicts(one):
            raise ConfigError(f"a {type(one).__name__} in a list of teachers has no predict; give a table alone")
        targets += _predictions(one, train, pairs.user_idx, pairs.item_idx, scale, features, on_sweep)
    targets /= len(teachers)
    if not np.isfinite(targets).all():
        raise DataError("the teacher predicts NaN or infinite ratings")
    return pairs


def check_lessons(found: Checkpoint, train: RatingsDataset) -> None:
    """Raise unless a checkpoint holds what a teacher predicted for pairs of these users and items."""
    seconds = found.state["seconds"]
    if type(seconds) is not float or not 0 <= seconds < math.inf:
        raise ValueError("seconds is not a number of 0 or more")
    users, items, ratings = (found.tensors[name] for name in PAIRS)
    if len(found.tensors) > len(PAIRS) or not len(ratings) or not users.shape == items.shape == ratings.shape:
        raise ValueError(f"it does not hold {', '.join(PAIRS)} of equal length alone")
    for name, rows, n in (("users", users, len(train.users)), ("items", items, len(train.items))):
        if rows.dtype != torch.int32 or rows.ndim != 1 or int(rows.min()) < 0 or int(rows.max()) >= n:
            raise ValueError(f"{name} are not rows from 0 to {n - 1} as int32")
    if ratings.dtype != torch.float32 or not ratings.isfinite().all():
        raise ValueError("ratings are not finite numbers as float32")


def _loaded(teacher: Any, config: MFDMCConfig) -> Any:
    if not isinstance(teacher, str):
        return teacher
    if teacher == BAYESIAN:
        return BayesianMF(seed=config.seed, backend=config.backend)
    return load_model(teacher, device="cpu") if teacher.endswith(".safetensors") else read_ratings(teacher)


def _predicts(teacher: Any) -> bool:
    return callable(getattr(teacher, "predict", None))


def _predictions(
    teacher: Any,
    train: RatingsDataset,
    users: npt.NDArray[np.int32],
    items: npt.NDArray[np.int32],
    scale: tuple[float, float],
    features: SideFeatures,
    on_sweep: Callable[[int, int], None],
) -> npt.NDArray[np.float32]:
    """[P] float32 predictions for pairs of rows."""
    if isinstance(teacher, RatingEstimator):
        if teacher.is_fitted:
            rows = teacher.users_.encode(train.users.ids), teacher.items_.encode(train.items.ids)
            return predict_rows(teacher.model_, rows[0][users], rows[1][items], scale)
        if isinstance(teacher, BayesianMF):
            return bayesian.posterior_means(teacher._config(), train, users, items, scale, features, on_sweep)
        fresh = clone(teacher)
        fresh._fit_dataset(fresh._config(), train, None, (), scale, features)
        return predict_rows(fresh.model_, users, items, scale)
    out = np.empty(len(users), dtype=np.float32)
    for block in blocks(len(out), _PAIRS_PER_CALL):
        predicted = np.asarray(teacher.predict(train.users.decode(users[block]), train.items.decode(items[block])))
        if predicted.shape != (block.stop - block.start,):
            raise DataError(f"the teacher's predict returned the shape {predicted.shape}, one number a pair was wanted")
        out[block] = predicted
    return out


def _encoded_table(table: Any, train: RatingsDataset) -> RatingsDataset:
    ratings = read_ratings(table)
    pairs = RatingsDataset.encode(ratings, train.users, train.items)
    if (pairs.user_idx < 0).any() or (pairs.item_idx < 0).any():
        raise DataError(
            "the teacher's predictions name users or items without a training rating; leave them out",
            source=ratings.source,
        )
    return pairs.sorted()
