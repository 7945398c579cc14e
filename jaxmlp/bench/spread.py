"""How times of one thing are told: median and interquartile range."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Spread(NamedTuple):
    """Of some times of the same work, in their unit."""

    median: float
    iqr: float
    """Between the quartiles, which few strays do not move."""
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of one value or more."""
        low, median, high = np.percentile(values, [25, 50, 75])
        return cls(float(median), float(high - low), len(values))
