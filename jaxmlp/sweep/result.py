"""What a sweep came to: its lanes, and over the seeds of each setting mean, standard deviation and interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from jaxmlp.config import ExperimentConfig
from jaxmlp.history import EpochRecord


def names_of(config: ExperimentConfig) -> list[str]:
    """The metrics of an experiment by which its lanes are told apart, the first one first: accuracy if it has it."""
    metrics = sorted((metric.name for metric in config.metrics), key=lambda name: name != "accuracy")
    return [*metrics, "loss"]


@dataclass(frozen=True, kw_only=True)
class LaneResult:
    """One lane, a line of `lanes.jsonl`."""

    lane: int
    """Its number: setting by setting, in each seed by seed."""
    seed: int
    settings: Mapping[str, Any]
    """What was set, by dotted path."""
    status: str
    """`finished`, or `diverged`: without test figures and digests."""
    epoch: int
    """The last one, or the one it diverged in."""
    test: Mapping[str, float]
    """Loss and metrics on the test split, by name; empty where it diverged."""
    params_sha256: str | None
    state_sha256: str | None
    train_s: float
    """Its part of the time that its group trained for."""
    metrics: tuple[EpochRecord, ...]
    """Its epochs, as a solo run's."""
    stopped: str | None = None
    """Why it finished before its last epoch."""

    @classmethod
    def from_line(cls, line: Mapping[str, Any]) -> LaneResult:
        """The lane whose line, of known fields of the right types, this is.

        Raises:
            RunError, TypeError, ValueError: It is none.
        """
        test = {name.removeprefix("test_"): value for name, value in line.items() if name.startswith("test_")}
        others = {name: value for name, value in line.items() if not name.startswith("test_")}
        metrics = tuple(map(EpochRecord.from_line, line["metrics"]))
        found = cls(**{**others, "test": {n: v for n, v in test.items() if v is not None}, "metrics": metrics})
        if found.status not in ("finished", "diverged") or None in (found.lane, found.train_s):
            raise ValueError(f"lane {found.lane} is {found.status}")
        return found

    def to_line(self) -> dict[str, Any]:
        """The line: JSON values."""
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
        """The figures of its end; those of training and validation are the last epoch's."""
        last = self.metrics[-1].figures if self.metrics else {}
        found = {f"test_{name}": self.test.get(name) for name in names}
        found |= {f"val_{name}": last.get(f"val_{name}") for name in names}
        return found | {f"train_{name}": last.get(name) for name in names}


class Spread(NamedTuple):
    """Of one figure over seeds."""

    mean: float
    std: float | None
    """Sample standard deviation, n - 1; none of one seed, as `ci95`."""
    ci95: tuple[float, float] | None
    """Student's t interval of the mean."""
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """Over these values; none of no value."""
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
    """A sweep's lanes in the order of their numbers, those that ended."""

    config: ExperimentConfig
    lanes: tuple[LaneResult, ...]
    total: int
    """Lanes of the whole sweep."""
    status: str
    """`finished`, or `interrupted` by a stop signal."""
    batching: str
    compile_s: float
    """Of this process."""
    devices: int
    processes: int

    @property
    def train_s(self) -> float:
        """Of all lanes together, those before an interruption too."""
        return sum(lane.train_s for lane in self.lanes)

    def summary(self) -> list[dict[str, Any]]:
        """One object a setting; `mean, std, ci95` are the first test metric's, `best` its best lane's.

        The first metric is the accuracy, or another where the experiment has no accuracy.
        """
        groups: dict[str, list[LaneResult]] = {}
        for lane in self.lanes:
            groups.setdefault(repr(lane.settings), []).append(lane)
        return [_summary(lanes, self.config) for lanes in groups.values()]

    def best(self) -> dict[str, Any] | None:
        """The setting with the best mean of the first metric, in validation, or on the test split without it.

        Of equals it is the first. A setting that lost a lane is behind all that lost fewer.
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
        """The sweep in one JSON object, as `sweep --json` prints it."""
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
        """The summary for people, a line a setting."""
        first = names_of(self.config)[0]
        shown = f"test {first.replace('_', ' ')}"
        rows = [("setting", "n", shown, "std", "95 % interval", "test loss", "best seed")]
        for each in self.summary():
            loss, accuracy = (each["figures"][name] for name in ("test_loss", f"test_{first}"))
            told = f"{each['n']}" + (f" ({each['diverged']} diverged)" if each["diverged"] else "")
            if not accuracy:
                rows.append((setting_name(each["settings"]), told, "-", "-", "-", "-", "-"))
                continue
            std = "-" if accuracy["std"] is None else f"{accuracy['std']:.4f}"
            ci95 = "-" if accuracy["ci95"] is None else "{:.4f} to {:.4f}".format(*accuracy["ci95"])
            best_seed = f"{each['best']['seed']} ({each['best'][f'test_{first}']:.4f})"
            figures = (f"{accuracy['mean']:.4f}", std, ci95, f"{loss['mean']:.4f}")
            rows.append((setting_name(each["settings"]), told, *figures, best_seed))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        if (best := self.best()) and len(lines) > 2:
            lines.append(f"best by mean {best['by']}: {setting_name(best['settings'])} ({best['mean']:.4f})")
        return "\n".join(lines)


def setting_name(settings: Mapping[str, Any], *, short: bool = False) -> str:
    """`optimizer.learning_rate=0.001 batch_size=64`, for people; in short `learning_rate=0.001 batch_size=64`."""
    if short and len({name.rpartition(".")[2] for name in settings}) == len(settings):
        settings = {name.rpartition(".")[2]: value for name, value in settings.items()}
    shown = {name: f"{value:.4g}" if isinstance(value, float) else str(value) for name, value in settings.items()}
    return " ".join(f"{name}={value}" for name, value in shown.items()) or "as it is"


def _sign(config: ExperimentConfig, name: str) -> int:
    """1 for a figure of which more is better, else -1."""
    return 1 if any(metric.larger_is_better for metric in config.metrics if metric.name == name) else -1


def _run(lane: LaneResult, names: Sequence[str]) -> dict[str, Any]:
    line = lane.to_line()
    # What was set by its name too, so that the runs make a table.
    return {
        "seed": lane.seed,
        **lane.settings,
        **lane.figures(names),
        **{n: v for n, v in line.items() if n != "metrics"},
    }


def _summary(lanes: Sequence[LaneResult], config: ExperimentConfig) -> dict[str, Any]:
    names = names_of(config)
    ended = [lane for lane in lanes if lane.test]
    found = [lane.figures(names) for lane in ended]
    figures = {}
    for name in lanes[0].figures(names):
        spread = Spread.of([value for each in found if (value := each[name]) is not None])
        figures[name] = spread and spread._asdict()
    first = names[0]
    of_first = figures[f"test_{first}"] or dict.fromkeys(Spread._fields)
    best = max(ended, key=lambda lane: _sign(config, first) * lane.test[first], default=None)
    return {
        "settings": lanes[0].settings,
        "n": len(ended),
        "diverged": len(lanes) - len(ended),
        **{name: of_first[name] for name in ("mean", "std", "ci95")},
        "best": best and {"lane": best.lane, "seed": best.seed, f"test_{first}": best.test[first]},
        "figures": figures,
    }
