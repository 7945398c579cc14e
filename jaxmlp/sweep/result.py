"""What is the result of a sweep? Its lanes, and mean, standard deviation and interval over each setting's seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from jaxmlp.engine.history import EpochRecord
from jaxmlp.experiment.config import ExperimentConfig


def names_of(config: ExperimentConfig) -> list[str]:
    """The metrics that compare an experiment's lanes: accuracy first, if the experiment has it."""
    return [*sorted((metric.name for metric in config.metrics), key=lambda name: name != "accuracy"), "loss"]


@dataclass(frozen=True, kw_only=True)
class LaneResult:
    """Result of one lane: a line of `lanes.jsonl`."""

    lane: int
    """Number of the lane. Lanes are numbered setting by setting, and seed by seed within a setting."""
    seed: int
    settings: Mapping[str, Any]
    """The values that are set, by dotted path."""
    status: str
    """`finished`, or `diverged`. A diverged lane has no test figures and no digests."""
    epoch: int
    """Last epoch, or the epoch in which the lane diverged."""
    test: Mapping[str, float]
    """Loss and metrics on the test split, by name. Empty if the lane diverged."""
    params_sha256: str | None
    state_sha256: str | None
    train_s: float
    """The lane's share, in seconds, of its group's training time."""
    metrics: tuple[EpochRecord, ...]
    """Records of the lane's epochs, as in a solo run."""
    stopped: str | None = None
    """Why the lane finished before its last epoch."""

    @classmethod
    def from_line(cls, line: Mapping[str, Any]) -> LaneResult:
        """The inverse of `to_line`, for a line whose known fields have the right types.

        Raises:
            RunError, TypeError, ValueError: The line is not a lane's.
        """
        test = {name.removeprefix("test_"): value for name, value in line.items() if name.startswith("test_")}
        others = {name: value for name, value in line.items() if not name.startswith("test_")}
        metrics = tuple(map(EpochRecord.from_line, line["metrics"]))
        found = cls(**{**others, "test": {n: v for n, v in test.items() if v is not None}, "metrics": metrics})
        if found.status not in ("finished", "diverged") or None in (found.lane, found.train_s):
            raise ValueError(f"lane {found.lane} is {found.status}")
        return found

    def to_line(self) -> dict[str, Any]:
        """The lane as a line of JSON values."""
        fields = {name: value for name, value in vars(self).items() if name not in ("test", "stopped")}
        fields |= {"stopped": self.stopped} if self.stopped else {}
        test: dict[str, float | None] = {f"test_{name}": value for name, value in self.test.items()}
        test = test or {"test_loss": None}
        return {**fields, **test, "metrics": [record.line() for record in self.metrics]}

    @property
    def test_loss(self) -> float | None:
        """Loss on the test split."""
        return self.test.get("loss")

    @property
    def test_accuracy(self) -> float | None:
        """Accuracy on the test split."""
        return self.test.get("accuracy")

    def figures(self, names: Sequence[str]) -> dict[str, float | None]:
        """The lane's final figures. Those of training and validation are of the last epoch."""
        last = self.metrics[-1].figures if self.metrics else {}
        found = {f"test_{name}": self.test.get(name) for name in names}
        found |= {f"val_{name}": last.get(f"val_{name}") for name in names}
        return found | {f"train_{name}": last.get(name) for name in names}


class SeedSpread(NamedTuple):
    """SeedSpread of one figure over seeds."""

    mean: float
    std: float | None
    """Sample standard deviation, n - 1. None for a single seed, like `ci95`."""
    ci95: tuple[float, float] | None
    """Student's t interval of the mean, 95 %."""
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> SeedSpread | None:
        """The spread of these values; None if there are none."""
        if not values:
            return None
        mean, n = float(np.mean(values)), len(values)
        if n == 1:
            return cls(mean, None, None, mean, mean)
        std = float(np.std(values, ddof=1))
        half = float(special.stdtrit(n - 1, 0.975)) * std / math.sqrt(n)
        return cls(mean, std, (mean - half, mean + half), min(values), max(values))


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """The lanes of a sweep that have ended, ordered by number."""

    config: ExperimentConfig
    lanes: tuple[LaneResult, ...]
    total: int
    """Number of lanes in the whole sweep."""
    status: str
    """`finished`, or `interrupted` by a stop signal."""
    batching: str
    compile_s: float
    """Seconds of compilation in this process."""
    devices: int
    processes: int

    @property
    def train_s(self) -> float:
        """Seconds of training of all lanes together, including those before an interruption."""
        return sum(lane.train_s for lane in self.lanes)

    def summary(self) -> list[dict[str, Any]]:
        """One object per setting. `mean, std, ci95` are of the first test metric; `best` is its best lane.

        The first metric is the accuracy, or another metric if the experiment has no accuracy.
        """
        groups: dict[str, list[LaneResult]] = {}
        for lane in self.lanes:
            groups.setdefault(repr(lane.settings), []).append(lane)
        return [_summary(lanes, self.config) for lanes in groups.values()]

    def best(self) -> dict[str, Any] | None:
        """The setting with the best mean of the first metric, in validation, or else on the test split.

        Of equal settings, the first wins. A setting with more diverged lanes ranks behind a setting with fewer.
        """
        first = names_of(self.config)[0]
        for figure in (f"val_{first}", f"test_{first}"):
            found = [each for each in self.summary() if each["figures"][figure]]
            if found:
                sign = _sign(self.config, first)
                best = max(found, key=lambda each: (-each["diverged"], sign * each["figures"][figure]["mean"]))
                return {"settings": best["settings"], "by": figure, "mean": best["figures"][figure]["mean"]}
        return None

    def result(self) -> dict[str, Any]:
        """The sweep as one JSON object, as `sweep --json` prints it."""
        return {
            "status": self.status,
            "runs": [_run(lane, names_of(self.config)) for lane in self.lanes],
            "summary": self.summary(),
            "best": self.best(),
            "lanes": self.total,
            "batching": self.batching,
            "train_s": self.train_s,
            "compile_s": self.compile_s,
            "devices": self.devices,
            "processes": self.processes,
        }

    def table(self) -> str:
        """The summary for people, a line per setting."""
        first = names_of(self.config)[0]
        shown = f"test {first.replace('_', ' ')}"
        rows = [("setting", "n", shown, "std", "95 % interval", "test loss", "best seed")]
        for each in self.summary():
            loss, accuracy = (each["figures"][name] for name in ("test_loss", f"test_{first}"))
            count = f"{each['n']}" + (f" ({each['diverged']} diverged)" if each["diverged"] else "")
            if not accuracy:
                rows.append((setting_name(each["settings"]), count, "-", "-", "-", "-", "-"))
                continue
            std = "-" if accuracy["std"] is None else f"{accuracy['std']:.4f}"
            ci95 = "-" if accuracy["ci95"] is None else "{:.4f} to {:.4f}".format(*accuracy["ci95"])
            best_seed = f"{each['best']['seed']} ({each['best'][f'test_{first}']:.4f})"
            figures = (f"{accuracy['mean']:.4f}", std, ci95, f"{loss['mean']:.4f}")
            rows.append((setting_name(each["settings"]), count, *figures, best_seed))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        if (best := self.best()) and len(lines) > 2:
            lines.append(f"best by mean {best['by']}: {setting_name(best['settings'])} ({best['mean']:.4f})")
        return "\n".join(lines)


def setting_name(settings: Mapping[str, Any], *, short: bool = False) -> str:
    """A setting for people: `optimizer.learning_rate=0.001 batch_size=64`; if `short`, only the fields' last names."""
    if short and len({name.rpartition(".")[2] for name in settings}) == len(settings):
        settings = {name.rpartition(".")[2]: value for name, value in settings.items()}
    shown = {name: f"{value:.4g}" if isinstance(value, float) else str(value) for name, value in settings.items()}
    return " ".join(f"{name}={value}" for name, value in shown.items()) or "as it is"


def _sign(config: ExperimentConfig, name: str) -> int:
    """1 if larger values of the figure are better, else -1."""
    return 1 if any(metric.larger_is_better for metric in config.metrics if metric.name == name) else -1


def _run(lane: LaneResult, names: Sequence[str]) -> dict[str, Any]:
    # The settings are keys too, so that the runs form a table.
    return {
        "seed": lane.seed,
        **lane.settings,
        **lane.figures(names),
        **{name: value for name, value in lane.to_line().items() if name != "metrics"},
    }


def _summary(lanes: Sequence[LaneResult], config: ExperimentConfig) -> dict[str, Any]:
    names = names_of(config)
    ended = [lane for lane in lanes if lane.test]
    found = [lane.figures(names) for lane in ended]
    figures = {}
    for name in lanes[0].figures(names):
        spread = SeedSpread.of([value for each in found if (value := each[name]) is not None and math.isfinite(value)])
        figures[name] = spread and spread._asdict()
    first = names[0]
    of_first = figures[f"test_{first}"] or dict.fromkeys(SeedSpread._fields)
    scored = [lane for lane in ended if math.isfinite(lane.test.get(first, math.nan))]
    best = max(scored, key=lambda lane: _sign(config, first) * lane.test[first], default=None)
    return {
        "settings": lanes[0].settings,
        "n": len(ended),
        "diverged": len(lanes) - len(ended),
        **{name: of_first[name] for name in ("mean", "std", "ci95")},
        "best": best and {"lane": best.lane, "seed": best.seed, f"test_{first}": best.test[first]},
        "figures": figures,
    }
