"""Cards: lifts against hand-worked cases, names, affinities from centers, and all kinds of metadata."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
import torch

from mfdmc_fast import MFDMC, ConfigError, DataError
from mfdmc_fast.data import Vocabulary, make_planted_ratings, read_features
from mfdmc_fast.interpret import ClusterCards
from mfdmc_fast.interpret.affinity import usages
from mfdmc_fast.interpret.cards import SideLabels, label_lifts, side_labels

RATINGS = make_planted_ratings(n_users=120, n_items=90, n_ratings=5000, seed=2)


@pytest.fixture(params=["concat", "sum"], scope="module")
def model(request: pytest.FixtureRequest) -> MFDMC:
    """A fitted model with pruned clusters; not to be changed."""
    settings = {"n_views": 3, "n_clusters": 5, "epochs": 12, "prune_start": 2, "prune_threshold": 0.19, "seed": 1}
    fitted = MFDMC(combine=request.param, **settings).fit(RATINGS)
    assert fitted.history_.prune_events
    return fitted


class TestLabelLifts:
    def table(self) -> SideLabels:
        """20 entities, the first 19 described; label `a` is held by 0 to 5, label `b` by 0 to 14."""
        entities = np.array([*range(6), *range(15)], dtype=np.int64)
        described = np.arange(20) < 19
        return SideLabels(["a", "b"], entities, np.array([0] * 6 + [1] * 15, dtype=np.int64), described)

    def test_by_hand(self) -> None:
        clusters = np.ones(20, dtype=np.int64)
        clusters[[0, 1, 2, 3, 4, 19]] = 0
        (lifts, others) = label_lifts([np.eye(2)[clusters]], self.table())
        # 5 of the 5 described members hold `a`, which 6 of 19 hold: C(6, 5) / C(19, 5); `b`: C(15, 5) / C(19, 5)
        p_a, p_b = 6 / math.comb(19, 5), math.comb(15, 5) / math.comb(19, 5)
        found = lifts[0]
        assert [lift.label for lift in lifts] == ["a"]
        assert (found.held, found.share, found.base_share) == (5, 1.0, pytest.approx(6 / 19))
        assert found.lift == pytest.approx(19 / 6)
        assert found.smoothed_lift == pytest.approx(10 / (30 / 19 + 5))
        assert found.p_value == pytest.approx(p_a)
        # four tests: two labels, each held by five or more, in two clusters
        assert found.q_value == pytest.approx(4 * p_a)
        assert p_b > 0.05
        assert others == []

    def test_few_holders_and_no_labels_say_nothing(self) -> None:
        # each label five times: once in every cluster
        rare = SideLabels(["a", "b"], np.arange(10), np.repeat([0, 1], 5), np.ones(10, dtype=bool))
        assert label_lifts([np.eye(5)[np.arange(10) % 5]], rare) == [[], [], [], [], []]
        nothing = side_labels(None, Vocabulary([1, 2]))
        assert label_lifts([np.eye(2), np.ones((2, 1))], nothing) == [[], [], []]
        unknown = SideLabels(["a"], np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64), np.zeros(2, dtype=bool))
        assert label_lifts([np.eye(2)], unknown) == [[], []]

    def test_labels_of_few_are_no_tests(self) -> None:
        table = self.table()
        more = table._replace(labels=[*table.labels, "c"], entities=np.append(table.entities, 7))
        more = more._replace(label_idx=np.append(table.label_idx, 2))
        weights = np.eye(2)[(np.arange(20) >= 5).astype(np.int64)]
        assert label_lifts([weights], more) == label_lifts([weights], table)

    def test_random_labels_are_hardly_ever_found(self) -> None:
        generator = np.random.default_rng(0)
        entities, label_idx = np.nonzero(generator.random((400, 12)) < 0.3)
        table = SideLabels([f"l{k}" for k in range(12)], entities, label_idx, np.ones(400, dtype=bool))
        weights = np.eye(10)[generator.permutation(400) % 10]
        assert sum(map(len, label_lifts([weights], table))) <= 1


def planted_labels(model: MFDMC, view: int) -> dict[int, str]:
    """A genre for every item: its cluster in a view."""
    genres = [f"genre{k}" for k in model.memberships("item")[view].argmax(1)]
    return dict(zip(model.items_.ids.tolist(), genres, strict=True))


def test_planted_labels_are_found_and_name_the_cluster(model: MFDMC) -> None:
    # the view whose members are spread best over its clusters
    view = min(range(3), key=lambda v: np.bincount(model.memberships("item")[v].argmax(1)).max())
    labels = planted_labels(model, view)
    cards = model.clusters("item", items=labels)
    of_view = [card for card in cards if card.view == view]
    own = [(k, card) for k, card in enumerate(of_view) if 10 <= card.size <= 70]
    assert own
    for position, card in own:
        assert card.labels[0].label == f"genre{position}"
        assert card.labels[0].held == card.size
        assert card.labels[0].share == 1.0
        assert card.name.startswith(f"genre{position}")
    named = {(c.view, c.cluster): c.name for c in cards}
    for card in model.clusters("user", items=labels):
        assert card.labels == []
        assert all(named[a.view, a.cluster] == a.name for a in [*card.attracts, *card.repels])


def test_affinities_are_centered_products_of_centers(model: MFDMC) -> None:
    sides = model.model_.prunable_sides()
    users, items = (side.centers.detach().double().split(side.n_clusters) for side in (sides["user"], sides["item"]))
    usage = {name: [torch.from_numpy(u) for u in usages(side)] for name, side in sides.items()}
    card = model.clusters("user")[1]
    at = sides["user"].cluster_ids[card.view].index(card.cluster)
    best: dict[tuple[int, int], float] = {}
    for view in range(3) if model.combine == "sum" else [card.view]:
        gram = users[card.view] @ items[view].T
        rows, columns = gram @ usage["item"][view], usage["user"][card.view] @ gram
        centered = gram - rows[:, None] - columns[None] + usage["user"][card.view] @ rows
        best |= {(view, c): float(x) for c, x in zip(sides["item"].cluster_ids[view], centered[at], strict=True)}
    for found, sign in ((card.attracts, 1), (card.repels, -1)):
        assert found
        assert all(sign * a.value > 0 for a in found)
        expected = sorted(best.values(), key=lambda x: -sign * x)[: len(found)]
        assert [a.value for a in found] == pytest.approx(expected)
        assert [best[a.view, a.cluster] for a in found] == pytest.approx(expected)


def test_titles_and_names_without_labels(model: MFDMC) -> None:
    ids = model.items_.ids.tolist()
    table = pa.table({"item_id": ids[1:], "title": [f"<b>{k}</b>" for k in ids[1:]]})
    cards = model.clusters("item", top=100, items=table)
    titles = dict(zip(cards[0].top_ids, cards[0].top_titles, strict=True))
    assert titles[ids[0]] == str(ids[0])
    assert titles[ids[1]] == f"<b>{ids[1]}</b>"
    assert cards[0].name == f"e.g. {cards[0].top_titles[0]}"
    assert all(c.name.startswith("likes e.g. ") or not c.attracts for c in model.clusters("user", items=table))
    plain = model.clusters("item")
    assert plain[0].name == f"view 0, cluster {plain[0].cluster}"
    assert plain[0].top_titles == list(map(str, plain[0].top_ids))


def test_the_table_is_ready_for_arrow(model: MFDMC) -> None:
    cards = model.clusters("item", items=planted_labels(model, 0))
    assert isinstance(cards, ClusterCards)
    table = pa.Table.from_pylist(cards.to_table())
    assert table.num_rows == len(cards) == sum(model.model_.clusters("item") or [])
    assert table["labels"][0].as_py() == [lift.label for lift in cards[0].labels]
    assert cards[0].to_dict()["attracts"][0]["name"] == cards[0].attracts[0].name


def test_metadata_that_fits_nothing_extra_and_non_utf8(model: MFDMC, tmp_path: object) -> None:
    ids = model.items_.ids.tolist()
    path = f"{tmp_path}/items.csv"
    lines = ["item_id,title,genre", *(f"{k},Caf\xe9 {k},{'x|y' if k % 2 else 'y'}" for k in ids), "999999,extra,z"]
    with open(path, "w", encoding="latin-1") as file:
        file.write("\n".join(lines))
    assert model.clusters("item", items=path)[0].top_titles[0].startswith("Café ")
    foreign = model.clusters("item", items={"no such id": "x", "nor this": "x"})
    assert all(card.labels == [] for card in foreign)
    with pytest.raises(DataError, match="not a source of features"):
        model.clusters("item", items=5)
    with pytest.raises(ConfigError, match="must be 'user' or 'item'"):
        model.clusters("items")  # type: ignore[arg-type]


def test_a_profile_has_the_memberships_in_order(model: MFDMC) -> None:
    user = model.users_.ids[5]
    found = model.profile(user)
    weights = [view[0] for view in model.memberships("user", [user])]
    for view, w in zip(found.views, weights, strict=True):
        assert [role.weight for role in view.roles] == pytest.approx(sorted(w.tolist(), reverse=True), abs=1e-6)
        assert view.entropy == pytest.approx(-(w * np.log(w)).sum() / np.log(len(w)), abs=1e-5)
    assert found.ratings == (RATINGS.users == user).sum()
    assert f"user {user}: {found.ratings} training ratings" in str(found)
    item = model.items_.ids[5]
    assert model.profile(item, "item").ratings == (RATINGS.items == item).sum()
    assert "liked by" in str(model.profile(item, "item", users=dict.fromkeys(model.users_.ids.tolist(), "club|z")))
    assert found.to_dict()["views"][0]["roles"][0]["weight"] == found.views[0].roles[0].weight


def test_an_unknown_entity_has_no_profile(model: MFDMC) -> None:
    found = model.profile("nobody")
    assert (found.known, found.views, found.bias) == (False, [], None)
    assert str(found) == "user nobody: had no training rating, so nothing is known"


def test_names_of_numbers_have_their_column() -> None:
    source = pa.table(
        {"id": [1, 2, 3, 4], "age": [7, 7, 8, 8], "sex": ["F", "F", "M", "M"], "job": ["cook", "cook", "x", "x"]}
    )
    table = side_labels(read_features(source), Vocabulary([1, 2, 3, 4, 5]))
    assert table.labels == ["age 7", "age 8", "sex F", "sex M", "cook", "job x"]
    assert table.described.tolist() == [True] * 4 + [False]
    years = read_features(pa.table({"id": [1, 2, 3, 4], "made year": [1995, 1995, 2001, 2001]}))
    assert side_labels(years, Vocabulary([1, 2])).labels == ["from 1995", "from 2001"]
