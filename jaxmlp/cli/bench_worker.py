"""One process of `jaxmlp bench`: times the suite once. Its parent reads the answer."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jaxmlp.cli import STARTED, Answer, flags
from jaxmlp.system import runtime


@dataclass(frozen=True, kw_only=True)
class WorkerFlags(flags.DeviceFlags):
    """Time a suite in this process, as one JSON object on stdin says: arguments of `measure_once`."""

    suite: Literal["quick", "full", "exact", "fastest"] = "quick"
    """Whose programs."""


def run(argv: Sequence[str]) -> Answer:
    """Time, and answer."""
    chosen = flags.parse(WorkerFlags(), argv, "bench-worker")[0]
    asked = json.load(sys.stdin)
    runtime.configure(chosen.device, exact=chosen.suite != "fastest")
    from jaxmlp.bench import exactness, suite

    measure_once = (exactness if chosen.suite in exactness.SUITES else suite).measure_once
    return Answer(measure_once(chosen.suite, **asked, started=STARTED))
