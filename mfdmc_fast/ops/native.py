"""Lazy access to the compiled modules, and the one place where tensors become arrays for them.

The compiled code knows arrays only; it checks shapes and index ranges. Here device, dtype and layout are checked, which
an array no longer shows, or which would otherwise end in a copy.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mfdmc_fast import environment
from mfdmc_fast.errors import BackendUnavailable, DataError
from mfdmc_fast.ops.types import (
    Combine,
    FactorTensors,
    FeatureBags,
    LossTerms,
    LossWeights,
    RowPrior,
    RowRatings,
    SideTensors,
)

# what the training kernels take: clusters of a side or numbers of an embedding; batches of an epoch
MAX_COLUMNS = 1024
MAX_BATCHES = 65_536
MAX_RANK = 126


def load_compiled(module: str, title: str, variable: str) -> ModuleType | str:
    """A compiled module of this package, or the sentence that says why there is none.

    Args:
        module: `_cpu` or `_cuda`.
        title: what it is called, with the compiler that it takes: `C++` or `CUDA`.
        variable: the environment variable of `setup.py` that builds it.
    """
    try:
        return importlib.import_module(f"mfdmc_fast.{module}")
    except ModuleNotFoundError:
        if any(Path(__file__).parents[1].glob(f"{module}.*")):
            return f"the {title} module was built for another Python version; reinstall the package with this one"
        return (
            f"the {title} module was not built (no {title} compiler at install time, or {variable}=off); "
            f"reinstall with {variable}=on to see the compiler's message"
        )
    except ImportError as error:
        return f"the {title} module does not load ({error}); reinstall the package on this machine"


@functools.cache
def _load() -> ModuleType | str:
    """The compiled module, or the sentence that says why there is none; tried once per process."""
    return load_compiled("_cpu", "C++", "MFDMC_NATIVE")


def _module() -> ModuleType:
    loaded = _load()
    if isinstance(loaded, str):
        raise BackendUnavailable(loaded)
    return loaded


def why_unavailable() -> str | None:
    """A sentence on why the C++ module cannot be used and what to do about it, or None if it can."""
    loaded = _load()
    return loaded if isinstance(loaded, str) else None


def build_info() -> dict[str, str]:
    """Compiler and instruction set of the C++ module; raises BackendUnavailable without it."""
    return dict(_module().build_info())


def available_kernels() -> list[str]:
    """Instruction sets of the training kernels that this processor can run, the fastest first."""
    return list(_module().available_kernels())


def score_pairs(
    user: SideTensors,
    item: SideTensors,
    global_mean: float,
    user_idx: Tensor,  # [B]
    item_idx: Tensor,  # [B]
    *,
    combine: Combine,
) -> Tensor:  # [B]
    """Predictions global_mean + b_u + b_i + z_u · z_i of B pairs on the CPU, with `torch.get_num_threads()` threads.

    Args:
        user, item: the sides, float32 or float64, one dtype for all, contiguous. `assignment_logits` [n, S],
            `centers` [S, d], `bias` [n] or None.
        global_mean: added to every prediction.
        user_idx, item_idx: [B] int64, contiguous; B may be 0.
        combine: "concat" or "sum".

    Returns:
        [B] in the dtype of the sides. No input gets a gradient. Deterministic: bit-identical for any number of threads.

    Raises:
        IndexError: an index lies outside its side.
        TypeError, ValueError: an argument has a wrong dtype, or a wrong device, layout, shape or value.
        BackendUnavailable: there is no C++ module.
    """
    module = _module()
    dtype = user.assignment_logits.dtype
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"user.assignment_logits must be torch.float32 or torch.float64, not {dtype}")
    predictions = torch.empty(user_idx.numel(), dtype=dtype, device="cpu")  # [B]
    module.score_pairs(
        *_side_arrays("user", user, dtype),
        *_side_arrays("item", item, dtype),
        global_mean,
        _array("user_idx", user_idx, torch.int64),
        _array("item_idx", item_idx, torch.int64),
        combine,
        torch.get_num_threads(),
        predictions.numpy(),
    )
    return predictions


def posterior_scores(
    user_draws: Tensor,
    item_draws: Tensor,
    global_mean: float,
    user_idx: Tensor,
    item_idx: Tensor,
    *,
    scale: tuple[float, float],
) -> tuple[Tensor, Tensor]:
    """Means and deviations over draws, float32; see `mfdmc_fast.ops.functional.posterior_scores` for the contract."""
    means, deviations = torch.empty(2, len(user_idx)).unbind()
    _module().posterior_scores(
        user_draws=_array("user_draws", user_draws, torch.float32),
        item_draws=_array("item_draws", item_draws, torch.float32),
        mean=global_mean,
        low=scale[0],
        high=scale[1],
        user_idx=_array("user_idx", user_idx, torch.int64),
        item_idx=_array("item_idx", item_idx, torch.int64),
        n_threads=torch.get_num_threads(),
        means=means.numpy(),
        deviations=deviations.numpy(),
    )
    return means, deviations


def top_items(
    user_embeddings: Tensor,  # [U, D]
    item_embeddings: Tensor,  # [M, D]
    item_bias: Tensor | None,  # [M]
    n: int,
    *,
    exclude_offsets: Tensor | None = None,  # [U + 1]
    exclude_items: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # [U, min(n, M)], [U, min(n, M)]
    """The n best items of each user, float32; see `mfdmc_fast.ops.functional.top_items` for the contract."""
    width = min(n, len(item_embeddings))
    found = torch.empty(len(user_embeddings), width, dtype=torch.int64)
    scores = torch.empty(len(user_embeddings), width)

    def optional(name: str, tensor: Tensor | None, dtype: torch.dtype) -> Any:
        return None if tensor is None else _array(name, tensor.contiguous(), dtype)

    _module().top_items(
        _array("user_embeddings", user_embeddings.contiguous(), torch.float32),
        _array("item_embeddings", item_embeddings.contiguous(), torch.float32),
        optional("item_bias", item_bias, torch.float32),
        optional("exclude_offsets", exclude_offsets, torch.int64),
        optional("exclude_items", exclude_items, torch.int64),
        torch.get_num_threads(),
        found.numpy(),
        scores.numpy(),
    )
    return found, scores


def fold_in(
    side: SideTensors,
    partner_embeddings: Tensor,  # [M, D]
    partner_bias: Tensor | None,  # [M]
    global_mean: float,
    own: RowRatings,
    prior: RowPrior,
    *,
    combine: Combine,
    weights: LossWeights,
    rates: Sequence[float],
    betas: tuple[float, float],
    epsilon: float,
) -> tuple[Tensor, Tensor | None]:  # [R, S], [R]
    """Rows solved with all else fixed, float32; see `mfdmc_fast.ops.functional.fold_in` for the contract."""
    logits = side.assignment_logits.detach().contiguous().clone()
    bias = None if partner_bias is None else torch.empty(len(logits))
    _module().fold_in(
        logits=_array("assignment_logits", logits, torch.float32),
        bias=None if bias is None else bias.numpy(),
        centers=_array("centers", side.centers.contiguous(), torch.float32),
        n_clusters=side.n_clusters,
        embeddings=_array("partner_embeddings", partner_embeddings.contiguous(), torch.float32),
        partner_bias=None if partner_bias is None else _array("partner_bias", partner_bias.contiguous(), torch.float32),
        global_mean=global_mean,
        offsets=_array("offsets", own.offsets.contiguous(), torch.int64),
        partners=_array("partners", own.partners.contiguous(), torch.int32),
        ratings=_array("ratings", own.ratings.contiguous(), torch.float32),
        prior_means=_array("prior.means", prior.means.contiguous(), torch.float32),
        prior_precision=_array("prior.precision", prior.precision.contiguous(), torch.float32),
        sum_views=combine == "sum",
        proximity=weights.proximity,
        entropy=weights.entropy,
        rates=list(rates),
        beta1=betas[0],
        beta2=betas[1],
        epsilon=epsilon,
        n_threads=torch.get_num_threads(),
        kernels=environment.cpu_kernels(),
    )
    return logits, bias


def cluster_usage(side: SideTensors, among: Tensor) -> Tensor:  # [S]
    """Mean assignment weights; see `mfdmc_fast.ops.functional.cluster_usage` for the contract."""
    usage = _module().cluster_usage(
        side=side_state(SideParameters.of(side)),
        among=_array("among", among.contiguous(), torch.bool),
        n_threads=torch.get_num_threads(),
        kernels=environment.cpu_kernels(),
    )
    return torch.tensor(usage, dtype=torch.float64)


@dataclass(frozen=True)
class SideParameters:
    """The trainable tensors of one side of MFDMC or FunkMF.

    Attributes:
        table: [n, S] assignment logits, or [n, n_factors] factors.
        bias: [n] or None.
        centers: [S, d], or None for FunkMF.
        n_clusters: active clusters of each view; empty for FunkMF.
        l2_scale: [n] or None; not trained.
    """

    table: Tensor
    bias: Tensor | None
    centers: Tensor | None
    n_clusters: tuple[int, ...]
    l2_scale: Tensor | None = None

    @classmethod
    def of(cls, side: SideTensors | FactorTensors) -> SideParameters:
        """From the argument of an op."""
        if isinstance(side, FactorTensors):
            return cls(side.factors, side.bias, None, (), side.l2_scale)
        return cls(side.assignment_logits, side.bias, side.centers, side.n_clusters, side.l2_scale)

    def tensors(self) -> dict[str, Tensor]:
        """Those that are there and trained, by name."""
        named = {"table": self.table, "bias": self.bias, "centers": self.centers}
        return {name: tensor for name, tensor in named.items() if tensor is not None}


def side_state(side: SideParameters, state: Mapping[str, Mapping[str, Tensor]] | None = None) -> Any:
    """The compiled module's handle of a side: parameters and, for training, their optimizer state. Memory is shared.

    Args:
        side: float32 on the CPU, contiguous.
        state: for each name in `side.tensors()`, for Adam its `exp_avg` and `exp_avg_sq`, and for the table also
            `next_step`, [n] int32; for row-wise AdaGrad its `row_sum`.
    """
    state = state or {}

    def kept(name: str, key: str) -> Any:
        tensor = state.get(name, {}).get(key)
        return None if tensor is None else _array(f"{name}'s {key}", tensor, tensor.dtype)

    arrays = {name: _array(name, tensor, torch.float32) for name, tensor in side.tensors().items()}
    return _module().SideState(
        arrays["table"],
        arrays.get("bias"),
        arrays.get("centers"),
        list(side.n_clusters),
        table_m=kept("table", "exp_avg"),
        table_v=kept("table", "exp_avg_sq"),
        bias_m=kept("bias", "exp_avg"),
        bias_v=kept("bias", "exp_avg_sq"),
        centers_m=kept("centers", "exp_avg"),
        centers_v=kept("centers", "exp_avg_sq"),
        next_step=kept("table", "next_step"),
        table_sum=kept("table", "row_sum"),
        bias_sum=kept("bias", "row_sum"),
        centers_sum=kept("centers", "row_sum"),
        l2_scale=None if side.l2_scale is None else _array("l2_scale", side.l2_scale, torch.float32),
    )


def loss_options(weights: LossWeights, *, spread_margin: float, global_mean: float, combine: Combine) -> Any:
    """The compiled module's record of what is constant over an epoch."""
    return _module().LossOptions(
        **weights._asdict(), spread_margin=spread_margin, global_mean=global_mean, sum_views=combine == "sum"
    )


def adam_schedule(rates: Mapping[str, npt.NDArray[np.float64]], *, betas: tuple[float, float], epsilon: float) -> Any:
    """Adam's constants for every step of a run.

    Args:
        rates: learning rates [steps] of `assignment_logits` or `factors`, and of `centers` and `biases` if there are.
    """
    step = np.arange(1, len(next(iter(rates.values()))) + 1)
    return _module().Schedule(
        optimizer="adam",
        **_step_sizes(rates, 1 - np.power(betas[0], step, dtype=np.float64)),
        inverse_root=(1 / np.sqrt(1 - betas[1] ** step)).astype(np.float32),
        beta1=betas[0],
        beta2=betas[1],
        epsilon=epsilon,
    )


def adagrad_schedule(rates: Mapping[str, npt.NDArray[np.float64]], *, epsilon: float) -> Any:
    """The same for row-wise AdaGrad."""
    ones = np.ones(len(next(iter(rates.values()))))
    return _module().Schedule(
        optimizer="adagrad",
        **_step_sizes(rates, ones),
        inverse_root=ones.astype(np.float32),
        beta1=0.0,
        beta2=0.0,
        epsilon=epsilon,
    )


def _step_sizes(
    rates: Mapping[str, npt.NDArray[np.float64]], divisor: npt.NDArray[np.float64]
) -> dict[str, npt.NDArray[np.float32]]:
    names = {"logit_step": "factors" if "factors" in rates else "assignment_logits"}
    names |= {"bias_step": "biases", "center_step": "centers"}
    with np.errstate(over="ignore"):  # an absurd rate becomes infinite and is reported when the loss is
        return {
            step: (rates.get(name, np.zeros(len(divisor))) / divisor).astype(np.float32) for step, name in names.items()
        }


@dataclass(frozen=True)
class Share:
    """What one of several processes has of the training; see `csrc/cpu/exchange.hpp`.

    Attributes:
        rank, n_processes: the number of this process, and how many there are.
        first, total: number of its first rating among all in (user, item) order, and of all.
        all_to_all: takes [bytes] to send, their sizes by rank, [bytes] to fill with what all processes send, and sizes.
        rings: `rings` to be used in its place, or None.
    """

    rank: int
    n_processes: int
    first: int
    total: int
    all_to_all: Callable[[npt.NDArray[np.uint8], list[int], npt.NDArray[np.uint8], list[int]], None]
    rings: Any = None


def ring_bytes(n_processes: int, capacity: int) -> int:
    """Bytes of memory for rings of so many bytes between so many processes."""
    return int(_module().SharedRings.size(n_processes, capacity))


def rings(memory: npt.NDArray[np.uint8], capacity: int, rank: int, ends: list[int]) -> Any:
    """The compiled module's handle of rings between processes of one machine; see `csrc/cpu/shared_rings.hpp`.

    Args:
        memory: [ring_bytes] shared by all, 0 at first; kept alive.
        capacity: bytes of a ring.
        rank: of this process.
        ends: a descriptor for each process, readable when it has ended, -1 for this one; closed with the handle.
    """
    return _module().SharedRings(memory, capacity, rank, ends)


class Trainer:
    """Training on ratings in memory or in files; see `csrc/cpu/trainer.hpp`.

    Args:
        user_offsets: [n_users + 1] int64; user u has the ratings user_offsets[u] : user_offsets[u + 1].
        items: [N] int32 rows of items, ascending within a user; like `ratings` shared, not copied, where contiguous. Or
            the path of a file of these; then `ratings` is one, too.
        ratings: [N] float32.
        rating_values: [at most 256] where the file of ratings holds bytes: what they stand for.
        n_items: rows of the item side.
        n_batches: batches of an epoch, at most MAX_BATCHES.
        seed: batches are those of `mfdmc_fast.data.BatchIterator` with this seed.
        dealt_at_once: ratings copied into batches at a time, 12 bytes each; fewer cost time, as every time all are
            looked at. Results do not depend on it.
        share: where several processes train, what this one has: users and ratings are its own, items those of all, and
            the tables of items that `run` gets have the rows n_items * rank // n_processes and following. All must have
            the same `dealt_at_once` divided by the runs of n_batches ratings in which they have some.

    Raises:
        DataError: a file cannot be read or is damaged.
    """

    def __init__(
        self,
        user_offsets: npt.NDArray[Any],
        items: npt.NDArray[Any] | str,
        ratings: npt.NDArray[Any] | str,
        rating_values: npt.NDArray[Any] | None = None,
        *,
        n_items: int,
        n_batches: int,
        seed: int,
        dealt_at_once: int = 1 << 24,
        share: Share | None = None,
    ) -> None:
        if isinstance(items, str):
            values = [] if rating_values is None else rating_values.tolist()
            columns = {"items": items, "ratings": ratings, "rating_values": values}
        else:
            columns = {
                "items": np.ascontiguousarray(items, dtype=np.int32),
                "ratings": np.ascontiguousarray(ratings, dtype=np.float32),
            }
        with _data_errors():
            self._trainer = _module().Trainer(
                user_offsets=np.ascontiguousarray(user_offsets, dtype=np.int64),
                **columns,
                n_items=n_items,
                n_batches=n_batches,
                seed=seed,
                dealt_at_once=dealt_at_once,
                share=None if share is None else _module().Share(**vars(share)),
                n_threads=torch.get_num_threads(),
                kernels=environment.cpu_kernels(),
            )

    def start_epoch(self, epoch: int) -> None:
        """Deal the ratings into the batches of an epoch."""
        self._trainer.start_epoch(epoch)

    def dealt(
        self, batch: int, first: int, last: int
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """Users, items and ratings that runs [first, last) give to a batch, for tests: only these runs are looked at.

        The user is -1 where the last run has no rating for the batch; then item and rating say nothing.
        """
        with _data_errors():
            users, items, ratings = self._trainer.dealt(batch=batch, first=first, last=last)
        return users, items, ratings

    def run(
        self, first: int, last: int, user: Any, item: Any, options: Any, schedule: Any, step: int
    ) -> tuple[npt.NDArray[np.float64], int, bool]:
        """Steps on batches [first, last), the first of them being number `step` of the run.

        Returns:
            Sums of the loss terms over the ratings of the epoch so far, in the order of LossTerms; the number of the
            last batch, from 1; and whether its loss was not finite, then it made no step.
        """
        with _data_errors():
            sums, done, failed = self._trainer.run(
                first=first, last=last, user=user, item=item, options=options, schedule=schedule, step=step
            )
        return np.array(sums), done, failed


@contextmanager
def _data_errors() -> Iterator[None]:
    """What is wrong with files of ratings as DataError; the messages name them."""
    try:
        yield
    except ConnectionError:
        raise  # of a process that has ended
    except OSError as error:
        raise DataError(str(error)) from error


class GibbsSampler:
    """Draws of Bayesian matrix factorization; see `functional.gibbs_sampler` for the contract and `csrc/cpu/gibbs.hpp`.

    Memory of the arguments is shared.
    """

    def __init__(
        self,
        user_offsets: npt.NDArray[np.int64],
        items: npt.NDArray[np.int32],
        ratings: npt.NDArray[np.float32],
        *,
        n_items: int,
        mean: float,
        rank: int,
        seed: int,
        implicit: bool,
        noise_degrees: float,
        user_bags: Sequence[FeatureBags],
        item_bags: Sequence[FeatureBags],
    ) -> None:
        self._shapes = (len(user_offsets) - 1, rank + 1), (n_items, rank + 1)
        self._watched: list[Any] = []
        self._sampler = _module().GibbsSampler(
            user_offsets=user_offsets,
            items=items,
            ratings=ratings,
            n_items=n_items,
            mean=mean,
            rank=rank,
            seed=seed,
            implicit=implicit,
            noise_degrees=noise_degrees,
            user_bags=[tuple(bags) for bags in user_bags],
            item_bags=[tuple(bags) for bags in item_bags],
            n_threads=torch.get_num_threads(),
            kernels=environment.cpu_kernels(),
        )

    def sweep(self) -> None:
        """Draw everything once."""
        self._sampler.sweep()

    @property
    def noise_precision(self) -> float:
        """1 / variance of a rating around its prediction, as drawn last."""
        return float(self._sampler.noise_precision)

    def rows(self, side: int) -> npt.NDArray[np.float32]:
        """[n, rank + 1] factors and bias of the users (0) or items (1), as drawn last."""
        out = np.empty(self._shapes[side], dtype=np.float32)
        self._sampler.copy_rows(side, out)
        return out

    def noise_weights(self, side: int) -> npt.NDArray[np.float32]:
        """[n] weights of the noise precision of the users' (0) or items' (1) ratings, as drawn last."""
        out = np.empty(self._shapes[side][0], dtype=np.float32)
        self._sampler.copy_weights(side, out)
        return out

    def watch(
        self,
        users: npt.NDArray[np.int32],
        items: npt.NDArray[np.int32],
        scale: tuple[float, float],
        sums: npt.NDArray[np.float32],
    ) -> None:
        """Let `add_predictions` add the predictions of P pairs, clipped to the scale, to sums [P]."""
        (n_users, _), (n_items, _) = self._shapes
        self._watched.append(
            _module().PairSums(
                users=users,
                items=items,
                n_users=n_users,
                n_items=n_items,
                low=scale[0],
                high=scale[1],
                sums=sums,
            )
        )

    def add_predictions(self) -> None:
        """Add the predictions by the last draw to the sums of all watched pairs."""
        for pairs in self._watched:
            self._sampler.add_predictions(pairs)


def catch_up(side: Any, schedule: Any, until: int) -> None:
    """Let every row make the steps it has missed, so that the tables are those of step `until`."""
    _module().catch_up(side, schedule, until, torch.get_num_threads())


def batch_loss_and_gradients(
    user: SideParameters,
    item: SideParameters,
    global_mean: float,
    user_idx: Tensor,
    item_idx: Tensor,
    ratings: Tensor,
    *,
    combine: Combine,
    weights: LossWeights,
    spread_margin: float,
) -> tuple[LossTerms, list[dict[str, Tensor]]]:
    """Loss terms of B >= 1 ratings and the gradients of `total`, in one fused computation.

    Returns:
        Terms as float32 scalars, and for each side the gradients by the names of `SideParameters.tensors()`.
    """
    gradients = [{name: torch.zeros_like(t) for name, t in side.tensors().items()} for side in (user, item)]
    places = [{name: tensor.numpy() for name, tensor in side.items()} for side in gradients]
    values = _module().batch_loss(
        user=side_state(user),
        item=side_state(item),
        user_idx=_array("user_idx", user_idx, torch.int64),
        item_idx=_array("item_idx", item_idx, torch.int64),
        ratings=_array("ratings", ratings, torch.float32),
        options=loss_options(weights, spread_margin=spread_margin, global_mean=global_mean, combine=combine),
        user_grad=places[0]["table"],
        user_bias_grad=places[0].get("bias"),
        user_centers_grad=places[0].get("centers"),
        item_grad=places[1]["table"],
        item_bias_grad=places[1].get("bias"),
        item_centers_grad=places[1].get("centers"),
        n_threads=torch.get_num_threads(),
        kernels=environment.cpu_kernels(),
    )
    return LossTerms(*torch.tensor(values, dtype=torch.float32).unbind()), gradients


def _side_arrays(name: str, side: SideTensors, dtype: torch.dtype) -> tuple[Any, Any, tuple[int, ...], Any]:
    return (
        _array(f"{name}.assignment_logits", side.assignment_logits, dtype),
        _array(f"{name}.centers", side.centers, dtype),
        side.n_clusters,
        None if side.bias is None else _array(f"{name}.bias", side.bias, dtype),
    )


def _array(name: str, tensor: Tensor, dtype: torch.dtype) -> Any:
    """The memory of a tensor of any shape as a numpy array, without a copy."""
    if tensor.device.type != "cpu":
        raise ValueError(f"{name} must be on the CPU, not on {tensor.device}")
    if tensor.dtype != dtype:
        raise TypeError(f"{name} must be {dtype}, not {tensor.dtype}")
    if not tensor.is_contiguous():
        raise ValueError(f"{name} must be contiguous")
    return tensor.detach().numpy()
