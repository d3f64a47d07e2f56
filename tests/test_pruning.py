"""Pruning: the usage rule, and compaction in place of logits, centers and optimizer moments."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mfdmc_fast import pruning
from mfdmc_fast.config import MFDMCConfig
from mfdmc_fast.errors import ClustersCollapsed
from mfdmc_fast.model import FunkMFConfig, FunkMFModel, MFDMCModel, Side, SideName
from mfdmc_fast.ops import functional, reference
from mfdmc_fast.optim import make_optimizer
from mfdmc_fast.pruning import ClusterPruning, PruneEvent, compact_, remove_clusters
from mfdmc_fast.testing import both_combines

N_USERS, N_ITEMS = 12, 9
MOMENTS = ("exp_avg", "exp_avg_sq")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Steps this small only wait for each other on several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_model(**settings: Any) -> MFDMCModel:
    sizes = {"n_views": 3, "n_clusters": 5, "view_dim": 2, "center_scale": 1.0, "logit_scale": 2.0}
    rates = {"learning_rate": 0.05, "learning_rate_centers": 0.05, "learning_rate_biases": 0.02}
    config = MFDMCConfig(**sizes | rates | settings)
    return MFDMCModel(N_USERS, N_ITEMS, config, train_mean=3.0)


def make_batch() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    users, items = (torch.randint(n, (60,), generator=generator) for n in (N_USERS, N_ITEMS))
    return users, items, torch.rand(60, generator=generator) * 4 + 1


def train(model: MFDMCModel, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        total = model.batch_loss(*make_batch(), epoch=40).total
        total.backward()
        optimizer.step()
        losses.append(total.item())
    return losses


def all_trained() -> dict[SideName, Tensor]:
    return {"user": torch.ones(N_USERS, dtype=torch.bool), "item": torch.ones(N_ITEMS, dtype=torch.bool)}


def set_usage(side: Side, view: int, usage: Sequence[float]) -> None:
    """Give every entity these assignment weights in a view."""
    first = sum(side.n_clusters[:view])
    with torch.no_grad():
        side.assignment_logits[:, first : first + len(usage)] = torch.tensor(usage).log()


def after_epoch(
    model: MFDMCModel,
    *,
    epoch: int = 1,
    start: int = 1,
    threshold: float = 0.1,
    min_clusters: int = 2,
    trained: dict[SideName, Tensor] | None = None,
) -> list[PruneEvent]:
    rule = ClusterPruning(start, threshold, min_clusters)
    return rule.after_epoch(epoch, model, make_optimizer(model), trained or all_trained())


def uniform_model() -> MFDMCModel:
    return make_model(logit_scale=0.0)


def test_clusters_under_the_threshold_go_lowest_first() -> None:
    model = uniform_model()
    set_usage(model.user, 1, [0.08, 0.5, 0.02, 0.35, 0.05])
    events = after_epoch(model)
    assert [(e.epoch, e.side, e.view, e.cluster) for e in events] == [(1, "user", 1, c) for c in (2, 4, 0)]
    assert [e.usage for e in events] == pytest.approx([0.02, 0.05, 0.08], rel=1e-5)
    assert model.user.cluster_ids == ((0, 1, 2, 3, 4), (1, 3), (0, 1, 2, 3, 4))
    assert model.user.n_clusters == (5, 2, 5)
    assert model.item.n_clusters == (5, 5, 5)


def test_events_are_in_order_of_side_view_and_usage() -> None:
    model = uniform_model()
    set_usage(model.item, 0, [0.05, 0.4, 0.4, 0.1, 0.05 + 1e-3])
    set_usage(model.user, 2, [0.3, 0.3, 0.02, 0.01, 0.37])
    set_usage(model.user, 0, [0.03, 0.3, 0.3, 0.3, 0.07])
    events = after_epoch(model, threshold=0.08)
    assert [(e.side, e.view, e.cluster) for e in events] == [
        ("user", 0, 0),
        ("user", 0, 4),
        ("user", 2, 3),
        ("user", 2, 2),
        ("item", 0, 0),
        ("item", 0, 4),
    ]


@pytest.mark.parametrize(("min_clusters", "left"), [(1, (4,)), (2, (0, 4)), (4, (0, 2, 3, 4)), (5, (0, 1, 2, 3, 4))])
def test_min_clusters_keeps_the_most_used(min_clusters: int, left: tuple[int, ...]) -> None:
    model = uniform_model()
    # the usage order is 1, 3, 2, 0, 4; all of them are under the threshold
    set_usage(model.user, 0, [0.25, 0.05, 0.2, 0.1, 0.4])
    after_epoch(model, threshold=0.9, min_clusters=min_clusters)
    assert model.user.cluster_ids[0] == left
    assert set(model.user.n_clusters + model.item.n_clusters) == {min_clusters}


def test_more_min_clusters_than_there_are_prune_nothing() -> None:
    model = uniform_model()
    assert after_epoch(model, threshold=0.9, min_clusters=7) == []
    assert model.user.n_clusters == (5, 5, 5)


def test_a_usage_equal_to_the_threshold_stays() -> None:
    model = uniform_model()
    set_usage(model.user, 0, [0.125, 0.125, 0.25, 0.25, 0.25])
    everyone = torch.ones(len(model.user.assignment_logits), dtype=torch.bool)
    usage = functional.cluster_usage(model.user.tensors(), everyone)[0].item()
    assert after_epoch(model, threshold=usage) == []
    assert len(after_epoch(model, threshold=usage * 1.001)) == 2


def test_only_trained_entities_count() -> None:
    model = uniform_model()
    trained = all_trained()
    trained["user"][3:] = False
    # the trained three avoid cluster 4 of view 0, the others are all in it
    with torch.no_grad():
        model.user.assignment_logits[:3, 4] = -20.0
        model.user.assignment_logits[3:, 4] = 20.0
    events = after_epoch(model, trained=trained)
    assert [(e.side, e.view, e.cluster) for e in events] == [("user", 0, 4)]
    assert events[0].usage < 1e-6
    assert model.user.assignment_logits.shape == (N_USERS, 14)  # the rows of the others shrink along


def test_counting_all_entities_would_keep_the_cluster() -> None:
    model = uniform_model()
    with torch.no_grad():
        model.user.assignment_logits[:3, 4] = -20.0
        model.user.assignment_logits[3:, 4] = 20.0
    # now the rare clusters are the other four: 3 of 12 users share them evenly
    assert len(events := after_epoch(model)) == 3
    assert {e.cluster for e in events} < {0, 1, 2, 3}
    assert 4 in model.user.cluster_ids[0]


def test_a_side_without_trained_entities_is_left_alone() -> None:
    model = uniform_model()
    set_usage(model.user, 0, [0.01, 0.3, 0.3, 0.3, 0.09])
    trained = all_trained() | {"user": torch.zeros(N_USERS, dtype=torch.bool)}
    assert after_epoch(model, trained=trained) == []


@pytest.mark.parametrize(("epoch", "pruned"), [(1, False), (3, False), (4, True), (9, True)])
def test_start_epoch(epoch: int, pruned: bool) -> None:
    model = uniform_model()
    set_usage(model.user, 0, [0.01, 0.3, 0.3, 0.3, 0.09])
    events = after_epoch(model, epoch=epoch, start=4, threshold=0.05)
    assert [e.epoch for e in events] == ([epoch] if pruned else [])
    assert model.user.n_clusters[0] == (4 if pruned else 5)


def test_threshold_0_prunes_nothing() -> None:
    model = make_model(logit_scale=100.0)
    assert after_epoch(model, threshold=0.0) == []


def test_models_without_clusters_are_left_alone() -> None:
    model = FunkMFModel(N_USERS, N_ITEMS, FunkMFConfig())
    assert ClusterPruning(1, 0.9, 1).after_epoch(5, model, make_optimizer(model), all_trained()) == []


def test_an_event_survives_json() -> None:
    event = PruneEvent(3, "item", 1, 7, 0.01)
    assert PruneEvent(**json.loads(json.dumps(event.to_dict()))) == event


def _storages(side: Side, optimizer: torch.optim.Optimizer) -> dict[str, tuple[int, int, int]]:
    """Where the numbers of a side lie: pointer, storage pointer and storage size of every compacted tensor."""
    tensors = {"logits": side.assignment_logits.data, "centers": side.centers.data}
    for name, parameter in (("logits", side.assignment_logits), ("centers", side.centers)):
        tensors |= {f"{name}.{key}": optimizer.state[parameter][key] for key in MOMENTS}
    return {
        name: (t.data_ptr(), t.untyped_storage().data_ptr(), t.untyped_storage().nbytes())
        for name, t in tensors.items()
    }


def _tables(side: Side, optimizer: torch.optim.Optimizer) -> list[tuple[Tensor, int]]:
    """The compacted tensors with the dimension of their clusters."""
    state = optimizer.state
    return [
        (side.assignment_logits.data, 1),
        (side.centers.data, 0),
        *((state[side.assignment_logits][key], 1) for key in MOMENTS),
        *((state[side.centers][key], 0) for key in MOMENTS),
    ]


REMOVED = [[1, 3], [], [4, 0, 2]]
KEPT_COLUMNS = torch.tensor([0, 2, 4, 5, 6, 7, 8, 9, 11, 13])


@pytest.mark.parametrize("rows_per_block", [1, 4, 1000], ids=lambda n: f"block-{n}")
def test_compaction_in_place(rows_per_block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "_ROWS_PER_BLOCK", rows_per_block)
    model = make_model()
    optimizer = make_optimizer(model)
    train(model, optimizer, 3)
    side = model.user
    parameters, storages = list(model.parameters()), _storages(side, optimizer)
    grouped = [p for group in optimizer.param_groups for p in group["params"]]
    expected = [table.index_select(dim, KEPT_COLUMNS) for table, dim in _tables(side, optimizer)]
    untouched = [p.detach().clone() for p in (*model.item.parameters(), side.bias)]
    steps = [optimizer.state[p]["step"].clone() for p in parameters]

    remove_clusters(side, REMOVED, optimizer)

    assert side.cluster_ids == ((0, 2, 4), (0, 1, 2, 3, 4), (1, 3))
    assert _storages(side, optimizer) == storages
    for (table, _), wanted in zip(_tables(side, optimizer), expected, strict=True):
        assert table.is_contiguous()
        assert torch.equal(table, wanted)
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert all(a is b for a, b in zip([p for g in optimizer.param_groups for p in g["params"]], grouped, strict=True))
    for tensor, before in zip((*model.item.parameters(), side.bias), untouched, strict=True):
        assert torch.equal(tensor, before)
    assert [optimizer.state[p]["step"] for p in parameters] == steps
    assert side.assignment_logits.grad is None
    assert side.centers.grad is None


@pytest.mark.parametrize("view_dim", [1, 2])
@pytest.mark.parametrize("n_items", [N_ITEMS, 15], ids=["more-clusters-than-items", "as-many"])
def test_one_number_a_row_goes_with_a_center_and_stays_with_an_entity(n_items: int, view_dim: int) -> None:
    """Row-wise AdaGrad's state [rows], also where the logits [n, S] have as many rows as the centers [S, d]."""
    config = MFDMCConfig(n_views=3, n_clusters=5, view_dim=view_dim, optimizer="adagrad")
    model = MFDMCModel(N_USERS, n_items, config, train_mean=3.0)
    optimizer = make_optimizer(model)
    train(model, optimizer, 3)
    side, state = model.item, optimizer.state
    logits_before, centers_before = (state[p]["row_sum"].clone() for p in (side.assignment_logits, side.centers))
    assert (len(logits_before), len(centers_before)) == (n_items, 15)
    storage = state[side.centers]["row_sum"].data_ptr()

    remove_clusters(side, REMOVED, optimizer)

    assert torch.equal(state[side.assignment_logits]["row_sum"], logits_before)
    assert torch.equal(state[side.centers]["row_sum"], centers_before[KEPT_COLUMNS])
    assert state[side.centers]["row_sum"].data_ptr() == storage
    train(model, optimizer, 1)
    assert (state[side.centers]["row_sum"] >= centers_before[KEPT_COLUMNS]).all()


@pytest.mark.parametrize("combine", both_combines())
def test_training_goes_on_after_pruning(combine: str) -> None:
    model = make_model(combine=combine)
    optimizer = make_optimizer(model)
    train(model, optimizer, 5)
    for side in (model.user, model.item):
        remove_clusters(side, REMOVED, optimizer)
    storages = [_storages(side, optimizer) for side in (model.user, model.item)]
    before = [p.detach().clone() for p in model.parameters()]
    losses = train(model, optimizer, 30)
    assert losses[-1] < 0.8 * losses[0]
    assert [_storages(side, optimizer) for side in (model.user, model.item)] == storages
    for parameter, old in zip(model.parameters(), before, strict=True):
        assert parameter.shape == old.shape
        assert not torch.equal(parameter, old)


@pytest.mark.parametrize("optimizer_name", ["adam", "adagrad"])
def test_training_after_pruning_equals_training_of_a_model_built_without_the_clusters(optimizer_name: str) -> None:
    model = make_model(optimizer=optimizer_name)
    optimizer = make_optimizer(model)
    train(model, optimizer, 4)
    remove_clusters(model.user, REMOVED, optimizer)
    # the same numbers in fresh tensors and a fresh optimizer that is given the state
    twin = make_model(optimizer=optimizer_name)
    twin_optimizer = make_optimizer(twin)
    train(twin, twin_optimizer, 1)
    for parameter, other in zip(model.parameters(), twin.parameters(), strict=True):
        other.data = parameter.detach().clone()
        other.grad = None
        twin_optimizer.state[other] = {k: v.clone() for k, v in optimizer.state[parameter].items()}
    twin.user.cluster_ids = model.user.cluster_ids
    assert train(model, optimizer, 5) == train(twin, twin_optimizer, 5)
    for parameter, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(parameter, other)


@pytest.mark.parametrize("combine", both_combines())
def test_predictions_are_those_of_the_softmax_renormalised_over_the_survivors(combine: str) -> None:
    model = make_model(combine=combine)
    survivors = [[k for k in range(5) if k not in gone] for gone in REMOVED]
    views = []
    for weights, centers, kept in zip(
        model.user.assignment_weights(), model.user.centers.detach().clone().split(5), survivors, strict=True
    ):
        share = weights[:, kept] / weights[:, kept].sum(1, keepdim=True)
        views.append(share @ centers[kept])
    embeddings = torch.cat(views, dim=1) if combine == "concat" else torch.stack(views).sum(0)
    users, items, _ = make_batch()
    expected = (embeddings[users] * model.embeddings("item")[items]).sum(1) + model.global_mean

    remove_clusters(model.user, REMOVED)

    torch.testing.assert_close(model.score_pairs(users, items), expected, rtol=1e-4, atol=1e-5)
    for weights in model.user.assignment_weights():
        torch.testing.assert_close(weights.sum(1), torch.ones(N_USERS))


def test_original_numbers_are_kept_through_several_prunings() -> None:
    model = uniform_model()
    optimizer = make_optimizer(model)
    rule = ClusterPruning(1, 0.1, 1)
    storage = model.user.assignment_logits.untyped_storage().data_ptr()
    found = []
    # the usage of the clusters still there, in each of three epochs
    for epoch, usage in enumerate(([0.3, 0.05, 0.3, 0.3, 0.05], [0.05, 0.5, 0.45], [0.95, 0.05]), start=1):
        set_usage(model.user, 1, usage)
        events = rule.after_epoch(epoch, model, optimizer, all_trained())
        found.append([(e.epoch, e.view, e.cluster) for e in events])
    assert found == [[(1, 1, 1), (1, 1, 4)], [(2, 1, 0)], [(3, 1, 3)]]
    assert model.user.cluster_ids == ((0, 1, 2, 3, 4), (2,), (0, 1, 2, 3, 4))
    assert model.user.assignment_logits.untyped_storage().data_ptr() == storage
    assert model.user.assignment_logits.data_ptr() == storage


def test_pruning_down_to_one_cluster_each_still_trains() -> None:
    model = make_model(n_views=2)
    optimizer = make_optimizer(model)
    train(model, optimizer, 1)
    events = ClusterPruning(1, 0.99, 1).after_epoch(1, model, optimizer, all_trained())
    assert len(events) == 2 * 2 * 4
    losses = train(model, optimizer, 20)
    assert losses[-1] < losses[0]


def test_removing_before_the_first_step_and_without_an_optimizer() -> None:
    model, alone = make_model(), make_model()
    optimizer = make_optimizer(model)
    expected = model.user.assignment_logits.detach()[:, KEPT_COLUMNS]
    remove_clusters(model.user, REMOVED, optimizer)
    remove_clusters(alone.user, REMOVED)
    assert torch.equal(model.user.assignment_logits, expected)
    assert torch.equal(alone.user.assignment_logits, expected)
    assert not optimizer.state
    train(model, optimizer, 1)


@pytest.mark.parametrize(
    "removed",
    [[[0, 1, 2, 3, 4], [], []], [[], []], [[], [], [], []]],
    ids=["a-whole-view", "too-few-views", "too-many-views"],
)
def test_a_refused_removal_changes_nothing(removed: list[list[int]]) -> None:
    model = make_model()
    before = model.user.assignment_logits.detach().clone()
    with pytest.raises(ValueError, match=r"at least one cluster|zip"):
        remove_clusters(model.user, removed)
    assert torch.equal(model.user.assignment_logits, before)
    assert model.user.n_clusters == (5, 5, 5)


@pytest.mark.parametrize("removed", [[[5], [], []], [[-1], [], []]], ids=["too-high", "negative"])
def test_positions_that_do_not_exist_are_refused(removed: list[list[int]]) -> None:
    with pytest.raises((ValueError, IndexError)):
        remove_clusters(make_model().user, removed)


@settings(max_examples=100, deadline=None)
@given(
    data=st.data(), rows=st.integers(0, 12), columns=st.integers(1, 9), dim=st.integers(0, 1), block=st.integers(1, 5)
)
def test_compact_equals_index_selection(data: st.DataObject, rows: int, columns: int, dim: int, block: int) -> None:
    size = (rows, columns)[dim]
    keep = torch.tensor(
        sorted(data.draw(st.sets(st.integers(0, size - 1)) if size else st.just(set()))), dtype=torch.int64
    )
    table = torch.arange(float(rows * columns)).view(rows, columns)
    expected = table.index_select(dim, keep)
    storage = table.untyped_storage()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "_ROWS_PER_BLOCK", block)
        compacted = compact_(table, keep, dim)
    assert torch.equal(compacted, expected)
    assert compacted.is_contiguous()
    assert compacted.untyped_storage().data_ptr() == storage.data_ptr()
    assert compacted.storage_offset() == 0
    assert storage.nbytes() == rows * columns * 4


@pytest.mark.parametrize("dim", [0, 1], ids=["rows", "columns"])
def test_compact_refuses_a_strided_table(dim: int) -> None:
    with pytest.raises(ValueError, match="only a contiguous table"):
        compact_(torch.zeros(4, 6).T, torch.tensor([0, 2]), dim)


def test_compact_works_on_leaves_that_require_gradients() -> None:
    parameter = torch.nn.Parameter(torch.arange(6.0).view(2, 3))
    compacted = compact_(parameter.data, torch.tensor([0, 2]), 1)
    assert compacted.tolist() == [[0, 2], [3, 5]]
    assert not compacted.requires_grad


def lost(side: SideName, view: int, n: int) -> list[PruneEvent]:
    return [PruneEvent(40, side, view, cluster, 0.01) for cluster in range(n)]


def test_views_that_collapse_are_told() -> None:
    config = MFDMCConfig(n_views=3, n_clusters=5, spread_margin=0.125)
    events = lost("user", 0, 2) + lost("item", 2, 3) + lost("user", 1, 3)
    with pytest.warns(ClustersCollapsed, match="item view 2, user view 1: only 2 of 5 .* spread_margin .now 0.125"):
        pruning.warn_of_collapse(events, config)
    pruning.warn_of_collapse(lost("user", 0, 2) + lost("item", 0, 2), config)
    pruning.warn_of_collapse([], MFDMCConfig(n_clusters=2, min_clusters=2))
