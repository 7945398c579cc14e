"""`experiments/speedrun.py`: seconds to a mean test accuracy, compared with another recipe."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxmlp.cli import STARTED, Answer, flags
from jaxmlp.cli.experiment import parse_experiment
from jaxmlp.errors import CheckFailed
from jaxmlp.experiment.fields import ranged
from jaxmlp.source.shipped import experiment_path
from jaxmlp.system import runtime

P_MAX = 0.05


@dataclass(frozen=True, kw_only=True)
class SpeedrunFlags(flags.DataFlags, flags.DeviceFlags):
    """Train a recipe with many seeds. Exit with 3 unless their mean test accuracy is above the target with p < 0.05."""

    seeds: int = ranged(50, "[2, 10000]")
    """Number of seeds, counted from 0."""
    verify: flags.Switch = False
    """Draw the seeds at random instead: nobody has chosen the recipe by them. They are printed."""
    target: float = ranged(0.9805, "(0, 1)")
    """Mean test accuracy to exceed."""
    out: Path | None = None
    """New folder for a run of each seed, so that `jaxmlp reproduce DIR/seed-0` repeats it. The times include the
    writing."""
    beside: str | None = None
    """Another EXPERIMENT.py to time, or the name of an experiment that ships."""
    beside_seeds: int = ranged(5, "[0, 10000]")
    """Number of seeds of the other experiment; 0 leaves it out."""


def run(argv: Sequence[str]) -> Answer:
    """Time the recipes and check the target."""
    chosen, config = parse_experiment(SpeedrunFlags, argv, "speedrun")
    from jaxmlp.source.file import load_experiment

    beside = load_experiment(experiment_path(chosen.beside)).config if chosen.beside and chosen.beside_seeds else None
    runtime.configure(chosen.device)
    from jaxmlp import data
    from jaxmlp.bench.speedrun import line, speedrun
    from jaxmlp.run.manifest import manifest

    dataset = data.load(config.data, manual_dir=chosen.manual_dir, report=print)
    seeds = random.SystemRandom().sample(range(2**32), chosen.seeds) if chosen.verify else range(chosen.seeds)
    found = speedrun(config, dataset, seeds, target=chosen.target, out=chosen.out, started=STARTED)
    document = {config.name: found, "manifest": manifest(config, dataset)}
    print(line(config.name, found))
    if beside:
        other = data.load(beside.data, manual_dir=chosen.manual_dir, report=print)
        document[beside.name] = speedrun(beside, other, range(chosen.beside_seeds), target=chosen.target)
        print(line(beside.name, document[beside.name]))
    if found["p"] < P_MAX:
        return Answer(document)
    missed = f"the mean test accuracy is not shown to be above {chosen.target}: p = {found['p']:.2g}, wanted < {P_MAX}"
    return Answer(document, CheckFailed.exit_code, missed)
