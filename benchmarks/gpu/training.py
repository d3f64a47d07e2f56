"""Whole epochs on the device beside torch: the same loss eager and compiled, and a plain matrix factorization."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.cpu_training import make_model, ml_1m, table_loss
from benchmarks.gpu.checks import device_backends
from benchmarks.gpu.kernels import random_rows
from benchmarks.gpu.session import Section, Skip, wait
from mfdmc_fast.config import FunkMFConfig, MFDMCConfig
from mfdmc_fast.data import BatchIterator, RatingsDataset
from mfdmc_fast.data.blocks import count_rows
from mfdmc_fast.data.vocabulary import Vocabulary
from mfdmc_fast.estimator import MFDMC
from mfdmc_fast.evaluate import fold_result
from mfdmc_fast.model import FunkMFModel, MFDMCModel
from mfdmc_fast.optim import make_optimizer
from mfdmc_fast.training import evaluate_dataset, fit


@dataclass(frozen=True)
class Shape:
    """Ratings to train on; `most_ms` and `aim_ms` of an epoch on an H200."""

    name: str
    n_users: int
    n_items: int
    n_ratings: int
    most_ms: float | None = None
    aim_ms: float | None = None


SHAPES = (
    Shape("Netflix", 480_000, 17_800, 99_000_000, 60, 26),
    Shape("ML-20M", 138_000, 27_000, 20_000_000, 12, 6),
    Shape("ML-1M", 6040, 3706, 1_000_000),
)
TINY = (Shape("tiny", 60, 45, 1300),)
MODEL = {"n_views": 4, "n_clusters": 10, "view_dim": 8, "prune": False, "learning_rate_schedule": "constant"}
TINY_MODEL = MODEL | {"n_views": 2, "n_clusters": 3, "view_dim": 3}
NO_AUXILIARY = dict.fromkeys(
    ("weight_spread", "weight_proximity", "weight_entropy", "weight_l2", "weight_bias_l2"), 0.0
)


def random_ratings(shape: Shape, device: torch.device) -> RatingsDataset:
    """Ratings in (user, item) order, drawn and sorted on the device; a pair may come more than once."""
    generator = torch.Generator(device).manual_seed(0)
    key = random_rows(shape.n_users, shape.n_ratings, generator) * shape.n_items
    key += random_rows(shape.n_items, shape.n_ratings, generator)
    key = key.sort().values
    users, items = (part.int().cpu().numpy() for part in (key // shape.n_items, key % shape.n_items))
    ratings = torch.randint(1, 6, (shape.n_ratings,), device=device, generator=generator).float().cpu().numpy()
    ids = (Vocabulary.from_values(np.arange(n)) for n in (shape.n_users, shape.n_items))
    return RatingsDataset(users, items, ratings, *ids)


def prepared(data: RatingsDataset, config: MFDMCConfig, device: torch.device) -> tuple[MFDMCModel, BatchIterator]:
    """A model on the device with the L2 scales that `fit` sets."""
    model = make_model(data, config).to(device)
    rows = {"user": data.user_idx, "item": data.item_idx}
    model.set_l2_scales({side: count_rows(rows[side], model.n_entities[side]) for side in rows})  # type: ignore[index]
    return model, BatchIterator(data, config.batch_size, config.seed)


def epoch_seconds(run: Callable[[int], Any], device: torch.device, epochs: int, warm_up: int) -> list[float]:
    """Seconds of single epochs after the warm-up, which compiles and records."""
    times = []
    for epoch in range(1, warm_up + epochs + 1):
        wait(device)
        start = time.perf_counter()
        run(epoch)
        wait(device)
        times.append(time.perf_counter() - start)
    return times[warm_up:]


def training(section: Section) -> None:
    """Ours first, at every size; then torch's, which takes longer; compiling last."""
    reason = device_backends("batch_loss", section.device).get("triton", "there is no backend triton")
    if reason is not None:
        section.item("training", functools.partial(_skipped, reason))
        return
    shapes = TINY if section.tiny else SHAPES
    datasets: dict[str, RatingsDataset] = {}
    ours: dict[str, float] = {}
    for shape in shapes:
        section.item(f"{shape.name}: ratings", functools.partial(_generate, section, shape, datasets), 20)
        if shape.name in datasets:
            _measure_ours(section, shape, datasets[shape.name], ours)
    _measure_small(section)
    _measure_convergence(section)
    for kind, form in (("eager", _table_step), ("plain factorization, eager", _funkmf_step)):
        for shape in shapes[::-1]:
            if shape.name in ours:
                _measure_torch(section, shape, datasets[shape.name], ours[shape.name], kind, form, compiled=False)
    for shape in shapes[::-1]:
        if shape.name in ours:
            _measure_torch(
                section, shape, datasets[shape.name], ours[shape.name], "compiled", _table_step, compiled=True
            )


def _skipped(reason: str) -> dict[str, Any]:
    raise Skip(reason)


def _generate(section: Section, shape: Shape, into: dict[str, RatingsDataset]) -> dict[str, Any]:
    into[shape.name] = random_ratings(shape, section.device)
    return {"value": shape.n_ratings / 1e6, "unit": "M ratings"}


def _measure_ours(section: Section, shape: Shape, data: RatingsDataset, ours: dict[str, float]) -> None:
    from mfdmc_fast.device_epochs import DeviceEpochs
    from mfdmc_fast.device_validation import DeviceValidation

    epochs = 1 if section.tiny else 5
    warm_up = 0 if section.tiny else 3

    def speed(validated: bool = False, dtype: torch.dtype = torch.float32, **changes: Any) -> float:
        settings = (TINY_MODEL if section.tiny else MODEL) | {"epochs": epochs + warm_up} | changes
        model, batches = prepared(data, MFDMCConfig(**settings), section.device)  # type: ignore[arg-type]
        model.to(dtype)
        runner = DeviceEpochs(model, batches)
        every_tenth = data.take(np.arange(0, len(data), 10))
        watch = DeviceValidation(model, every_tenth, (1.0, 5.0)) if validated else None

        def run(epoch: int) -> None:
            runner.run(epoch, [])
            if watch is not None:
                watch.errors()

        seconds = statistics.median(epoch_seconds(run, section.device, epochs, warm_up))
        dealing.append(statistics.median(epoch_seconds(runner._data.prepare, section.device, 3, 1)))
        return seconds

    dealing: list[float] = []

    def full() -> dict[str, Any]:
        ours[shape.name] = seconds = speed()
        row = {"m_ratings_per_s": len(data) / seconds / 1e6, "ms_of_dealing": dealing[-1] * 1e3}
        if shape.most_ms is None:
            return row | {"value": seconds * 1e3, "unit": "ms"}
        return row | section.judged(seconds * 1e3, "ms", shape.most_ms, shape.aim_ms, most=True)

    section.item(f"{shape.name}: an epoch, Adam", full, needs_seconds=10)
    if shape.name not in ours:
        return

    def compared(**changes: Any) -> dict[str, Any]:
        return {"value": speed(**changes) * 1e3, "unit": "ms", "ms_of_adam": ours[shape.name] * 1e3}

    def added() -> dict[str, Any]:
        bare = speed(**NO_AUXILIARY)
        whole = speed(validated=True)
        row = {"ms_bare": bare * 1e3, "ms_whole": whole * 1e3}
        # zero weights leave the kernels' work as it is: what the terms cost is in both
        return row | section.judged(100 * (whole / bare - 1), "% more", 25, most=True)

    section.item(f"{shape.name}: auxiliary losses and validation of a tenth", added, needs_seconds=10)
    if not section.tiny:
        section.item(f"{shape.name}: an epoch, AdaGrad", functools.partial(compared, optimizer="adagrad"), 10)
        section.item(f"{shape.name}: an epoch, bf16 tables", functools.partial(compared, dtype=torch.bfloat16), 10)


def _measure_small(section: Section) -> None:
    """100 epochs of MovieLens-100k's size: there it is launches that count."""
    from mfdmc_fast.device_epochs import DeviceEpochs

    def small() -> dict[str, Any]:
        shape = Shape("ML-100k", 943, 1682, 80_000)
        data = random_ratings(shape, section.device)
        model, batches = prepared(data, MFDMCConfig(epochs=110, prune=False), section.device)
        runner = DeviceEpochs(model, batches)
        seconds = sum(epoch_seconds(lambda epoch: runner.run(epoch, []), section.device, 100, 3))
        return section.judged(seconds, "s", 1.0, most=True)

    if not section.tiny:
        section.item("ML-100k: 100 epochs", small, needs_seconds=10)


def _measure_convergence(section: Section) -> None:
    """Test RMSE of whole fits with the defaults, on the device, on the host, and with 16-bit tables on the device."""
    if section.tiny:
        return
    train, test, source = ml_1m()
    found: dict[str, float] = {}

    def whole(device: str) -> dict[str, Any]:
        start = time.perf_counter()
        fitted = MFDMC(device=device).fit(train)
        seconds = time.perf_counter() - start
        found[device] = fold_result("test", fitted, test).rmse
        row = {"seconds_of_fit": seconds, "backend": fitted.history_.backend, "details": source}
        if device == "cpu":
            return row | {"value": found[device], "unit": "test RMSE"}
        return row | section.judged(found[device], "test RMSE", found.get("cpu", 9.0) + 0.002, most=True)

    def tables_of_16_bits() -> dict[str, Any]:
        data = RatingsDataset.from_ratings(train).sorted()
        held_out = RatingsDataset.encode(test, data.users, data.items)
        rmse = {}
        for dtype in ("float32", "bfloat16"):
            config = MFDMCConfig(device=str(section.device), backend="triton", dtype=dtype)
            model = make_model(data, config).to(section.device)
            fit(model, data)
            rmse[dtype] = evaluate_dataset(model, held_out, data.scale)["rmse"]
        difference = abs(rmse["bfloat16"] - rmse["float32"])
        return {"details": rmse} | section.judged(difference, "RMSE apart", 0.002, most=True)

    section.item("ML-1M fold 1: fit with defaults on the host", functools.partial(whole, "cpu"), 30)
    section.item("ML-1M fold 1: fit with defaults on the device", functools.partial(whole, str(section.device)), 10)
    section.item("ML-1M fold 1: bf16 tables beside float32", tables_of_16_bits, 15)


def _measure_torch(
    section: Section,
    shape: Shape,
    data: RatingsDataset,
    our_seconds: float,
    kind: str,
    form: Callable[[RatingsDataset, Section], tuple[torch.nn.Module, Callable[..., Tensor]]],
    *,
    compiled: bool,
) -> None:
    target = {"eager": 10.0, "compiled": 5.0}.get(kind)

    def measured() -> dict[str, Any]:
        if compiled and section.tiny:
            raise Skip("compiling takes longer than this test may")
        model, loss = form(data, section)
        optimizer = make_optimizer(model)  # type: ignore[arg-type]
        if compiled:
            torch.compiler.reset()
            loss = torch.compile(loss, dynamic=False)
        n_batches = BatchIterator(data, None, 0).n_batches
        size = len(data) // n_batches
        # formed once, and all of one size: only the steps are torch's to show
        batches = []
        for batch in range(n_batches):
            columns = (c[batch::n_batches][:size] for c in (data.user_idx, data.item_idx, data.ratings))
            users, items, ratings = (torch.from_numpy(c).to(section.device) for c in columns)
            batches.append((users.long(), items.long(), ratings))

        def run(epoch: int) -> None:
            for batch in batches:
                optimizer.zero_grad(set_to_none=True)
                loss(*batch).backward()
                optimizer.step()

        few = 1 if section.tiny else 3
        seconds = statistics.median(epoch_seconds(run, section.device, few, 1))
        row = {"ms": seconds * 1e3, "our_ms": our_seconds * 1e3}
        if target is None:
            return row | {"value": seconds / our_seconds, "unit": "times ours"}
        return row | section.judged(seconds / our_seconds, "times ours", target, most=False)

    section.item(f"{shape.name}: torch, {kind}", measured, needs_seconds=40 if compiled else 10)


def _table_step(data: RatingsDataset, section: Section) -> tuple[torch.nn.Module, Callable[..., Tensor]]:
    settings = TINY_MODEL if section.tiny else MODEL
    model, _ = prepared(data, MFDMCConfig(**settings), section.device)  # type: ignore[arg-type]
    return model, table_loss(model, model.loss_weights(30), counts=_counts)


def _counts(idx: Tensor, n: int) -> Tensor:
    """As `bincount`, which would wait for the device to find the largest index."""
    return torch.zeros(n, device=idx.device).scatter_add(0, idx, torch.ones_like(idx, dtype=torch.float32))


def _funkmf_step(data: RatingsDataset, section: Section) -> tuple[torch.nn.Module, Callable[..., Tensor]]:
    """A matrix factorization as one writes it in torch, with as many numbers in an embedding."""
    settings = TINY_MODEL if section.tiny else MODEL
    config = FunkMFConfig(n_factors=settings["n_views"] * settings["view_dim"], backend="reference")  # type: ignore[operator]
    model = FunkMFModel(len(data.users), len(data.items), config, float(data.ratings.mean())).to(section.device)
    assert model.user_bias is not None
    assert model.item_bias is not None

    def loss(users: Tensor, items: Tensor, ratings: Tensor) -> Tensor:
        p, q = (t.index_select(0, i) for t, i in ((model.user_factors, users), (model.item_factors, items)))
        biases = model.user_bias.index_select(0, users) + model.item_bias.index_select(0, items)  # type: ignore[union-attr]
        errors = (p * q).sum(1) + biases + model.global_mean - ratings
        return errors.square().mean() + 0.01 * (p.square().sum(1) + q.square().sum(1)).mean()

    return model, loss
