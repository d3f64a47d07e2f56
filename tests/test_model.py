"""Models: initial values, agreement with the ops, the shape of the interface, and what they refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from mfdmc_fast.config import FunkMFConfig, MFDMCConfig, weight_at
from mfdmc_fast.errors import ConfigError
from mfdmc_fast.model import SIDES, FunkMFModel, MFDMCModel, RatingModel
from mfdmc_fast.ops import functional
from mfdmc_fast.ops.types import FactorTensors, LossWeights
from mfdmc_fast.testing import both_combines

SMALL = {"n_views": 2, "n_clusters": 3, "view_dim": 4}


def _mfdmc(**settings: Any) -> MFDMCModel:
    return MFDMCModel(5, 6, MFDMCConfig(**{**SMALL, **settings}), train_mean=3.5)


def _funkmf(**settings: Any) -> FunkMFModel:
    return FunkMFModel(5, 6, FunkMFConfig(**{"n_factors": 3, **settings}), train_mean=3.5)


def _with_random_biases(model: RatingModel) -> RatingModel:
    generator = torch.Generator().manual_seed(1)
    for side in SIDES:
        bias = model.bias(side)
        if bias is not None:
            bias.copy_(torch.randn(bias.shape, generator=generator))
    return model


def _batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.tensor([0, 4, 4, 2]), torch.tensor([5, 0, 5, 5]), torch.tensor([1.0, 3.0, 5.0, 2.5])


def test_shapes_and_names_of_the_parameters() -> None:
    assert {name: tuple(p.shape) for name, p in _mfdmc().named_parameters()} == {
        "user.assignment_logits": (5, 6),
        "user.centers": (6, 4),
        "user.bias": (5,),
        "item.assignment_logits": (6, 6),
        "item.centers": (6, 4),
        "item.bias": (6,),
    }
    assert {name: tuple(p.shape) for name, p in _funkmf().named_parameters()} == {
        "user_factors": (5, 3),
        "item_factors": (6, 3),
        "user_bias": (5,),
        "item_bias": (6,),
    }


@pytest.mark.parametrize("make", [_mfdmc, _funkmf])
def test_without_biases(make: Any) -> None:
    model = make(biases=False)
    assert model.bias("user") is None
    assert model.bias("item") is None
    assert not any("bias" in name for name, _ in model.named_parameters())
    assert model.global_mean == 0.0
    assert model.train_mean == 3.5
    assert make().global_mean == 3.5


@pytest.mark.parametrize("make", [_mfdmc, _funkmf])
def test_the_seed_alone_fixes_the_initial_values(make: Any) -> None:
    global_state = torch.get_rng_state()
    first, again, other = (make(seed=seed).state_dict() for seed in (4, 4, 5))
    assert torch.equal(torch.get_rng_state(), global_state)
    for name, value in first.items():
        assert torch.equal(value, again[name])
        if "bias" not in name:
            assert not torch.equal(value, other[name])


def test_scales_of_the_initial_values() -> None:
    config = MFDMCConfig(center_scale=2.0, logit_scale=0.25)
    model = MFDMCModel(2000, 10, config)
    assert model.user.assignment_logits.std().item() == pytest.approx(0.25, rel=0.02)
    assert model.user.centers.std().item() == pytest.approx(2.0, rel=0.1)
    assert not model.user.bias.any()
    assert FunkMFModel(2000, 10, FunkMFConfig(factor_scale=0.3)).user_factors.std().item() == pytest.approx(
        0.3, rel=0.02
    )


def test_users_and_items_start_differently() -> None:
    model = _mfdmc()
    assert not torch.equal(model.user.centers, model.item.centers)


@pytest.mark.parametrize("biases", [True, False], ids=["biases", "plain"])
@pytest.mark.parametrize("make", [_mfdmc, _funkmf])
def test_scores_are_dot_products_plus_biases(make: Any, biases: bool) -> None:
    model = _with_random_biases(make(biases=biases))
    users, items, _ = _batch()
    expected = (model.embeddings("user")[users] * model.embeddings("item")[items]).sum(1) + model.global_mean
    if biases:
        expected = expected + model.bias("user")[users] + model.bias("item")[items]
    scores = model.score_pairs(users, items)
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)
    assert not scores.requires_grad


@pytest.mark.parametrize(("combine", "width"), [("concat", 8), ("sum", 4)])
def test_embeddings_by_softmax_and_centers(combine: str, width: int) -> None:
    model = _mfdmc(combine=combine)
    z = model.embeddings("item")
    assert z.shape == (6, width)
    assert not z.requires_grad
    views = [w @ c for w, c in zip(model.item.assignment_weights(), model.item.centers.detach().split(3), strict=True)]
    expected = torch.cat(views, dim=1) if combine == "concat" else torch.stack(views).sum(0)
    torch.testing.assert_close(z, expected)


def test_assignment_weights_of_each_view() -> None:
    weights = _mfdmc().user.assignment_weights()
    assert [w.shape for w in weights] == [(5, 3), (5, 3)]
    for w in weights:
        torch.testing.assert_close(w.sum(1), torch.ones(5))
        assert not w.requires_grad


@pytest.mark.parametrize("combine", both_combines())
@pytest.mark.parametrize("epoch", [1, 3, 9])
def test_mfdmc_loss_has_the_weights_of_the_epoch(epoch: int, combine: str) -> None:
    schedules = {
        "weight_spread": "0.5:0:3",
        "weight_proximity": "0:0.2:5",
        "weight_entropy": 0.3,
        "weight_l2": "0.1:0.2:2",
        "weight_bias_l2": 0.02,
    }
    model = _with_random_biases(_mfdmc(combine=combine, spread_margin=3.0, **schedules))
    weights = LossWeights(**{k.removeprefix("weight_"): weight_at(v, epoch) for k, v in schedules.items()})
    expected = functional.batch_loss(
        model.user.tensors(), model.item.tensors(), 3.5, *_batch(), combine=combine, weights=weights, spread_margin=3.0
    )
    terms = model.batch_loss(*_batch(), epoch=epoch)
    assert torch.equal(torch.stack(terms), torch.stack(expected))
    assert model.loss_weights(epoch) == weights


def test_funkmf_loss_has_the_weights_of_the_epoch() -> None:
    model = _with_random_biases(_funkmf(weight_l2="0:1:3", weight_bias_l2=0.5))
    expected = functional.funkmf_loss(
        FactorTensors(model.user_factors, model.user_bias),
        FactorTensors(model.item_factors, model.item_bias),
        3.5,
        *_batch(),
        weights=LossWeights(l2=0.5, bias_l2=0.5),
    )
    assert torch.equal(torch.stack(model.batch_loss(*_batch(), epoch=2)), torch.stack(expected))


@pytest.mark.parametrize("make", [_mfdmc, _funkmf])
def test_the_loss_reaches_every_parameter(make: Any) -> None:
    model = _with_random_biases(make())
    model.batch_loss(*_batch(), epoch=5).total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("make", [_mfdmc, _funkmf])
@pytest.mark.parametrize(("users", "items"), [([-1], [0]), ([0], [-1]), ([5], [0]), ([0], [6])], ids=str)
def test_indices_outside_the_tables_are_refused(make: Any, users: list[int], items: list[int]) -> None:
    model = make()
    with pytest.raises(IndexError):
        model.score_pairs(torch.tensor(users), torch.tensor(items))
    with pytest.raises(IndexError):
        model.batch_loss(torch.tensor(users), torch.tensor(items), torch.tensor([3.0]), epoch=1)


def test_clusters() -> None:
    model = _mfdmc()
    assert model.clusters("user") == [3, 3]
    assert set(model.prunable_sides()) == {"user", "item"}
    assert model.item.cluster_ids == ((0, 1, 2), (0, 1, 2))
    assert _funkmf().clusters("user") is None
    assert _funkmf().prunable_sides() == {}


@pytest.mark.parametrize("make", [_mfdmc, _funkmf])
def test_backend_of_the_config(make: Any) -> None:
    assert make(backend="reference").training_backend == "reference"
    with pytest.raises(ConfigError, match="unknown backend 'gpu'"):
        _ = make(backend="gpu").training_backend
    with pytest.raises(ConfigError, match="unknown backend 'gpu'"):
        make(backend="gpu").batch_loss(*_batch(), epoch=1)


def test_entities_of_each_side() -> None:
    for model in (_mfdmc(), _funkmf()):
        assert model.n_entities == {"user": 5, "item": 6}


@pytest.mark.parametrize("kind", [MFDMCModel, FunkMFModel])
def test_l2_scales_follow_the_counts(kind: type[MFDMCModel] | type[FunkMFModel]) -> None:
    counts = {"user": np.array([1, 4, 0]), "item": np.array([2, 2, 0, 1])}
    config_class = MFDMCConfig if kind is MFDMCModel else FunkMFConfig
    model = kind(3, 4, config_class(l2_count_power=0.5))  # type: ignore[arg-type]
    model.set_l2_scales(counts)
    scales = [model.native_parameters(side).l2_scale.numpy() for side in ("user", "item")]
    # c^-1/2 and times what makes the mean over 5 ratings 1: users 1 * 1 + 4 * 1/2 = 3
    np.testing.assert_allclose(scales[0], np.array([1, 0.5, 1]) * 5 / 3, rtol=1e-6)
    root = 0.5**0.5
    np.testing.assert_allclose(scales[1], np.array([root, root, 1, 1]) * 5 / (4 * root + 1), rtol=1e-6)
    assert not any("l2_scale" in name for name in model.state_dict())
    plain = kind(3, 4, config_class(l2_count_power=0.0))  # type: ignore[arg-type]
    plain.set_l2_scales(counts)
    assert plain.native_parameters("user").l2_scale is None
