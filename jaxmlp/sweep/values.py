"""What a sweep may vary: lists of values, and ranges that numbers are drawn from. Starts no JAX."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

MAX_LANES = 65_536


@dataclass(frozen=True, kw_only=True)
class Range:
    """Where `random` draws from: evenly between two numbers, or evenly between their logarithms."""

    low: float
    high: float
    log: bool = False

    def __str__(self) -> str:
        return f"{'log' if self.log else 'uniform'}({self.low:g},{self.high:g})"

    def draw(self, part: float) -> float:
        """The number that lies `part`, in [0, 1), of the way."""
        if self.log:
            return math.exp(math.log(self.low) + part * (math.log(self.high) - math.log(self.low)))
        return self.low + part * (self.high - self.low)

    def draw_whole(self, part: float) -> int:
        """The whole number that lies `part`, in [0, 1), of the way; the ends are drawn as often as the others.

        Raises:
            ValueError: No whole number is in the range.
        """
        low, high = math.ceil(self.low), math.floor(self.high)
        if low > high:
            raise ValueError(f"has no whole number in {self}")
        return min(math.floor(Range(low=low, high=high + 1, log=self.log).draw(part)), high)


Batching: TypeAlias = Literal["map", "vmap"]
Choices: TypeAlias = Sequence[Any] | Range
