"""What a report tells of a run: its record, and its model's answers to all test images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxmlp import data
from jaxmlp.config import DataConfig, ExperimentConfig
from jaxmlp.errors import RunError
from jaxmlp.history import EpochRecord
from jaxmlp.inference import Evaluation, evaluate, load_model
from jaxmlp.pictures import strongest_tiles
from jaxmlp.report.scores import Calibration, calibration, worst_mistakes
from jaxmlp.run.directory import RunDirectory
from jaxmlp.run.record import CONFIG

MISTAKES = 25
TILES = 64


class Mistake(NamedTuple):
    """A wrong answer."""

    place: int
    """Of the image, in the test split, from 0."""
    image: np.ndarray[Any, Any]
    """[height, width, channels], as the split has it."""
    label: int
    """What it is."""
    top: tuple[tuple[int, float], ...]
    """The three likeliest classes with their probabilities, the answer first."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RunFacts:
    """One run, and how its model does on the test split."""

    path: Path
    name: str
    """What tells it from the report's other runs."""
    config: ExperimentConfig
    manifest: dict[str, Any]
    status: str
    epochs: list[dict[str, Any]]
    digests: list[dict[str, Any]]
    step: int
    """Updates that made the model's parameters."""
    train_examples: int
    evaluation: Evaluation
    correct: np.ndarray[Any, Any]
    """bool [examples]: which test images are answered rightly."""
    calibration: Calibration
    mistakes: tuple[Mistake, ...]
    tiles: np.ndarray[Any, Any]
    """[units, height, width, channels]: incoming weights of the first layer's units, those of largest norm first."""

    @property
    def experiment(self) -> ExperimentConfig:
        """The config without its seed: equal in runs that differ by chance alone."""
        return dataclasses.replace(self.config, seed=0)

    @property
    def data_sha256(self) -> str:
        """Of the examples; the same test images have the same."""
        return str(self.manifest["binding"]["data_sha256"])


def expand(paths: Sequence[Path]) -> list[Path]:
    """The run directories in `paths`: each a run, or a folder of runs, such as a sweep that kept its own.

    Raises:
        RunError: A folder holds neither.
    """
    return list(dict.fromkeys(run for path in paths for run in _runs_in(path)))


def _runs_in(path: Path) -> Iterable[Path]:
    # RunDirectory says what is wrong with a folder that is not there.
    if (path / CONFIG).exists() or not path.is_dir():
        return [path]
    for pattern in ("runs", "."):
        if runs := sorted(config.parent for config in (path / pattern).glob(f"*/{CONFIG}")):
            return runs
    if (path / "sweep.json").exists():
        raise RunError(f"{path} is a sweep that kept none of its runs. Sweep with --keep-runs.")
    raise RunError(f"{path} is not a run directory, and holds none. `jaxmlp runs` lists the runs.")


def gather(
    paths: Sequence[Path],
    checkpoint: str = "last",
    *,
    manual_dir: Path | None = None,
    report: Callable[[str], None],
) -> list[RunFacts]:
    """Load and score the models of runs.

    Args:
        paths: Run directories.
        checkpoint: As `load_model` takes it.
        manual_dir: As `data.load` takes it.
        report: Told what takes long.

    Raises:
        ConfigError, DataError, DiskError: As `load_model` and `data.load`.
        RunError: As `load_model`; or a run was trained on other data than is here.
    """
    return list(_gather(paths, checkpoint, manual_dir, report))


def _gather(
    paths: Sequence[Path], checkpoint: str, manual_dir: Path | None, report: Callable[[str], None]
) -> Iterator[RunFacts]:
    datasets: dict[DataConfig, data.Dataset] = {}
    for path, name in zip(paths, _names(paths), strict=True):
        run = RunDirectory.open(path, write=False)
        model = load_model(run, checkpoint)
        if run.config.data not in datasets:
            datasets[run.config.data] = data.load(run.config.data, manual_dir=manual_dir, report=report)
        dataset = datasets[run.config.data]
        if dataset.sha256 != run.manifest["binding"]["data_sha256"]:
            raise RunError(f"{path} was trained on other data: the SHA-256 of {dataset.name} differs.")
        probabilities = model.probabilities(dataset.test.images)
        labels = dataset.test.labels
        yield RunFacts(
            path=path,
            name=name,
            config=run.config,
            manifest=run.manifest,
            status=run.status,
            epochs=[EpochRecord.from_line(line)._asdict() for line in run.epochs()],
            digests=run.digests(),
            step=model.step,
            train_examples=len(dataset.train.labels),
            evaluation=evaluate(model, dataset.test),
            correct=probabilities.argmax(axis=1) == labels,
            calibration=calibration(probabilities, labels),
            mistakes=tuple(
                Mistake(index, dataset.test.images[index], int(labels[index]), _top(probabilities[index]))
                for index in worst_mistakes(probabilities, labels, MISTAKES)
            ),
            tiles=strongest_tiles(jax.device_get(model.params["Dense_0"]["kernel"]), model.image_shape, TILES),
        )


def _names(paths: Sequence[Path]) -> list[str]:
    """The folders' names, as long as each is another, else their paths."""
    names = [path.resolve().name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def _top(probabilities: np.ndarray[Any, Any]) -> tuple[tuple[int, float], ...]:
    order = np.argsort(-probabilities, stable=True)[:3]
    return tuple((int(label), float(probabilities[label])) for label in order)
