"""`jaxmlp summary`: what is an experiment, or a run, made of?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from jaxmlp.cli import Answer, flags, say
from jaxmlp.cli.experiment import parse_experiment
from jaxmlp.source.shipped import shipped
from jaxmlp.system import runtime

if TYPE_CHECKING:
    from jaxmlp.data import Dataset, Facts
    from jaxmlp.experiment.config import ExperimentConfig

BARS, WIDTH = 25, 40
"""Approximate number of lines in the drawing of rates, and the length of its longest bar in characters."""


@dataclass(frozen=True, kw_only=True)
class SummaryFlags(flags.DeviceFlags):
    """Show the layers of an experiment or a run, as Keras does, and the cost of a step. Nothing is trained."""

    rates: flags.Switch = False
    """Also show the schedule's learning rate over the run."""


@dataclass(frozen=True, kw_only=True)
class RunSummaryFlags(flags.CodeFlags, flags.DeviceFlags):
    """Show the layers of a run, as Keras does, and the cost of a step."""

    rates: flags.Switch = False
    """Also show the schedule's learning rate over the run."""


def run(argv: Sequence[str]) -> Answer:
    """Show the network of an EXPERIMENT.py, with flags for its values, or of a RUN."""
    words = [word for word in argv if not word.startswith("-")]
    names_code = any(word.partition("=")[0] == "--experiment" for word in argv)
    is_experiment = any(word.endswith(".py") for word in words) or (words[:1] and words[0] in shipped())
    if names_code or (words and not is_experiment):
        chosen, (name,) = flags.parse(RunSummaryFlags(), argv, "summary", "RUN")
        runtime.configure(chosen.device)
        from jaxmlp.run.find import find_run
        from jaxmlp.run.opening import open_data, open_run

        run = open_run(find_run(name), chosen.experiment)
        for each in run.code_changed:
            say(f"{each}: the network may differ from the run's.")
        answer = show(run.config, run.facts)
        return with_rates(answer, run.config, open_data(run)) if chosen.rates else answer
    experiment, config = parse_experiment(SummaryFlags, argv, "summary")
    runtime.configure(experiment.device)
    if not experiment.rates:
        return show(config)
    from jaxmlp import data

    return with_rates(show(config), config, data.load(config.data, report=say))


def with_rates(answer: Answer, config: ExperimentConfig, dataset: Dataset) -> Answer:
    """The answer with the run's learning rates, which are also drawn as bars."""
    from jaxmlp.engine.fitting import planned_rates

    rates = planned_rates(config, dataset)
    if not rates:
        say("The optimizer's learning rate is not known.")
    most = max((rate for *_, rate in rates), default=0.0) or 1.0
    for _, epoch, rate in rates[:: max(1, len(rates) // BARS)]:
        say(f"epoch {epoch:7.2f}  {rate:<12.6g} {'▇' * round(WIDTH * rate / most)}")
    if any(each.kind == "reduce_on_plateau" for each in config.controllers):
        say("These are the schedule's rates; reduce_on_plateau may lower them.")
    rows = [{"step": step, "epoch": epoch, "learning_rate": rate} for step, epoch, rate in rates]
    return answer._replace(document={**answer.document, "rates": rows})


def show(config: ExperimentConfig, facts: Facts | None = None) -> Answer:
    """The table and its figures, for the config's data set or for the given facts."""
    from jaxmlp.engine.network import facts_of, summary

    found = summary(config, facts or facts_of(config.data))
    print(found)
    return Answer(asdict(found) | {"layers": [layer._asdict() for layer in found.layers]})
