"""How are times of the same work summarised? By median and interquartile range."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Spread(NamedTuple):
    """Median and spread of values, in the unit of the values."""

    median: float
    iqr: float
    """Interquartile range, which a few outliers do not change."""
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of one or more values."""
        low, median, high = np.percentile(values, [25, 50, 75])
        return cls(float(median), float(high - low), len(values))
