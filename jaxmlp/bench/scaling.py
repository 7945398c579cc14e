"""How does cost grow with batch size, width, shards, examples and lanes? Fits time = a * size^b to the medians."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

SIZES = (
    ("step", "batch_size"),
    ("step", "width"),
    ("step", "grad_shards"),
    ("epoch", "examples"),
    ("sweep", "lanes"),
)
"""Pairs of a stage and the size over which its time is fitted."""


def fit_power(sizes: Sequence[float], seconds: Sequence[float]) -> dict[str, float]:
    """Fit seconds = factor * size^exponent by least squares of the logarithms.

    Args:
        sizes: Three or more different sizes.
        seconds: Time at each size.

    Returns:
        `exponent`, `factor`, and `largest_miss`: the largest relative error of the fit.
    """
    x, y = np.log(np.asarray(sizes, np.float64)), np.log(np.asarray(seconds, np.float64))
    exponent, intercept = np.polyfit(x, y, 1)
    misses = y - (exponent * x + intercept)
    return {
        "exponent": float(exponent),
        "factor": float(np.exp(intercept)),
        "largest_miss": float(np.expm1(np.abs(misses).max())),
    }


def fits(rows: Sequence[dict[str, Any]], batch_size: int, width: int) -> list[dict[str, Any]]:
    """Fit each pair in `SIZES` that has at least three timed sizes. All other sizes are the base's, in float32.

    Args:
        rows: Rows of a suite's document.
        batch_size: Batch size of the base.
        width: Width of the base.
    """
    found = []
    held = {"batch_size": batch_size, "width": width, "precision": "float32", "devices": 1, "grad_shards": 1}
    for what, size in SIZES:
        others = {name: value for name, value in held.items() if name != size}
        line = [r for r in rows if r["what"] == what and all(r[name] == value for name, value in others.items())]
        line.sort(key=lambda row: row[size])
        if len(line) >= 3:
            sizes, seconds = [row[size] for row in line], [row["median_s"] for row in line]
            found.append({"what": what, "size": size, "sizes": sizes, "median_s": seconds, **fit_power(sizes, seconds)})
    return found
