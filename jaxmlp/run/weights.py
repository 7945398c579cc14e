"""Which arrays of a checkpoint are a model's weights, and do they belong to the last epoch or the best?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

WEIGHTS = ("state/params/", "state/variables/")
"""Prefixes of a checkpoint's arrays that make up a model."""
AVERAGE = "state/controllers/ema/params/"
"""Prefix of a checkpoint's arrays that hold the moving average of the parameters."""
CONTROLLERS, MARK = "state/controllers/", "/restored"


def as_trained(arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The arrays of a checkpoint with the last epoch's weights back in place of restored best weights.

    The state of the controller that restored the best weights holds the last weights, and marks this by a 1 in
    `restored`. Other checkpoints are returned unchanged.
    """
    found = dict(arrays)
    for mark in (name for name in arrays if name.startswith(CONTROLLERS) and name.endswith(MARK)):
        if arrays[mark].shape or not arrays[mark]:
            continue
        kept = f"{mark.removesuffix(MARK)}/weights/"
        for name in (name for name in arrays if name.startswith(kept)):
            mine = f"state/{name.removeprefix(kept)}"
            found[mine], found[name] = arrays[name], arrays.get(mine, arrays[name])
        found[mark] = arrays[mark] * 0
    return found


def is_restored(arrays: Mapping[str, NDArray[Any]]) -> bool:
    """Whether the best epoch's weights are in place of the last epoch's."""
    marks = [array for name, array in arrays.items() if name.startswith(CONTROLLERS) and name.endswith(MARK)]
    return any(not mark.shape and bool(mark) for mark in marks)
