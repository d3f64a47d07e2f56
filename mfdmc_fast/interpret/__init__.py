"""What clusters mean: agreement with labels, and what views are like by themselves."""

from mfdmc_fast.interpret.alignment import Alignment, hard_scores, label_alignment, labelwise_ami, mutual_information
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
from mfdmc_fast.interpret.labels import LabelTable, label_tables
from mfdmc_fast.interpret.probes import label_aucs
from mfdmc_fast.interpret.stability import Stability, stability_of
from mfdmc_fast.interpret.summary import Interpretability, LabelScores, ViewScores, interpretability, measure
from mfdmc_fast.interpret.views import consensus, k_means_clusters, normalised_entropy, redundancy

__all__ = [
    "Alignment",
    "ClusterLabels",
    "Interpretability",
    "LabelInCluster",
    "LabelScores",
    "LabelTable",
    "Stability",
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
