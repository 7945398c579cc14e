"""How cost grows with batch size, width, shards, examples and lanes: time = a * size^b, fitted to the medians."""

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
"""What is timed over which size."""


def fit_power(sizes: Sequence[float], seconds: Sequence[float]) -> dict[str, float]:
    """Least squares in logarithms: seconds = factor * size^exponent, and how well that fits.

    Args:
        sizes: Three or more, all different.
        seconds: Their times.
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
    """One fit each where three sizes or more were timed: of the base in all else, float32 on one device.

    Args:
        rows: Of a suite's document.
        batch_size: Of the base.
        width: Of the base.
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
