"""What the estimators share: fit, predict, recommend, save and load, on raw ids, with scikit-learn's manners.

This is the lowest layer that sees raw user and item ids. Predictions are clipped to the rating scale here, never below.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.exceptions import NotFittedError
from typing_extensions import Self

from mfdmc_fast import __version__, metrics
from mfdmc_fast.bayesian import SideFeatures
from mfdmc_fast.checkpoints import Checkpoints, digest
from mfdmc_fast.config import ModelConfig, TrainingConfig, config_from_dict, with_unit
from mfdmc_fast.data import RatingsDataset, Vocabulary, holdout, read_features
from mfdmc_fast.data.store import StreamedRatings, store_at
from mfdmc_fast.data.vocabulary import ids_to_arrays
from mfdmc_fast.distributed import Processes
from mfdmc_fast.errors import ConfigError, ModelFileError
from mfdmc_fast.estimator import updates
from mfdmc_fast.estimator.inputs import as_ratings, id_columns, paired, scale_within
from mfdmc_fast.history import TrainingHistory
from mfdmc_fast.memory import load_or_stream, parse_size
from mfdmc_fast.model import SIDES, Predictor, RatingModel
from mfdmc_fast.ops import dispatch, functional
from mfdmc_fast.ops.types import FeatureBags
from mfdmc_fast.scoring import predict_rows
from mfdmc_fast.serialization import FittedState, SeenItems, load_state, save_state
from mfdmc_fast.training import Callback
from mfdmc_fast.training import fit as train_model

# training ratings that a fit's error on them is measured on
_RATINGS_FOR_ERROR = 100_000


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


class RatingEstimator(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """What all estimators share. Not to be instantiated.

    Attributes after `fit` or `load`:
        model_: the trained `torch.nn.Module`.
        users_, items_: vocabularies, raw id ↔ row.
        rating_scale_: (lowest, highest) rating; predictions are clipped to it.
        history_: `TrainingHistory`: losses, validation and clusters per epoch, prune events, backend.
    """

    _config_class: ClassVar[type[ModelConfig]]
    _model_class: ClassVar[type[Any]]
    # every estimator by the name of its class, which model files hold
    _kinds: ClassVar[dict[str, type[RatingEstimator]]] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        RatingEstimator._kinds[cls.__name__] = cls

    def fit(
        self,
        X: Any,  # noqa: N803 - scikit-learn's name
        y: npt.ArrayLike | None = None,
        *,
        validation: Any = None,
        rating_scale: tuple[float, float] | None = None,
        user_features: Any = None,
        item_features: Any = None,
        callbacks: Sequence[Callback] = (),
        progress: bool = False,
        memory_limit: int | str | None = None,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        checkpoint_every: int | str | None = None,
        checkpoint_keep: int | None = None,
        resume: bool = False,
    ) -> Self:
        """Train on ratings.

        In an initialized torch.distributed process group all processes train one model: all call `fit` with the same
        arguments, and all have the whole model afterwards. Meanwhile callbacks get a model that has the users of their
        own process alone; one that asks to stop stops all. Checkpoints are written by process 0.

        Args:
            X: with `y=None` anything `read_ratings` takes (a path, a store, a table, (users, items, ratings) arrays, a
                sparse matrix, `Ratings`); with `y` a two-column array or data frame of user and item ids.
            y: [N] ratings, or None.
            validation: ratings watched each epoch and never trained on; anything `read_ratings` takes.
            rating_scale: lowest and highest possible rating; default: those of the training ratings.
            user_features, item_features: what is known of users and items besides their ratings, anything
                `read_features` takes. Only Bayesian matrix factorization uses them, as a model or as a teacher.
            callbacks: called in order during training.
            progress: show a progress bar on standard error.
            memory_limit: bytes of memory that the process may have, such as "2GiB", the system's cache of files not
                counted; of use for a store, whose ratings stay on disk where they would not keep within it. Default:
                they do where memory is not free for them. The trained model is the same, bit by bit.
            checkpoint_dir: folder for checkpoints of this run, from which it can be resumed after whatever ended it.
            checkpoint_every: epochs from one to the next, such as 5, or minutes, such as "10min"; default: "1min".
            checkpoint_keep: how many of the last stay; default: 2.
            resume: continue from the last checkpoint in `checkpoint_dir`, where there is one; the result is
                bit-identical to that of a run that nothing ended. What callbacks remember is not part of it.

        Returns:
            self.

        Raises:
            DataError: the ratings cannot be used, or no checkpoint can be written. ConfigError: a setting is wrong, or
            the checkpoints are of a run with other settings or ratings. BackendUnavailable: the device or backend
            cannot be used here. TrainingDiverged: the loss is not finite. ProcessEnded: another process has ended.
        """
        processes = Processes.current()
        if processes.size > 1 and not self._shares:
            raise ConfigError(
                f"{self._named()} trains in one process, not in {processes.size}; start it without torchrun"
            )
        checkpoints = None
        if processes.is_first:
            checkpoints = self.checkpoints(checkpoint_dir, every=checkpoint_every, keep=checkpoint_keep, resume=resume)
        config = self._config()
        dispatch.check_device(config.device)
        self._check_features(user_features, item_features)
        given = {"user": user_features, "item": item_features}
        sources = {side: read_features(source) for side, source in given.items() if source is not None}
        store = store_at(X) if y is None else None
        watched = None if validation is None else as_ratings(validation, None, rating_scale)
        train: RatingsDataset | StreamedRatings
        if store is not None and (watched is not None or config.validation_fraction == 0):
            scale = scale_within(store, rating_scale)
            limit = self._checked_limit(memory_limit)
            train = load_or_stream(store, config, limit, processes.size) if self._streams else store.load()
        else:
            if memory_limit is not None:
                raise ConfigError(
                    "memory_limit is for a store that mfdmc prepare wrote, whose ratings are not split in memory"
                    " (validation_fraction, holdout and the like): prepare the ratings, and those to validate or test"
                    " on as a file of their own"
                )
            ratings = as_ratings(X, y, rating_scale)
            if watched is None and config.validation_fraction > 0:
                _, ratings, watched = holdout(ratings, config.validation_fraction, config.seed)
            train = RatingsDataset.from_ratings(ratings)
            low, high = ratings.scale if rating_scale is None else rating_scale
            scale = (float(low), float(high))
            del ratings  # training needs them no more: room for sorting
        validation = None if watched is None else RatingsDataset.encode(watched, train.users, train.items)
        del watched
        train = train.sorted()
        vocabularies = {"user": train.users, "item": train.items}
        features = SideFeatures(
            **{side: [FeatureBags(*b) for b in source.bags(vocabularies[side])] for side, source in sources.items()}
        )
        if progress:
            from mfdmc_fast.progress import ProgressBar

            callbacks = [*callbacks, ProgressBar()]
        with checkpoints or nullcontext():
            self._fit_dataset(config, train, validation, callbacks, scale, features, checkpoints)
        return self

    def fold_in(self, ratings: Any) -> Self:
        """Add users and items that were not in training, by their ratings; whom the model knows stays as it is.

        New users are solved on the items that the model knows, then new items on all their users. Nothing else moves,
        so predictions for known pairs stay the same. Embeddings and biases are those with the smallest squared errors
        under a normal prior with mean and covariance of the trained rows; with clusters, in the span of the memberships
        and with the last epoch's weights of proximity and entropy. Deterministic.

        Args:
            ratings: anything `read_ratings` takes; every rating of a new user, a new item or both.

        Returns:
            self. `users_`, `items_` have the new ids at their end, and `recommend` leaves out what new users rated.

        Raises:
            DataError: ratings of known users and items, or beyond the rating scale. ConfigError: a Bayesian model.
        """
        state = self._state()
        self._adopt(updates.fold_in(state, as_ratings(ratings, None, state.rating_scale)))
        return self

    def partial_fit(self, X: Any, y: npt.ArrayLike | None = None) -> Self:  # noqa: N803
        """Take in new ratings without training again; fold-in for new users and items, and known ones move.

        A known user or item is pulled to where it was by its old ratings, in whose place the model's own predictions
        stand. Centers and whoever has no new rating stay as they are. An unfitted estimator is fitted.

        Args:
            X, y: as in `fit`. A pair that was rated before gets the new rating.

        Returns:
            self.

        Raises:
            As `fold_in`.
        """
        if not self.is_fitted:
            return self.fit(X, y)
        state = self._state()
        self._adopt(updates.partial_fit(state, as_ratings(X, y, state.rating_scale)))
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
        user_idx, item_idx = self._rows(X, items)
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
        table = as_ratings(ratings, None, None)
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
        model, device = state.model, state.model.device
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

    def checkpoints(
        self,
        folder: str | os.PathLike[str] | None,
        *,
        every: int | str | None = None,
        keep: int | None = None,
        resume: bool = False,
    ) -> Checkpoints | None:
        """The checkpoints that `fit` would keep with these arguments, None without a folder; raises what is wrong with
        them, so that it is known before the ratings are read.
        """
        if folder is not None:
            return Checkpoints(folder, every=every, keep=keep, resume=resume)
        if resume or every is not None or keep is not None:
            named = "resume" if resume else "checkpoint_every" if every is not None else "checkpoint_keep"
            raise ConfigError(f"{named} is of use only with checkpoint_dir, the folder of the checkpoints")
        return None

    def _check_features(self, *sources: Any) -> None:
        """ConfigError where features are given and would be of no use."""
        if not self.takes_features and any(source is not None for source in sources):
            raise ConfigError(
                f"{self._named()} does not use user_features or item_features; leave them out, or use BayesianMF or"
                " MFDMC(teacher='bayesian')"
            )

    def _checked_limit(self, memory_limit: int | str | None) -> int | None:
        """The limit in bytes; ConfigError where there is one and this estimator needs all ratings in memory."""
        if memory_limit is None:
            return None
        if not self._streams:
            raise ConfigError(f"memory_limit: {self._named()} needs all ratings in memory; leave it out")
        return parse_size(memory_limit)

    @property
    def _shares(self) -> bool:
        """Whether several processes can train it together."""
        return True

    @property
    def _streams(self) -> bool:
        """Whether it can train on ratings that stay on disk."""
        return True

    def _config(self) -> Any:
        return config_from_dict(self._config_class, self.get_params(deep=False))

    def _fit_dataset(
        self,
        config: Any,
        train: Any,
        validation: RatingsDataset | None,
        callbacks: Sequence[Callback],
        scale: tuple[float, float],
        features: SideFeatures = SideFeatures(),
        checkpoints: Checkpoints | None = None,
    ) -> None:
        """Train on encoded ratings in (user, item) order and adopt the result."""
        if isinstance(config, TrainingConfig):
            config = with_unit(config, scale)
        model = self._new_model(config, train)
        if checkpoints is not None:
            ids = {f"{side} ids": v for side, v in zip(SIDES, (train.users, train.items), strict=True)}
            checkpoints.identify(
                model=type(self).__name__,
                **model.config.to_dict(),
                **{name: digest(ids_to_arrays(vocabulary).values()) for name, vocabulary in ids.items()},
            )
        history = self._train(model, train, validation, callbacks, scale, features, checkpoints)
        history.n_users, history.n_items = len(train.users), len(train.items)
        if isinstance(model, RatingModel):
            # for fold-in, to which evenly spread ones say as much as all
            users, items, ratings = train.every(max(1, len(train) // _RATINGS_FOR_ERROR))
            history.train_rmse = metrics.rmse(predict_rows(model, users, items, scale), ratings)
        seen = SeenItems(train.user_offsets, train.item_idx)
        self._adopt(FittedState(type(self).__name__, model, train.users, train.items, scale, seen, history))

    def _new_model(self, config: Any, train: RatingsDataset | StreamedRatings) -> Any:
        return self._model_class(len(train.users), len(train.items), config, train.mean)

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
        model.to(model.config.device)
        return train_model(model, train, validation, callbacks, scale, checkpoints)

    def _named(self) -> str:
        """What this estimator is, in a message."""
        return type(self).__name__

    def _adopt(self, state: FittedState) -> None:
        self._fitted = state
        self.model_: Predictor = state.model
        self.users_: Vocabulary = state.users
        self.items_: Vocabulary = state.items
        self.rating_scale_: tuple[float, float] = state.rating_scale
        self.history_: TrainingHistory = state.history
        self.n_features_in_ = 2

    def _rows(self, X: Any, items: Any) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:  # noqa: N803
        """[N] rows of the users and of the items of pairs, -1 for unknown ids; arguments as in `predict`."""
        state = self._state()
        user_ids, item_ids = id_columns(X) if items is None else paired(X, items)
        return state.users.encode(user_ids), state.items.encode(item_ids)

    @property
    def takes_features(self) -> bool:
        """Whether `fit` uses `user_features` and `item_features`; where not, it refuses them."""
        return False

    @property
    def is_fitted(self) -> bool:
        """Whether `fit` or `load` has given it a model."""
        return hasattr(self, "_fitted")

    def _state(self) -> FittedState:
        if not self.is_fitted:
            raise NotFittedError(f"this {type(self).__name__} is not fitted yet; call fit or load first")
        return self._fitted


def load_model(path: str | os.PathLike[str], *, device: str | None = None) -> Any:
    """Read a model file of any kind; raises `ModelFileError` where that cannot be done.

    Args:
        path: a file that `save` wrote.
        device: where the parameters go; default: the device it was trained on.
    """
    state = load_state(path, device)
    model = RatingEstimator._kinds[state.kind](**state.model.config.to_dict())
    model._adopt(state)
    return model


def _seen_of(seen: SeenItems, rows: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Offsets [U + 1] and items of the given user rows; nothing for row -1."""
    parts = [seen.items[seen.offsets[r] : seen.offsets[r + 1]] if r >= 0 else seen.items[:0] for r in rows.tolist()]
    offsets = np.cumsum([0, *map(len, parts)], dtype=np.int64)
    return offsets, np.concatenate([seen.items[:0], *parts]).astype(np.int64)
