"""AUC of labels from vectors that tell them, that do not, and by scikit-learn's own cross-validation."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mfdmc_fast.data import Vocabulary, read_features
from mfdmc_fast.errors import ConfigError
from mfdmc_fast.interpret import LabelTable, label_aucs, label_tables


@pytest.fixture
def table() -> LabelTable:
    """100 entities, every second `even`, all but ten `common`, six `rare`."""
    labels = {e: ["even"] * (e % 2 == 0) + ["common"] * (e >= 10) + ["rare"] * (e < 6) + ["all"] for e in range(100)}
    return label_tables(read_features(labels), Vocabulary(range(100)))[0]


def test_auc_of_vectors_that_tell_or_do_not(table: LabelTable) -> None:
    generator = np.random.default_rng(0)
    even = np.arange(100) % 2 == 0
    found = label_aucs(np.stack([even + 0.0, generator.random(100)], axis=1), table)
    assert list(found) == ["common", "even"]  # rare: too few; all: nobody without
    assert found["even"] == 1
    assert label_aucs(np.zeros((100, 2)), table)["even"] == 0.5
    noise = [label_aucs(generator.random((100, 3)), table, seed=s)["even"] for s in range(20)]
    assert np.mean(noise) == pytest.approx(0.5, abs=0.05)


def test_auc_is_scikit_learns(table: LabelTable) -> None:
    vectors = np.random.default_rng(1).normal(size=(100, 4)) + (np.arange(100) % 2)[:, None] * 0.5
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.5, max_iter=1000))
    cuts = StratifiedKFold(4, shuffle=True, random_state=7)
    has_label = table.indicator[:, table.labels.index("even")]
    expected = cross_val_score(probe, vectors, has_label, scoring="roc_auc", cv=cuts).mean()
    assert label_aucs(vectors, table, folds=4, strength=0.5, seed=7)["even"] == pytest.approx(expected, rel=1e-12)


def test_what_cannot_be_probed_is_refused(table: LabelTable) -> None:
    with pytest.raises(ConfigError, match="99 vectors for 100 labelled entities"):
        label_aucs(np.zeros((99, 2)), table)
    with pytest.raises(ConfigError, match="folds = 1"):
        label_aucs(np.zeros((100, 2)), table, folds=1)
    with pytest.raises(ConfigError, match="no label of labels has 80 entities with it and as many without"):
        label_aucs(np.zeros((100, 2)), table, folds=40)
