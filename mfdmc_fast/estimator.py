"""Estimators with scikit-learn manners: fit, predict, recommend, save and load, on raw ids.

This is the lowest layer that sees raw user and item ids. Predictions are clipped to the rating scale here, never below.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.exceptions import NotFittedError
from typing_extensions import Self

from mfdmc_fast import __version__, metrics
from mfdmc_fast.config import FunkMFConfig, MFDMCConfig, TrainingConfig, WeightSchedule, config_from_dict
from mfdmc_fast.data import Ratings, RatingsDataset, Vocabulary, holdout, read_ratings
from mfdmc_fast.errors import ConfigError, DataError, ModelFileError
from mfdmc_fast.model import FunkMFModel, MFDMCModel, RatingModel, SideName
from mfdmc_fast.ops import functional
from mfdmc_fast.scoring import predict_rows
from mfdmc_fast.serialization import FittedState, SeenItems, load_state, save_state
from mfdmc_fast.training import Callback, TrainingHistory
from mfdmc_fast.training import fit as train_model


class Recommendations(NamedTuple):
    """Items for one user (1-D arrays) or several (2-D), best first.

    Attributes:
        items: [n] or [U, n] raw item ids; None where a user has fewer than n candidates.
        scores: [n] or [U, n] float32: predicted ratings, or cosine similarities; NaN where items is None.
        known: whether the user (or item) was in training; [U] for several. Unknown users get the items with the highest
            bias, the same for all.
    """

    items: npt.NDArray[Any]
    scores: npt.NDArray[np.float32]
    known: bool | npt.NDArray[np.bool_]


class ClusterSummary(NamedTuple):
    """One surviving cluster.

    Attributes:
        side, view, cluster: where it is; `cluster` is its original number, which pruning never changes.
        usage: mean assignment weight over the side's entities; the clusters of a view sum to 1.
        size: entities whose largest weight in the view is this cluster's.
        top_ids, top_weights: the entities with the largest weights, and these weights.
    """

    side: str
    view: int
    cluster: int
    usage: float
    size: int
    top_ids: list[Any]
    top_weights: list[float]


class RatingEstimator(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """What MFDMC and FunkMF share. Not to be instantiated.

    Attributes after `fit` or `load`:
        model_: the trained `torch.nn.Module`.
        users_, items_: vocabularies, raw id ↔ row.
        rating_scale_: (lowest, highest) rating; predictions are clipped to it.
        history_: `TrainingHistory`: losses, validation and clusters per epoch, prune events, backend.
    """

    _config_class: ClassVar[type[TrainingConfig]]
    _model_class: ClassVar[type[Any]]

    def fit(
        self,
        X: Any,  # noqa: N803 - scikit-learn's name
        y: npt.ArrayLike | None = None,
        *,
        validation: Any = None,
        rating_scale: tuple[float, float] | None = None,
        callbacks: Sequence[Callback] = (),
        progress: bool = False,
    ) -> Self:
        """Train on ratings.

        Args:
            X: with `y=None` anything `read_ratings` takes (a path, a table, (users, items, ratings) arrays, a sparse
                matrix, `Ratings`); with `y` a two-column array or data frame of user and item ids.
            y: [N] ratings, or None.
            validation: ratings watched each epoch and never trained on; anything `read_ratings` takes.
            rating_scale: lowest and highest possible rating; default: those of the training ratings.
            callbacks: called in order during training.
            progress: show a progress bar on standard error.

        Returns:
            self.

        Raises:
            DataError: the ratings cannot be used. ConfigError: a setting is wrong. TrainingDiverged: the loss is not
            finite.
        """
        config = self._config()
        ratings = _as_ratings(X, y, rating_scale)
        watched = None if validation is None else _as_ratings(validation, None, rating_scale)
        if watched is None and config.validation_fraction > 0:
            _, ratings, watched = holdout(ratings, config.validation_fraction, config.seed)
        train = RatingsDataset.from_ratings(ratings)
        low, high = ratings.scale if rating_scale is None else rating_scale
        scale = (float(low), float(high))
        self._check_sizes(config, len(train.users), len(train.items))
        model: RatingModel = self._model_class(
            len(train.users), len(train.items), config, float(ratings.ratings.mean())
        ).to(config.device)
        validation = None if watched is None else RatingsDataset.encode(watched, train.users, train.items)
        del ratings, watched  # training needs them no more: room for sorting
        train = train.sorted()
        if progress:
            from mfdmc_fast.progress import ProgressBar

            callbacks = [*callbacks, ProgressBar()]
        history = train_model(model, train, validation, callbacks, scale)
        seen = SeenItems(train.user_offsets, train.item_idx)
        self._adopt(FittedState(type(self).__name__, model, train.users, train.items, scale, seen, history))
        return self

    def predict(
        self,
        X: Any,  # noqa: N803
        items: Any = None,
        *,
        return_known: bool = False,
    ) -> Any:
        """Predicted ratings, clipped to the rating scale.
        An unknown user gets global mean + item bias, an unknown item global mean + user bias, both unknown (or no
        biases) the mean training rating.

        Args:
            X: [N] user ids (then give `items`), or a two-column array or data frame of user and item ids.
            items: [N] item ids, or a single one for all users; likewise a single user for all items.
            return_known: also return a [N] bool array: both ids were in training.

        Returns:
            [N] float32, or (predictions, known).
        """
        state = self._state()
        user_ids, item_ids = _id_columns(X) if items is None else _paired(X, items)
        user_idx, item_idx = state.users.encode(user_ids), state.items.encode(item_ids)
        predictions = predict_rows(state.model, user_idx, item_idx, state.rating_scale)
        return (predictions, (user_idx >= 0) & (item_idx >= 0)) if return_known else predictions

    def evaluate(self, ratings: Any) -> dict[str, float]:
        """RMSE and MAE (rating points) on ratings, and how many had ids unknown to the model.

        Args:
            ratings: anything `read_ratings` takes.

        Returns:
            `rmse`, `mae`, `ratings`, `unknown_users`, `unknown_items` (ratings with such an id; they are scored by the
            fallback of `predict` and count in the errors).
        """
        state = self._state()
        table = _as_ratings(ratings, None, None)
        dataset = RatingsDataset.encode(table, state.users, state.items)
        predictions = predict_rows(state.model, dataset.user_idx, dataset.item_idx, state.rating_scale)
        return {
            "rmse": metrics.rmse(predictions, table.ratings),
            "mae": metrics.mae(predictions, table.ratings),
            "ratings": len(table),
            "unknown_users": int((dataset.user_idx < 0).sum()),
            "unknown_items": int((dataset.item_idx < 0).sum()),
        }

    def recommend(self, users: Any, n: int = 10, *, exclude_seen: bool = True) -> Recommendations:
        """The n items with the highest predicted rating.

        Args:
            users: one raw user id, or [U] of them.
            n: items per user; fewer come back where fewer are left.
            exclude_seen: leave out what the user rated in training.

        Returns:
            Recommendations; scores are predicted ratings clipped to the rating scale, the order is that of the
            unclipped.
        """
        state = self._state()
        if n < 1:
            raise ConfigError(f"n = {n}: must be 1 or more")
        rows = state.users.encode(users)
        known = rows >= 0
        model, device = state.model, next(state.model.parameters()).device
        row_tensor = torch.from_numpy(np.where(known, rows, 0)).to(device)
        known_tensor = torch.from_numpy(known).to(device)
        user_embeddings = model.embeddings("user")[row_tensor] * known_tensor[:, None]
        offsets, seen = _seen_of(state.seen, rows if exclude_seen else np.full_like(rows, -1))
        items, scores = functional.top_items(
            user_embeddings,
            model.embeddings("item"),
            model.bias("item"),
            n,
            exclude_offsets=torch.from_numpy(offsets).to(device),
            exclude_items=torch.from_numpy(seen).to(device),
        )
        constant = torch.full_like(scores[:, :1], model.global_mean)
        user_bias = model.bias("user")
        if user_bias is not None:
            constant += (user_bias[row_tensor] * known_tensor)[:, None]
        else:  # without biases an unknown user has no score of her own
            constant += (~known_tensor)[:, None] * state.model.train_mean
        found = items.cpu().numpy()
        ratings = (scores + constant).clamp(*state.rating_scale).float().cpu().numpy()
        ids = np.full(found.shape, None, dtype=object)
        ids[found >= 0] = state.items.decode(found[found >= 0])
        ratings[found < 0] = np.nan
        if np.ndim(users) > 0:
            return Recommendations(ids, ratings, known)
        kept = found[0] >= 0
        return Recommendations(ids[0][kept], ratings[0][kept], bool(known[0]))

    def similar_items(self, item: Any, n: int = 10) -> Recommendations:
        """The n items whose embeddings have the highest cosine similarity to that of `item`, without itself.

        An unknown item has no neighbours: the arrays are empty and `known` is False.
        """
        state = self._state()
        if n < 1:
            raise ConfigError(f"n = {n}: must be 1 or more")
        rows = state.items.encode(item)
        if len(rows) != 1:
            raise ConfigError(f"similar_items takes a single item, got {len(rows)}")
        row = int(rows[0])
        if row < 0:
            return Recommendations(np.empty(0, dtype=object), np.empty(0, dtype=np.float32), False)
        unit = torch.nn.functional.normalize(state.model.embeddings("item"), dim=1)
        items, scores = functional.top_items(
            unit[row : row + 1],
            unit,
            None,
            n,
            exclude_offsets=torch.tensor([0, 1], device=unit.device),
            exclude_items=torch.tensor([row], device=unit.device),
        )
        kept = items[0] >= 0
        return Recommendations(
            state.items.decode(items[0][kept].cpu().numpy()), scores[0][kept].float().cpu().numpy(), True
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted model as one safetensors file; see `mfdmc_fast.serialization` for its parts."""
        save_state(self._state(), path, __version__)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, device: str | None = None) -> Self:
        """Read a model that `save` wrote; `load_model` reads one of any kind.

        Args:
            path: the file.
            device: where the parameters go; default: the device it was trained on.

        Raises:
            ModelFileError: not a model file, damaged, of a newer format, or of another kind.
        """
        model = load_model(path, device=device)
        if not isinstance(model, cls):
            raise ModelFileError(f"{path}: holds a model of kind {type(model).__name__}, not {cls.__name__}")
        return model

    def _config(self) -> TrainingConfig:
        return config_from_dict(self._config_class, self.get_params(deep=False))

    def _check_sizes(self, config: TrainingConfig, n_users: int, n_items: int) -> None:
        """Settings that only the data can contradict."""

    def _adopt(self, state: FittedState) -> None:
        self._fitted = state
        self.model_: RatingModel = state.model
        self.users_: Vocabulary = state.users
        self.items_: Vocabulary = state.items
        self.rating_scale_: tuple[float, float] = state.rating_scale
        self.history_: TrainingHistory = state.history
        self.n_features_in_ = 2

    def _state(self) -> FittedState:
        if not hasattr(self, "_fitted"):
            raise NotFittedError(f"this {type(self).__name__} is not fitted yet; call fit or load first")
        return self._fitted


class MFDMC(RatingEstimator):
    """Matrix factorization with dynamic multi-view clustering (MFDMC, arXiv:2504.14565) for explicit ratings.
    Every user and item is, in each of `n_views` views, a softmax-weighted mix of `n_clusters` learnable centers (Eq. 2
    of the paper); a rating is the dot product of two embeddings. The loss is squared error plus the paper's spread,
    proximity and entropy terms; from epoch `prune_start` on, clusters whose mean weight is under `prune_threshold` are
    removed. Biases, L2 terms, the exact form of the three terms and all default values are this project's, because the
    paper leaves them open; see README.md.

    All settings are keyword arguments; their meaning and defaults are those of `mfdmc_fast.config.MFDMCConfig`.

    >>> model = MFDMC(seed=1).fit("ratings.csv")  # doctest: +SKIP
    >>> model.recommend(user=42, n=5).items  # doctest: +SKIP
    """

    _config_class = MFDMCConfig
    _model_class = MFDMCModel

    def __init__(
        self,
        *,
        n_views: int = MFDMCConfig.n_views,
        n_clusters: int = MFDMCConfig.n_clusters,
        view_dim: int = MFDMCConfig.view_dim,
        combine: Literal["concat", "sum"] = MFDMCConfig.combine,
        biases: bool = MFDMCConfig.biases,
        center_scale: float = MFDMCConfig.center_scale,
        logit_scale: float = MFDMCConfig.logit_scale,
        epochs: int = MFDMCConfig.epochs,
        batch_size: int | None = MFDMCConfig.batch_size,
        optimizer: Literal["adam", "adagrad"] = MFDMCConfig.optimizer,
        learning_rate: float | None = MFDMCConfig.learning_rate,
        learning_rate_centers: float | None = MFDMCConfig.learning_rate_centers,
        learning_rate_biases: float | None = MFDMCConfig.learning_rate_biases,
        learning_rate_schedule: Literal["cosine", "constant", "one-cycle"] = MFDMCConfig.learning_rate_schedule,
        weight_spread: WeightSchedule = MFDMCConfig.weight_spread,
        spread_margin: float = MFDMCConfig.spread_margin,
        weight_proximity: WeightSchedule = MFDMCConfig.weight_proximity,
        weight_entropy: WeightSchedule = MFDMCConfig.weight_entropy,
        weight_l2: WeightSchedule | None = MFDMCConfig.weight_l2,
        weight_bias_l2: WeightSchedule = MFDMCConfig.weight_bias_l2,
        prune: bool = MFDMCConfig.prune,
        prune_start: int = MFDMCConfig.prune_start,
        prune_threshold: float = MFDMCConfig.prune_threshold,
        min_clusters: int = MFDMCConfig.min_clusters,
        validation_fraction: float = MFDMCConfig.validation_fraction,
        patience: int | None = MFDMCConfig.patience,
        keep: Literal["last", "best"] = MFDMCConfig.keep,
        seed: int = MFDMCConfig.seed,
        backend: str = MFDMCConfig.backend,
        device: str = MFDMCConfig.device,
    ) -> None:
        self.n_views = n_views
        self.n_clusters = n_clusters
        self.view_dim = view_dim
        self.combine = combine
        self.biases = biases
        self.center_scale = center_scale
        self.logit_scale = logit_scale
        self.epochs = epochs
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.learning_rate_centers = learning_rate_centers
        self.learning_rate_biases = learning_rate_biases
        self.learning_rate_schedule = learning_rate_schedule
        self.weight_spread = weight_spread
        self.spread_margin = spread_margin
        self.weight_proximity = weight_proximity
        self.weight_entropy = weight_entropy
        self.weight_l2 = weight_l2
        self.weight_bias_l2 = weight_bias_l2
        self.prune = prune
        self.prune_start = prune_start
        self.prune_threshold = prune_threshold
        self.min_clusters = min_clusters
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.keep = keep
        self.seed = seed
        self.backend = backend
        self.device = device

    def clusters(self, side: SideName, *, top: int = 5) -> list[ClusterSummary]:
        """The surviving clusters of a side (`user` or `item`), by view, with their `top` members each."""
        state = self._state()
        vocabulary, module = _side_of(state, side)
        summaries = []
        for view, (ids, weights) in enumerate(zip(module.cluster_ids, module.assignment_weights(), strict=True)):
            sizes = torch.bincount(weights.argmax(1), minlength=len(ids)).tolist()
            usage = weights.mean(0, dtype=torch.float64).tolist()
            top_weights, top_rows = weights.topk(min(top, len(weights)), dim=0)
            for k, cluster in enumerate(ids):
                summaries.append(
                    ClusterSummary(
                        side,
                        view,
                        cluster,
                        usage[k],
                        sizes[k],
                        vocabulary.decode(top_rows[:, k].cpu().numpy()).tolist(),
                        top_weights[:, k].tolist(),
                    )
                )
        return summaries

    def memberships(self, side: SideName, ids: Any = None) -> list[npt.NDArray[np.float32]]:
        """Assignment weights of entities, one [n, K_v] array a view, columns as in `clusters`; rows sum to 1.

        Args:
            side: `user` or `item`.
            ids: raw ids, or None for all in the order of `users_.ids` / `items_.ids`. Unknown ids get NaN rows.
        """
        state = self._state()
        vocabulary, module = _side_of(state, side)
        rows = np.arange(len(vocabulary)) if ids is None else vocabulary.encode(ids)
        views = []
        for weights in module.assignment_weights():
            chosen = weights.cpu().numpy()[rows]
            chosen[rows < 0] = np.nan
            views.append(chosen)
        return views

    def _check_sizes(self, config: TrainingConfig, n_users: int, n_items: int) -> None:
        smaller, name = min((n_users, "users"), (n_items, "items"))
        if self.n_clusters > smaller:
            raise ConfigError(
                f"n_clusters = {self.n_clusters}, but the training ratings have only {smaller} {name};"
                f" set n_clusters to {smaller} or less"
            )


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
        self.weight_bias_l2 = weight_bias_l2
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.keep = keep
        self.seed = seed
        self.backend = backend
        self.device = device


def load_model(path: str | os.PathLike[str], *, device: str | None = None) -> MFDMC | FunkMF:
    """Read a model file of either kind; raises `ModelFileError` where that cannot be done.

    Args:
        path: a file that `save` wrote.
        device: where the parameters go; default: the device it was trained on.
    """
    state = load_state(path, device)
    kinds: dict[str, type[MFDMC] | type[FunkMF]] = {"MFDMC": MFDMC, "FunkMF": FunkMF}
    model = kinds[state.kind](**state.model.config.to_dict())
    model._adopt(state)
    return model


def _as_ratings(source: Any, y: npt.ArrayLike | None, scale: tuple[float, float] | None) -> Ratings:
    if y is not None:
        source = (*_id_columns(source), np.asarray(y))
    return read_ratings(source, rating_scale=scale)


def _id_columns(pairs: Any) -> tuple[Any, Any]:
    """User and item ids of a two-column array, list of pairs or data frame, each with its own dtype."""
    if hasattr(pairs, "iloc"):
        columns = [pairs.iloc[:, k].to_numpy() for k in range(pairs.shape[1])]
    elif hasattr(pairs, "get_columns"):
        columns = [column.to_numpy() for column in pairs.get_columns()]
    else:
        array = np.asarray(pairs)
        columns = list(array.T) if array.ndim == 2 else []
    if len(columns) != 2:
        raise DataError("X must have two columns, user ids and item ids; or pass predict(users, items)")
    return columns[0], columns[1]


def _paired(users: Any, items: Any) -> tuple[Any, Any]:
    """Two equally long id vectors; a single id is repeated to the length of the other."""
    n_users, n_items = (1 if np.ndim(x) == 0 else len(x) for x in (users, items))
    if n_users == n_items:
        return users, items
    if np.ndim(users) == 0:
        return [users] * n_items, items
    if np.ndim(items) == 0:
        return users, [items] * n_users
    raise DataError(f"users and items must be equally long, got {n_users} and {n_items}")


def _seen_of(seen: SeenItems, rows: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Offsets [U + 1] and items of the given user rows; nothing for row -1."""
    parts = [seen.items[seen.offsets[r] : seen.offsets[r + 1]] if r >= 0 else seen.items[:0] for r in rows.tolist()]
    offsets = np.cumsum([0, *map(len, parts)], dtype=np.int64)
    return offsets, np.concatenate([seen.items[:0], *parts]).astype(np.int64)


def _side_of(state: FittedState, side: SideName) -> tuple[Vocabulary, Any]:
    if side not in ("user", "item"):
        raise ConfigError(f"side = {side!r}: must be 'user' or 'item'")
    return (state.users if side == "user" else state.items), state.model.prunable_sides()[side]
