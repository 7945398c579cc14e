"""`python -m jaxmlp.cli.throughput EXPERIMENT.py`: compare a sweep over seeds with the same runs one after another."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jaxmlp.cli import Answer, flags, main, say
from jaxmlp.cli.experiment import parse_experiment
from jaxmlp.experiment.fields import ranged
from jaxmlp.system import runtime


@dataclass(frozen=True, kw_only=True)
class ThroughputFlags(flags.DataFlags):
    """Train seeds as a sweep and as solo runs, in turns.

    Print the medians, and whether the digests are equal, as JSON.
    """

    lanes: int = ranged(16, "[1, 65536]")
    """Number of lanes. Their seeds are 0 to LANES - 1."""
    rounds: int = ranged(3, "[1, 1000]")
    """Number of times that both ways are measured."""
    batching: Literal["map", "vmap"] = "map"
    """How the sweep trains its lanes: one after another (map) or together (vmap)."""


def run(argv: Sequence[str]) -> Answer:
    """Compare and print."""
    chosen, config = parse_experiment(ThroughputFlags, argv, "throughput")
    runtime.configure(cpu_devices=chosen.lanes)
    from jaxmlp import data
    from jaxmlp.sweep.throughput import time_sweep_and_runs

    dataset = data.load(config.data, manual_dir=chosen.manual_dir)
    found = time_sweep_and_runs(
        config, dataset, seeds=range(chosen.lanes), rounds=chosen.rounds, batching=chosen.batching
    )
    say(json.dumps(found, indent=2))
    return Answer(found)


if __name__ == "__main__":
    sys.exit(main(["throughput", *sys.argv[1:]]))
