"""What may a sweep vary? Lists of values, and ranges to draw numbers from. Starts no JAX."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

MAX_LANES = 65_536


@dataclass(frozen=True, kw_only=True)
class Range:
    """A range to draw from: uniform between two numbers, or uniform between their logarithms."""

    low: float
    high: float
    log: bool = False

    def __str__(self) -> str:
        return f"{'log' if self.log else 'uniform'}({self.low:g},{self.high:g})"

    def draw(self, part: float) -> float:
        """The number at the fraction `part`, in [0, 1), of the range."""
        if self.log:
            return math.exp(math.log(self.low) + part * (math.log(self.high) - math.log(self.low)))
        return self.low + part * (self.high - self.low)

    def draw_whole(self, part: float) -> int:
        """The integer at the fraction `part`, in [0, 1), of the range. The ends are as likely as other integers.

        Raises:
            ValueError: There is no integer in the range.
        """
        low, high = math.ceil(self.low), math.floor(self.high)
        if low > high:
            raise ValueError(f"has no integer in {self}")
        return min(math.floor(Range(low=low, high=high + 1, log=self.log).draw(part)), high)


Batching: TypeAlias = Literal["map", "vmap"]
Choices: TypeAlias = Sequence[Any] | Range
