"""`jaxmlp summary`: what an experiment, or a run, is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from jaxmlp import runtime
from jaxmlp.cli import Answer, flags
from jaxmlp.cli.experiment import parse_experiment

if TYPE_CHECKING:
    from jaxmlp.config import ExperimentConfig
    from jaxmlp.data import Facts


@dataclass(frozen=True, kw_only=True)
class SummaryFlags(flags.DeviceFlags):
    """Show the layers of an experiment or a run, as Keras does, and what a step costs; nothing is trained."""


@dataclass(frozen=True, kw_only=True)
class RunSummaryFlags(flags.DeviceFlags):
    """Show the layers of a run, as Keras does, and what a step costs."""


def run(argv: Sequence[str]) -> Answer:
    """Show the network of an EXPERIMENT.py, with flags for its values, or of a RUN."""
    words = [word for word in argv if not word.startswith("-")]
    if words and not any(word.endswith(".py") for word in words):
        from jaxmlp.run.directory import RunDirectory
        from jaxmlp.run.find import find_run

        chosen, (name,) = flags.parse(RunSummaryFlags(), argv, "summary", "RUN")
        stored = RunDirectory.open(find_run(name), write=False)
        config, facts, device = stored.config, stored.facts, chosen.device
    else:
        experiment, config = parse_experiment(SummaryFlags, argv, "summary")
        facts, device = None, experiment.device
    runtime.configure(device)
    return show(config, facts)


def show(config: ExperimentConfig, facts: Facts | None = None) -> Answer:
    """The table, and its figures; by default of the data that the config names."""
    from jaxmlp.network import facts_of, summary

    found = summary(config, facts or facts_of(config.data))
    print(found)
    return Answer(asdict(found) | {"layers": [layer._asdict() for layer in found.layers]})
