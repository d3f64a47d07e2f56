"""What clusters mean, how well they agree with labels, and why a rating is predicted as it is.

Names are loaded on first use, as the measures need scikit-learn and scipy, which models do not.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mfdmc_fast.interpret.alignment import (
        Alignment,
        hard_scores,
        label_alignment,
        labelwise_ami,
        mutual_information,
    )
    from mfdmc_fast.interpret.cards import Affinity, ClusterCard, ClusterCards, LabelLift
    from mfdmc_fast.interpret.enrichment import (
        ClusterLabels,
        LabelInCluster,
        benjamini_hochberg,
        cluster_labels,
        coverage,
        holm,
        lift,
        over_representation,
        purity,
    )
    from mfdmc_fast.interpret.explain import Contribution, Explanation
    from mfdmc_fast.interpret.labels import LabelTable, label_tables
    from mfdmc_fast.interpret.probes import label_aucs
    from mfdmc_fast.interpret.profile import Profile, Role, ViewProfile
    from mfdmc_fast.interpret.stability import Stability, stability_of
    from mfdmc_fast.interpret.summary import Interpretability, LabelScores, ViewScores, interpretability, measure
    from mfdmc_fast.interpret.views import consensus, k_means_clusters, normalised_entropy, redundancy

_HOMES = {
    "alignment": ("Alignment", "hard_scores", "label_alignment", "labelwise_ami", "mutual_information"),
    "cards": ("Affinity", "ClusterCard", "ClusterCards", "LabelLift"),
    "enrichment": (
        "ClusterLabels",
        "LabelInCluster",
        "benjamini_hochberg",
        "cluster_labels",
        "coverage",
        "holm",
        "lift",
        "over_representation",
        "purity",
    ),
    "explain": ("Contribution", "Explanation"),
    "labels": ("LabelTable", "label_tables"),
    "probes": ("label_aucs",),
    "profile": ("Profile", "Role", "ViewProfile"),
    "stability": ("Stability", "stability_of"),
    "summary": ("Interpretability", "LabelScores", "ViewScores", "interpretability", "measure"),
    "views": ("consensus", "k_means_clusters", "normalised_entropy", "redundancy"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Affinity",
    "Alignment",
    "ClusterCard",
    "ClusterCards",
    "ClusterLabels",
    "Contribution",
    "Explanation",
    "Interpretability",
    "LabelInCluster",
    "LabelLift",
    "LabelScores",
    "LabelTable",
    "Profile",
    "Role",
    "Stability",
    "ViewProfile",
    "ViewScores",
    "benjamini_hochberg",
    "cluster_labels",
    "consensus",
    "coverage",
    "hard_scores",
    "holm",
    "interpretability",
    "k_means_clusters",
    "label_alignment",
    "label_aucs",
    "label_tables",
    "labelwise_ami",
    "lift",
    "measure",
    "mutual_information",
    "normalised_entropy",
    "over_representation",
    "purity",
    "redundancy",
    "stability_of",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
