"""How much of the labels can be read off vectors: cross-validated area under the ROC curve of a linear probe."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mfdmc_fast.errors import ConfigError
from mfdmc_fast.interpret.labels import LabelTable


def label_aucs(
    vectors: npt.NDArray[np.floating],
    table: LabelTable,
    *,
    folds: int = 5,
    strength: float = 0.1,
    seed: int = 0,
) -> dict[str, float]:
    """AUC of each label, predicted from the vectors of entities that the probe was not trained on.

    One logistic regression a label and fold on standardised columns; folds are stratified by the label and shuffled;
    the AUC of a label is the mean over its folds. 0.5: the vectors say nothing; 1: they tell who has the label.

    Args:
        vectors: [m, D] of the entities of the table: memberships side by side, one-hot clusters, embeddings.
        table: m entities with their labels. Labels with fewer than two entities with or without them for each fold are
            left out.
        folds: 2 or more.
        strength: inverse strength of the L2 penalty (C of scikit-learn): the same for all vectors to be compared.
        seed: of the folds.

    Returns:
        label → AUC in [0, 1], in the table's order.

    Raises:
        ConfigError: a wrong setting, other numbers of rows, or no label with enough entities.
    """
    if folds < 2 or not strength > 0:
        raise ConfigError(f"folds = {folds}, strength = {strength}: must be at least 2 and above 0")
    if len(vectors) != len(table):
        raise ConfigError(f"{len(vectors)} vectors for {len(table)} labelled entities; give one for each")
    points = np.asarray(vectors, dtype=np.float64)
    found = {}
    for name, has_label in zip(table.labels, table.indicator.T, strict=True):
        n_with = int(has_label.sum())
        if min(n_with, len(table) - n_with) < 2 * folds:
            continue
        aucs = []
        for train, test in StratifiedKFold(folds, shuffle=True, random_state=seed).split(points, has_label):
            probe = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))
            probe.fit(points[train], has_label[train])
            aucs.append(roc_auc_score(has_label[test], probe.decision_function(points[test])))
        found[name] = float(np.mean(aucs))
    if not found:
        raise ConfigError(
            f"no label of {table.name} has {2 * folds} entities with it and as many without; lower folds, or leave"
            " this family of labels out"
        )
    return found
