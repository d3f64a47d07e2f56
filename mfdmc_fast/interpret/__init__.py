"""What clusters mean, and why a rating is predicted as it is."""

from mfdmc_fast.interpret.explain import Contribution, Explanation

__all__ = ["Contribution", "Explanation"]
