"""Which arrays of a checkpoint are a model's weights, and are they those of the last epoch, or of the best?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

WEIGHTS = ("state/params/", "state/variables/")
"""Where a checkpoint has what a model is made of."""
AVERAGE = "state/controllers/ema/params/"
"""Where it has the moving average of the parameters."""
CONTROLLERS, MARK = "state/controllers/", "/restored"


def as_trained(arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The arrays of a checkpoint before the best weights took the place of the last ones; others are as they are.

    The state of the controller that restored them holds the last weights, and says so by a 1 in `restored`.
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
    """Whether the weights are those of the best epoch in place of the last one's."""
    marks = [array for name, array in arrays.items() if name.startswith(CONTROLLERS) and name.endswith(MARK)]
    return any(not mark.shape and bool(mark) for mark in marks)
