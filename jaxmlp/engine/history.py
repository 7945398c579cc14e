"""What did a run do, epoch by epoch, and what is its result?"""

from __future__ import annotations

import html
import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jaxmlp.errors import RunError, UsageError, did_you_mean
from jaxmlp.experiment.config import ExperimentConfig
from jaxmlp.run.known import wrong_fields

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from jaxmlp.data import Dataset
    from jaxmlp.train import TrainState


@dataclass(frozen=True)
class EpochRecord:
    """Figures of one epoch: a line of `metrics.jsonl`."""

    epoch: int
    """Number of the epoch, from 1."""
    steps: int
    """Number of updates from the run's start to the end of this epoch."""
    figures: Mapping[str, float | None]
    """`loss` and the metrics by name, in training mode. Validation figures have the prefix `val_`; they are None
    without a validation split."""
    learning_rate: float | None
    """Learning rate of the epoch's last update. None if the optimizer's rate is not known."""
    seconds: float
    """Seconds of the epoch's updates and evaluation."""

    def __getattr__(self, name: str) -> float | None:
        """The figure with this name; None if the epoch has no such figure."""
        if name.startswith("_"):
            raise AttributeError(name)
        return self.figures.get(name)

    def line(self) -> dict[str, Any]:
        """All figures by name, as flat JSON values."""
        head = {"epoch": self.epoch, "steps": self.steps}
        return {**head, **self.figures, "learning_rate": self.learning_rate, "seconds": self.seconds}

    @classmethod
    def from_line(cls, line: Any) -> EpochRecord:
        """The inverse of `line`.

        Raises:
            RunError: A field is missing or has another type.
        """
        named = ("epoch", "steps", "learning_rate", "seconds")
        if not isinstance(line, Mapping) or wrong_fields(line) or not {*named, "loss"} <= {*line}:
            raise RunError("a log is damaged: one of its epochs lacks a field or has a field of another type")
        if any(line[name] is None for name in ("epoch", "steps", "seconds")):
            raise RunError(f"a log is damaged: its epoch {line['epoch']} lacks a value")
        figures = {name: value for name, value in line.items() if name not in named}
        if not all(value is None or type(value) in (int, float) for value in figures.values()):
            raise RunError(f"a log is damaged: its epoch {line['epoch']} has a figure that is not a number")
        return cls(line["epoch"], line["steps"], figures, line["learning_rate"], line["seconds"])


@dataclass(frozen=True, kw_only=True, eq=False)
class History:
    """Figures and last state of a run. `history["val_loss"]` is a list with one figure per epoch."""

    config: ExperimentConfig
    dataset: Dataset
    records: tuple[EpochRecord, ...]
    state: TrainState
    """The last state, as arrays on the host."""
    status: str
    """`finished`, or `interrupted` by a stop signal."""
    stopped: str | None = None
    """Why the run finished before its last epoch; None if it did not."""
    test: Mapping[str, float]
    """Loss and metrics of the final parameters on the test split. Names for their moving average start with `ema_`.
    Empty if the run was interrupted."""
    params_sha256: str
    state_sha256: str
    compile_s: float
    """Seconds of tracing, compiling and loading the programs, before the first update."""
    train_s: float
    """Seconds from the first update to the end of the last epoch with its evaluation, digests and checkpoints."""
    devices: int
    processes: int

    @property
    def test_loss(self) -> float | None:
        """Loss on the test split. None if the run was interrupted."""
        return self.test.get("loss")

    @property
    def test_accuracy(self) -> float | None:
        """Accuracy on the test split. None if the run was interrupted or has no such metric."""
        return self.test.get("accuracy")

    def __getitem__(self, name: str) -> list[Any]:
        """One figure per epoch, by its name in `metrics.jsonl`.

        Raises:
            KeyError: There is no such figure; the message lists the known names.
        """
        metrics = ("loss", *(metric.name for metric in self.config.metrics))
        validated = [f"val_{each}" for each in self.config.validated]
        known = ("epoch", "steps", *metrics, *validated, "learning_rate", "seconds")
        if name not in known:
            raise KeyError(
                f"{name} is not a figure of an epoch.{did_you_mean(name, known)} The figures are {', '.join(known)}"
            )
        return [record.line().get(name) for record in self.records]

    def __repr__(self) -> str:
        figures = {"test_loss": self.test_loss, "test_accuracy": self.test_accuracy}
        values = ", ".join(f"{name} {_cell(value)}" for name, value in figures.items())
        about = f"{self.config.name}, seed {self.config.seed}: {self.status} after {len(self.records)} epochs"
        return f"History({about}{f' ({self.stopped})' if self.stopped else ''}, {values})"

    def _repr_html_(self) -> str:
        """The losses as a picture and the epochs as a table, for notebooks."""
        names = ("epoch", "loss", "accuracy", "val_loss", "val_accuracy", "seconds")
        head = "".join(f"<th>{name}</th>" for name in names)
        rows = [[getattr(record, name) for name in names] for record in self.records]
        body = "".join("<tr>" + "".join(f"<td>{_cell(value)}</td>" for value in row) + "</tr>" for row in rows)
        test = f"test loss {_cell(self.test_loss)}, test accuracy {_cell(self.test_accuracy)}"
        caption = html.escape(f"{self.config.name}, seed {self.config.seed}, {self.status}: {test}")
        table = f"<table><caption>{caption}</caption><tr>{head}</tr>{body}</table>"
        return _chart({"loss": self["loss"], "val_loss": self["val_loss"]}) + table

    def plot(self) -> Figure:
        """A figure of loss and metrics by epoch, training dashed. Save it with `history.plot().savefig("curves.png")`.

        Raises:
            UsageError: matplotlib is not installed.
        """
        try:
            from matplotlib import pyplot
        except ModuleNotFoundError:
            raise UsageError("history.plot needs matplotlib: pip install 'jaxmlp[report]'") from None
        names = ("loss", *(metric.name for metric in self.config.metrics))
        figure, axes = pyplot.subplots(1, len(names), figsize=(5 * len(names), 3.5), squeeze=False, layout="tight")
        for axis, name in zip(axes[0], names, strict=True):
            axis.plot(self["epoch"], self[name], "--", label="training")
            if any(value is not None for value in self[f"val_{name}"]):
                axis.plot(self["epoch"], self[f"val_{name}"], label="validation")
            axis.set(xlabel="epoch", ylabel=name)
            axis.legend()
        pyplot.close(figure)  # Closed, so that a notebook shows it once and no window opens.
        return figure

    def to_pandas(self) -> Any:
        """The figures as a `pandas.DataFrame` with a row per epoch.

        Raises:
            UsageError: pandas is not installed.
        """
        try:
            pandas = importlib.import_module("pandas")
        except ModuleNotFoundError:
            raise UsageError("history.to_pandas needs pandas: pip install pandas") from None
        return pandas.DataFrame([record.line() for record in self.records]).set_index("epoch")

    def result(self) -> Mapping[str, Any]:
        """The run as one JSON object: what `train --json` prints, without its folder and `total_s`.

        `stopped` is left out if the run did not stop before its last epoch.
        """
        last = self.records[-1] if self.records else None
        return {
            "status": self.status,
            **({"stopped": self.stopped} if self.stopped else {}),
            "seed": self.config.seed,
            "epochs": len(self.records),
            "steps": int(self.state.step),
            "train_loss": last and last.loss,
            "train_accuracy": last and last.accuracy,
            "val_loss": last and last.val_loss,
            "val_accuracy": last and last.val_accuracy,
            "test_loss": self.test_loss,
            "test_accuracy": self.test_accuracy,
            "metrics": self.metrics(),
            "params_sha256": self.params_sha256,
            "state_sha256": self.state_sha256,
            "compile_s": self.compile_s,
            "train_s": self.train_s,
            "devices": self.devices,
            "processes": self.processes,
        }

    def metrics(self) -> dict[str, dict[str, float | None]]:
        """The last figures of each metric, by name and then by split: `train`, `val`, `test`, and `val_NAME`."""
        last = self.records[-1].figures if self.records else {}
        names = [metric.name for metric in self.config.metrics]
        names += [name for name in self.test if name.startswith("ema_")]
        return {
            name: {
                "train": last.get(name),
                "val": last.get(f"val_{name}"),
                "test": self.test.get(name),
                **{f"val_{split}": last.get(f"val_{split}_{name}") for split in self.config.data.also},
            }
            for name in names
        }


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def _chart(curves: Mapping[str, Sequence[float | None]]) -> str:
    """Curves by epoch as an SVG in the text's colour; all but the last are dashed. Empty for fewer than two epochs."""
    known = {name: [value for value in values if value is not None] for name, values in curves.items()}
    known = {name: values for name, values in known.items() if len(values) > 1 and all(map(math.isfinite, values))}
    if not known:
        return ""
    low, high = min(map(min, known.values())), max(map(max, known.values()))
    lines, width, height = [], 420, 120
    for number, (name, values) in enumerate(known.items(), start=1):
        across, down = width / (len(values) - 1), height / ((high - low) or 1)
        points = " ".join(f"{index * across:.1f},{(high - value) * down:.1f}" for index, value in enumerate(values))
        dash = ' stroke-dasharray="5 4"' if number < len(known) else ""
        lines.append(f'<polyline points="{points}"{dash}><title>{name}</title></polyline>')
    ranges = "; ".join(f"{name} {values[0]:.4f} to {values[-1]:.4f}" for name, values in known.items())
    label = f"{ranges}, by epoch{'; loss dashed' if len(known) > 1 else ''}"
    return (
        f'<svg role="img" aria-label="{label}" viewBox="-4 -4 {width + 8} {height + 8}" width="{width}" fill="none" '
        f'stroke="currentColor" stroke-width="2">{"".join(lines)}</svg><div>{label}</div>'
    )
