"""`jaxmlp summary`: what an experiment, or a run, is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from jaxmlp import runtime
from jaxmlp.cli import Answer, flags, say
from jaxmlp.cli.experiment import parse_experiment
from jaxmlp.cli.shipped import shipped

if TYPE_CHECKING:
    from jaxmlp.config import ExperimentConfig
    from jaxmlp.data import Facts


@dataclass(frozen=True, kw_only=True)
class SummaryFlags(flags.DeviceFlags):
    """Show the layers of an experiment or a run, as Keras does, and what a step costs; nothing is trained."""


@dataclass(frozen=True, kw_only=True)
class RunSummaryFlags(flags.CodeFlags, flags.DeviceFlags):
    """Show the layers of a run, as Keras does, and what a step costs."""


def run(argv: Sequence[str]) -> Answer:
    """Show the network of an EXPERIMENT.py, with flags for its values, or of a RUN."""
    words = [word for word in argv if not word.startswith("-")]
    names_code = any(word.partition("=")[0] == "--experiment" for word in argv)
    is_experiment = any(word.endswith(".py") for word in words) or (words[:1] and words[0] in shipped())
    if names_code or (words and not is_experiment):
        chosen, (name,) = flags.parse(RunSummaryFlags(), argv, "summary", "RUN")
        runtime.configure(chosen.device)
        from jaxmlp.opening import open_run
        from jaxmlp.run.find import find_run

        run = open_run(find_run(name), chosen.experiment)
        for each in run.code_changed:
            say(f"{each}: the network may be another than the run's.")
        return show(run.config, run.facts)
    experiment, config = parse_experiment(SummaryFlags, argv, "summary")
    runtime.configure(experiment.device)
    return show(config)


def show(config: ExperimentConfig, facts: Facts | None = None) -> Answer:
    """The table, and its figures; of the examples that the config names, or of these facts."""
    from jaxmlp.network import facts_of, summary

    found = summary(config, facts or facts_of(config.data))
    print(found)
    return Answer(asdict(found) | {"layers": [layer._asdict() for layer in found.layers]})
