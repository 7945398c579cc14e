"""`jaxmlp summary`: what an experiment, or a run, is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from jaxmlp import runtime
from jaxmlp.cli import Answer, flags
from jaxmlp.cli.experiment import parse_experiment
from jaxmlp.cli.shipped import shipped
from jaxmlp.config import ExperimentConfig


@dataclass(frozen=True, kw_only=True)
class SummaryFlags(flags.DeviceFlags, flags.ExperimentFlags):
    """Show the layers of an experiment or a run, as Keras does, and what a step costs; nothing is trained."""


@dataclass(frozen=True, kw_only=True)
class RunSummaryFlags(flags.DeviceFlags):
    """Show the layers of a run, as Keras does, and what a step costs."""


def run(argv: Sequence[str]) -> Answer:
    """Show the network of an EXPERIMENT.py, with flags for its values, or of a RUN."""
    words = [word for word in argv if not word.startswith("-")]
    if words and words[0] not in shipped() and not any(word.endswith(".py") for word in words):
        from jaxmlp.run.directory import RunDirectory
        from jaxmlp.run.find import find_run

        chosen, (name,) = flags.parse(RunSummaryFlags(), argv, "summary", "RUN")
        config = RunDirectory.open(find_run(name), write=False).config
        device = chosen.device
    else:
        experiment = parse_experiment(SummaryFlags, argv, "summary")
        config, device = experiment.config, experiment.device
    runtime.configure(device)
    return show(config)


def show(config: ExperimentConfig) -> Answer:
    """The table, and its figures."""
    from jaxmlp.network import example_shape, summary

    found = summary(config, *example_shape(config.data))
    print(found)
    return Answer(asdict(found) | {"layers": [layer._asdict() for layer in found.layers]})
