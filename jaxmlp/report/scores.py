"""How good are a model's predictions? Calibration, the worst mistakes, and whether two models differ."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import scipy.stats
from jaxtyping import Bool, Float, Int

BINS = 15
"""Number of bins of a calibration, as in Guo et al. 2017."""


class Bin(NamedTuple):
    """The predictions whose probability lies in (low, high]."""

    low: float
    high: float
    examples: int
    confidence: float
    """Mean probability of the predictions. For an empty bin, the middle of the bin, like `accuracy`."""
    accuracy: float


class Calibration(NamedTuple):
    """How often predictions are right, by their probability."""

    bins: tuple[Bin, ...]
    error: float
    """Expected calibration error: |accuracy - confidence|, averaged over the examples."""


def calibration(
    probabilities: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"], bins: int = BINS
) -> Calibration:
    """Calibration over bins of equal width. Source: Guo et al. 2017, equation 3."""
    confidence = probabilities.max(axis=1).astype(np.float64)
    correct = probabilities.argmax(axis=1) == labels
    edges = np.linspace(0, 1, bins + 1)
    place = np.clip(np.searchsorted(edges, confidence) - 1, 0, bins - 1)
    found = []
    for index, (low, high) in enumerate(itertools.pairwise(edges)):
        inside = place == index
        examples = int(inside.sum())
        middle = (low + high) / 2
        means = (confidence[inside].mean(), correct[inside].mean()) if examples else (middle, middle)
        found.append(Bin(float(low), float(high), examples, *map(float, means)))
    error = sum(each.examples * abs(each.accuracy - each.confidence) for each in found) / len(labels)
    return Calibration(tuple(found), error)


def worst_mistakes(
    probabilities: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"], count: int
) -> list[int]:
    """At most `count` wrongly predicted examples, by rising probability of the true class; ties in their order."""
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    order = np.argsort(probabilities[wrong, labels[wrong]], stable=True)[:count]
    return [int(index) for index in wrong[order]]


class Comparison(NamedTuple):
    """Two models on the same images."""

    only_first: int
    """Number of images that only the first model predicts right."""
    only_second: int
    p: float
    """p value of McNemar's exact test: the probability of such a difference if both models were equally good."""


def mcnemar(first: Bool[np.ndarray, " n"], second: Bool[np.ndarray, " n"]) -> Comparison:
    """McNemar's test, two-sided and exact. Are both models equally often the only one that is right?

    Args:
        first: Whether the first model predicts each image right.
        second: Whether the second model does.
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    discordant = only_first + only_second
    p = float(scipy.stats.binomtest(only_first, discordant).pvalue) if discordant else 1.0
    return Comparison(only_first, only_second, p)
