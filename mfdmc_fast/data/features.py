"""What is known of users or items besides their ratings: labels such as genres, occupations or decades."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mfdmc_fast.data.vocabulary import Vocabulary


class Features:
    """Labels of entities, in blocks."""

    def bags(self, vocabulary: Vocabulary) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]]:
        """For each block of F labels: offsets [F + 1] int64 and the rows that have the label, int32."""
        raise NotImplementedError


def read_features(source: Any) -> Features:
    """Labels from a table."""
    raise NotImplementedError
