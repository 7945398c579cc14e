"""What does a report say about a run? Its record, and its model's answers to all test images.

A lane of a sweep without kept runs has only its record. So does a diverged run, which has no result.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np

from jaxmlp import data, train
from jaxmlp.engine.fitting import planned_rates
from jaxmlp.engine.history import EpochRecord
from jaxmlp.errors import RunError
from jaxmlp.experiment.config import DataConfig, ExperimentConfig
from jaxmlp.experiment.mlp import MLP
from jaxmlp.prng import Stream, root_key, stream_key
from jaxmlp.report.pictures import strongest_tiles
from jaxmlp.report.scores import Calibration, calibration, worst_mistakes
from jaxmlp.run.code import files_to_name, flags, wanted
from jaxmlp.run.opening import open_data_of, open_run
from jaxmlp.run.record import CONFIG
from jaxmlp.source.file import Changed, Code, Experiment
from jaxmlp.sweep.directory import PLAN, load, read_manifest
from jaxmlp.sweep.result import setting_name
from jaxmlp.trained.inference import Evaluation, Model, evaluate_split, likeliest, load_model, wilson_interval

MISTAKES = 25
PREVIEWED, DRAWS = 12, 4
"""Number of training images that show the augmentation, and number of draws for each."""

DatasetOf: TypeAlias = Callable[[ExperimentConfig, Path, Mapping[str, Any]], data.Dataset]
"""Loads the data of a run, from its config, folder and manifest."""


class Mistake(NamedTuple):
    """A wrong prediction."""

    place: int
    """Index of the image in the test split, from 0."""
    image: np.ndarray[Any, Any]
    """Image [height, width, channels], as in the split."""
    label: int
    """Label of the image."""
    top: tuple[tuple[int, float], ...]
    """The three likeliest classes with their probabilities, the prediction first."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """How a model does on the test split, example by example."""

    evaluation: Evaluation
    correct: np.ndarray[Any, Any] | None
    """bool [examples]: which test examples are predicted right. None if targets are numbers."""
    calibration: Calibration | None
    """Calibration of the model. None if targets are numbers."""
    mistakes: tuple[Mistake, ...]
    """The worst mistakes. Empty if targets are numbers or inputs are not images."""
    tiles: np.ndarray[Any, Any] | None
    """[units, height, width, channels]: incoming weights of the first layer's units, largest norm first.

    None for networks other than MLPs on images.
    """


@dataclass(frozen=True, kw_only=True, eq=False)
class RunFacts:
    """What is known about one run."""

    path: Path
    """Folder of the run, or of the sweep."""
    lane: bool
    """Whether this is a lane of a sweep without kept runs. Then folder and manifest are the sweep's."""
    name: str
    """Name that distinguishes the run in the report."""
    config: ExperimentConfig
    manifest: dict[str, Any]
    status: str
    epochs: list[dict[str, Any]]
    digests: list[dict[str, Any]]
    """Digests after each epoch. For a lane, only the last."""
    step: int
    """Number of updates that led to the model's parameters. For a diverged run, the updates of its whole epochs."""
    train_s: float | None
    compile_s: float | None
    train_examples: int
    test_examples: int
    test_loss: float | None
    test_accuracy: float | None
    """Test accuracy. None for a diverged run, and if targets are numbers."""
    answers: Answers | None
    """Answers of the model. None for a lane, whose model is gone, and for a diverged run."""
    code_changed: tuple[Changed, ...] = ()
    """Files of the user's own code that have changed since the run was made."""
    noun: str = "images"
    """Word for an example."""
    metrics: Mapping[str, float] = MappingProxyType({})
    """Metrics on the test split, by name, without the accuracy."""
    planned: Sequence[tuple[float, float]] = ()
    """Epochs and the schedule's rates at their ends, for a run that has not reached its last epoch."""
    augmented: np.ndarray[Any, Any] | None = None
    """[draws, images, height, width, channels]: training images unchanged, then as augmented in updates 0, 1, ...

    None without augmentation, and for inputs that are not images.
    """

    @property
    def experiment(self) -> ExperimentConfig:
        """The config without its seed. It is equal in runs that differ only by chance."""
        return dataclasses.replace(self.config, seed=0)

    @property
    def data_sha256(self) -> str:
        """SHA-256 of the examples of all splits. If it is equal, so are the test images."""
        return str((self.manifest.get("binding") or {}).get("data_sha256"))

    @property
    def correct(self) -> int | None:
        """Number of test images that are predicted right."""
        return None if self.test_accuracy is None else round(self.test_accuracy * self.test_examples)

    @property
    def ci95(self) -> tuple[float, float] | None:
        """Wilson's 95 % interval of the accuracy."""
        return None if self.correct is None else wilson_interval(self.correct, self.test_examples)


def expand(paths: Sequence[Path]) -> list[Path]:
    """The runs in `paths`.

    Each path is a run, a sweep, which stands for its kept runs if it has any, or a folder of runs.

    Raises:
        RunError: A folder holds neither runs nor a sweep.
    """
    return list(dict.fromkeys(run for path in paths for run in _runs_in(path)))


def _runs_in(path: Path) -> Iterable[Path]:
    # RunDirectory reports a folder that does not exist.
    if os.path.exists(path / CONFIG) or not os.path.isdir(path):
        return [path]
    for pattern in ("runs", "."):
        if runs := sorted(config.parent for config in (path / pattern).glob(f"*/{CONFIG}")):
            return runs
    if (path / PLAN).exists():
        return [path]
    raise RunError(f"{path} is not a run directory and contains no runs. `jaxmlp runs` lists the runs.")


def gather(
    paths: Sequence[Path],
    checkpoint: str = "last",
    *,
    experiment: Experiment = (),
    manual_dir: Path | None = None,
    report: Callable[[str], None],
) -> list[RunFacts]:
    """Everything known about runs. Models of run directories are loaded and scored, except for diverged runs.

    Args:
        paths: Run directories, and sweeps without kept runs.
        checkpoint: As in `load_model`.
        experiment: The user's own code that the runs used, as in `load_model`.
        manual_dir: As in `data.load`.
        report: Called with a line about anything that takes long.

    Raises:
        ConfigError, DataError, DiskError: As `load_model` and `data.load`.
        RunError: As `load_model`; or a run was trained on other data; or no lane of a sweep has ended.
    """
    datasets: dict[DataConfig, data.Dataset] = {}

    def dataset_of(config: ExperimentConfig, path: Path, manifest: Mapping[str, Any]) -> data.Dataset:
        loaded = datasets.get(config.data)
        found = open_data_of(path, config.data, manifest, loaded, manual_dir=manual_dir, report=report)
        return datasets.setdefault(config.data, found)

    code = Code(experiment)
    found: list[RunFacts] = []
    for path, name in zip(paths, _names(paths), strict=True):
        if (path / PLAN).exists():
            found += _lanes(path, f"{name} " if len(paths) > 1 else "", dataset_of, code)
        else:
            found.append(_run(path, name, checkpoint, dataset_of, code))
    return found


def _run(path: Path, name: str, checkpoint: str, dataset_of: DatasetOf, code: Code) -> RunFacts:
    run = open_run(path, code)
    # A checkpoint of a diverged run is not a result, because training continued from it.
    model = None if run.status == "diverged" else load_model(run, checkpoint)
    dataset = dataset_of(run.config, path, run.manifest)
    answers = _answers(model, dataset.test) if model else None
    epochs = [EpochRecord.from_line(line) for line in run.epochs()]
    result = run.manifest["result"] or {}
    return RunFacts(
        path=path,
        lane=False,
        name=name,
        config=run.config,
        manifest=run.manifest,
        status=run.status,
        epochs=[record.line() for record in epochs],
        digests=run.digests(),
        step=model.step if model else _steps(epochs),
        train_s=result.get("train_s"),
        compile_s=result.get("compile_s"),
        train_examples=len(dataset.train.targets),
        test_examples=len(dataset.test.targets),
        test_loss=answers.evaluation.loss if answers else None,
        test_accuracy=answers.evaluation.accuracy if answers else None,
        answers=answers,
        code_changed=run.code_changed,
        noun=_noun(dataset),
        metrics=_others(answers.evaluation.metrics) if answers else {},
        augmented=preview(run.config, dataset),
        planned=_planned(run.config, dataset) if len(epochs) < run.config.epochs else (),
    )


def _planned(config: ExperimentConfig, dataset: data.Dataset) -> list[tuple[float, float]]:
    steps_per_epoch = -(-len(dataset.train.targets) // config.batch_size)
    return [((step + 1) / steps_per_epoch, rate) for step, _, rate in planned_rates(config, dataset)]


def preview(config: ExperimentConfig, dataset: data.Dataset) -> np.ndarray[Any, Any] | None:
    """Training images and draws of the augmentation, in the form of `RunFacts.augmented`."""
    if not config.augmentation or not dataset.facts.image_shape:
        return None
    on_data = config.on_data(dataset.num_classes, 1)
    shown = dataset.train.rows(slice(PREVIEWED))
    inputs, mask = train.scaled(config, jax.numpy.asarray(shown.inputs)), np.ones(len(shown.targets), np.float32)
    batch = train.Batch(inputs, jax.numpy.asarray(shown.targets), jax.numpy.asarray(mask))
    keys = [stream_key(root_key(on_data.seed), Stream.AUGMENTATION, step) for step in range(DRAWS)]
    draws = [batch, *(train.augmented(on_data, key, 0, batch) for key in keys)]
    return np.stack([np.asarray(draw.inputs) for draw in draws])


def _noun(dataset: data.Dataset) -> str:
    return "images" if dataset.facts.image_shape else "examples"


def _others(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name not in ("accuracy", "loss")}


def _answers(model: Model, test: data.Split) -> Answers:
    evaluation = evaluate_split(model, test)
    if not model.facts.classes:
        return Answers(evaluation=evaluation, correct=None, calibration=None, mistakes=(), tiles=None)
    probabilities, labels, shape = model.probabilities(test.inputs), test.labels, model.facts.image_shape
    mistakes = (
        Mistake(index, test.inputs[index], int(labels[index]), likeliest(probabilities[index], 3))
        for index in worst_mistakes(probabilities, labels, MISTAKES)
    )
    kernel = model.params["Dense_0"]["kernel"] if isinstance(model.config.model, MLP) and shape else None
    return Answers(
        evaluation=evaluation,
        correct=probabilities.argmax(axis=1) == labels,
        calibration=calibration(probabilities, labels),
        mistakes=tuple(mistakes) if shape else (),
        tiles=None if kernel is None or not shape else strongest_tiles(jax.device_get(kernel), shape),
    )


def _lanes(path: Path, prefix: str, dataset_of: DatasetOf, code: Code) -> Iterator[RunFacts]:
    plan, results = load(path, code)
    manifest = read_manifest(path)
    if not results:
        names = files_to_name(plan.config.to_dict(), manifest)
        resume = f"jaxmlp sweep --resume {shlex.quote(str(path))}{flags(names)}"
        raise RunError(f"no lane of {path} has ended yet. Continue with `{resume}`.")
    changed = code.changed(wanted(manifest)) if code.files else ()
    lanes = plan.lanes()
    for result in results:
        lane = lanes[result.lane]
        dataset = dataset_of(lane.config, path, manifest)
        setting = f"{setting_name(result.settings, short=True)}, " if result.settings else ""
        last = {"epoch": result.epoch, "params_sha256": result.params_sha256, "state_sha256": result.state_sha256}
        yield RunFacts(
            path=path,
            lane=True,
            name=f"{prefix}{setting}seed {result.seed}",
            config=lane.config,
            manifest=manifest,
            status=result.status,
            epochs=[record.line() for record in result.metrics],
            digests=[last] if result.params_sha256 else [],
            step=_steps(result.metrics),
            train_s=result.train_s,
            compile_s=None,
            train_examples=len(dataset.train.targets),
            test_examples=len(dataset.test.targets),
            test_loss=result.test_loss,
            test_accuracy=result.test_accuracy,
            answers=None,
            code_changed=changed,
            noun=_noun(dataset),
            metrics=_others(result.test),
        )


def _steps(epochs: Sequence[EpochRecord]) -> int:
    return epochs[-1].steps if epochs else 0


def _names(paths: Sequence[Path]) -> list[str]:
    """The folders' names if they are unique, else their paths."""
    names = [path.resolve().name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]
