"""What clusters mean, and why a rating is predicted as it is."""

from mfdmc_fast.interpret.cards import Affinity, ClusterCard, ClusterCards, LabelLift
from mfdmc_fast.interpret.explain import Contribution, Explanation
from mfdmc_fast.interpret.profile import Profile, Role, ViewProfile

__all__ = [
    "Affinity",
    "ClusterCard",
    "ClusterCards",
    "Contribution",
    "Explanation",
    "LabelLift",
    "Profile",
    "Role",
    "ViewProfile",
]
