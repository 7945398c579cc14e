"""`jaxmlp evaluate`: how good is a run's model on all examples of a split?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxmlp.cli import Answer, flags, say
from jaxmlp.errors import CheckFailed, ConfigError
from jaxmlp.experiment.fields import ranged
from jaxmlp.system import runtime


@dataclass(frozen=True, kw_only=True)
class EvaluateFlags(flags.ModelFlags, flags.DataFlags):
    """Score a run's model on all examples: loss, accuracy with Wilson's 95 % interval, classes, confusion matrix."""

    split: str = "test"
    """Split to score: test, validation, train, or another split of the data set."""
    min_accuracy: float | None = ranged(None, "[0, 1]")
    """Exit with 3 if the accuracy is lower."""


def run(argv: Sequence[str]) -> Answer:
    """Score a RUN."""
    chosen, (name,) = flags.parse(EvaluateFlags(), argv, "evaluate", "RUN")
    runtime.configure(chosen.device)
    from jaxmlp.run.find import find_run
    from jaxmlp.run.opening import open_data, open_run
    from jaxmlp.trained.inference import evaluate_split, load_model

    run = open_run(find_run(name), chosen.experiment)
    model = load_model(run, chosen.checkpoint)
    dataset = open_data(run, manual_dir=chosen.manual_dir, report=say)
    found = evaluate_split(model, dataset.wanted(chosen.split), chosen.split)
    say(str(found))
    document = {
        "split": found.split,
        "examples": found.examples,
        "loss": found.loss,
        "accuracy": found.accuracy,
        "ci95": found.ci95 and list(found.ci95),
        "confusion": None if found.confusion is None else found.confusion.tolist(),
        "per_class": [score._asdict() for score in found.per_class],
        "metrics": dict(found.metrics),
        "step": model.step,
        "code_changed": [each._asdict() for each in run.code_changed],
    }
    if chosen.min_accuracy is None:
        return Answer(document)
    if found.accuracy is None:
        raise ConfigError("min_accuracy", "cannot be checked: the run's targets are numbers")
    if found.accuracy >= chosen.min_accuracy:
        return Answer(document)
    below = f"the accuracy {found.accuracy:.4f} is below the wanted {chosen.min_accuracy:g}"
    return Answer(document, CheckFailed.exit_code, below)
