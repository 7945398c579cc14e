"""What does a trained model answer? For a history, a model, or the name of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

from jaxmlp import data
from jaxmlp.engine.history import History
from jaxmlp.errors import ConfigError
from jaxmlp.run.find import find_run
from jaxmlp.run.opening import open_data
from jaxmlp.source.file import Experiment
from jaxmlp.system import runtime
from jaxmlp.trained import inference
from jaxmlp.trained.inference import Evaluation, Model, Prediction

Trained: TypeAlias = History | Model | str | Path
"""A trained network: the `History` that `fit` returned, a `Model`, or a run: its folder, or `last`."""


def load_model(trained: Trained, checkpoint: str | int = "last", *, experiment: Experiment = ()) -> Model:
    """Load a trained model.

    Args:
        trained: History, model or run.
        checkpoint: Checkpoint of a run: `last`; `best`, by the config's `best_by`; `ema`, the last moving average; or
            the step of a stored checkpoint.
        experiment: The user's own code that the run used: the experiment's file, several files, or an
            `ExperimentConfig`. Code inside a run directory is never run.

    Raises:
        CodeError: The run used code of the user's own, which was not given.
        ConfigError: `trained` is none of these types, or the checkpoint does not exist.
        RunError: The run does not exist or is damaged.
    """
    if isinstance(trained, str | Path):
        with runtime.settings():
            return inference.load_model(find_run(str(trained)), checkpoint, experiment=experiment)
    if not isinstance(trained, History | Model):
        wanted = "what fit returned, a model, or a run's folder"
        raise ConfigError("trained", f"must be {wanted}, such as evaluate(fit(config)); got {type(trained).__name__}")
    if checkpoint != "last":
        problem = f"must be last, got {checkpoint}: a history keeps no other. Train with fit(config, out=FOLDER)"
        raise ConfigError("checkpoint", problem)
    return trained if isinstance(trained, Model) else inference.model_of(trained)


def evaluate(
    trained: Trained,
    split: str | data.Split | data.Pair = "test",
    *,
    dataset: data.Dataset | None = None,
    experiment: Experiment = (),
) -> Evaluation:
    """Loss, accuracy with its interval, confusion matrix and class scores over all examples of a split.

    Args:
        trained: History, model or run.
        split: `test`, `validation`, `train` or another split of the training data; or a pair of arrays or frames:
            examples and their targets.
        dataset: The data set of the training, if it was passed from Python. Default: the data set in the config.
        experiment: The user's own code, as in `load_model`.

    Raises:
        ConfigError, RunError: As `load_model`; or the split does not exist, or the model was trained on other data.
        DataError: The data cannot be loaded.
    """
    model = load_model(trained, experiment=experiment)
    if isinstance(split, data.Split):
        return inference.evaluate_split(model, split, "given")
    if not isinstance(split, str):
        given = list(split)
        given[:1] = [model.given(each) for each in given[:1]]
        classes = model.num_classes if model.facts.classes else None
        return inference.evaluate_split(model, data.as_split(given, classes), "given")
    if model.run:
        dataset = open_data(model.run, dataset)
    elif not (dataset := model.dataset or dataset):
        raise ConfigError("dataset", "must be given: this model has no run that names its data")
    return inference.evaluate_split(model, dataset.wanted(split), split)


def predict(trained: Trained, images: Any, top: int = 3, *, experiment: Experiment = ()) -> list[Prediction]:
    """The likeliest classes of each example, with their probabilities; or, for a regression, the predicted numbers.

    Args:
        trained: History, model or run.
        images: One image or many, as `jaxmlp.data.as_images` takes them, with pixels as in training: 0 to 255 for
            MNIST. For other inputs, many examples, as `jaxmlp.data.as_inputs` takes them.
        top: Largest number of classes per image.
        experiment: The user's own code, as in `load_model`.

    Raises:
        ConfigError, RunError: As `load_model`.
        DataError: The images have another shape, or pixels are 0 to 1 although the model divides by 255.
    """
    model = load_model(trained, experiment=experiment)
    return inference.predict(model, model.given(images), top)
