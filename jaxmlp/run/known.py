"""Which type must each field of a run's JSON files have? A file from a stranger may hold anything.

The known fields have their types wherever they are read. Other fields belong to the caller and are at most shown as
text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Final

MAX_EPOCH, MAX_STEP = 1_000_001, 10**15
SHA256 = re.compile("[0-9a-f]{64}")
CODE_FILE = re.compile(r"(?:[^./:\\\0][^/:\\\0]*/)*[^./:\\\0][^/:\\\0]*")
"""Path of a code file relative to its folder. No part of it begins with a dot."""


def _is_figure(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and abs(value) < 1e300 and math.isfinite(value))


def _is_epoch(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_EPOCH


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_STEP


def _is_sum(value: Any) -> bool:
    return value is None or (isinstance(value, str) and SHA256.fullmatch(value) is not None)


def _are_sums(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_sum, value.values()))


def is_code(value: Any) -> bool:
    """Whether the value maps names of files, none of which leads out of a folder, to hashes."""
    return isinstance(value, dict) and all(CODE_FILE.fullmatch(name) and _is_sum(each) for name, each in value.items())


def _is_reason(value: Any) -> bool:
    """Whether the value says why a run stopped, or why each lane of a sweep did."""
    return value is None or isinstance(value, str) or (isinstance(value, list) and all(map(_is_reason, value)))


_PREFIXES = ("", "train_", "val_", "test_")
_FIGURES = [f"{prefix}{name}" for prefix in _PREFIXES for name in ("loss", "accuracy")]
_FIGURES += ["learning_rate", "seconds", "epoch_s", "best_val_loss", "train_s", "compile_s"]
_SUMS = ["params_sha256", "opt_state_sha256", "state_sha256", "order_sha256", "config_sha256", "data_sha256", "sha256"]
_COUNTS = ["steps", "step", "done", "lane", "seed", "devices", "processes"]

TYPES: Final = {
    **dict.fromkeys(_FIGURES, _is_figure),
    **dict.fromkeys(_SUMS, _is_sum),
    **dict.fromkeys(_COUNTS, _is_count),
    "epoch": _is_epoch,
    "stopped": _is_reason,
    "leaves_sha256": _are_sums,
}


def wrong_fields(found: Mapping[str, Any]) -> list[str]:
    """Names of the known fields whose values have the wrong type."""
    return [name for name, value in found.items() if name in TYPES and not TYPES[name](value)]
