"""How does a report become a page? The template is filled with facts and pictures; plots also lie beside the page."""

from __future__ import annotations

import itertools
import os
import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup, escape
from matplotlib.figure import Figure

import jaxmlp
from jaxmlp.bench.compare import holm
from jaxmlp.errors import DiskError
from jaxmlp.experiment.config import ExperimentConfig
from jaxmlp.experiment.mlp import MLP
from jaxmlp.experiment.plain import place_of, told_fields, where
from jaxmlp.report import pictures, plots
from jaxmlp.report.facts import Answers, RunFacts
from jaxmlp.report.groups import RunGroup, group
from jaxmlp.report.scores import Comparison, mcnemar
from jaxmlp.report.templates import environment
from jaxmlp.run import files
from jaxmlp.source.code import code_of

DETAILED = 8
"""Largest number of runs shown in detail. Further runs are only in tables and curves."""
DRAWN = len(plots.SERIES)
"""Largest number of groups with curves: one per colour."""


class Versus(NamedTuple):
    """The first run compared with another run on the same test images."""

    run: RunFacts
    comparison: Comparison
    adjusted_p: float
    """p value, adjusted by Holm's method for the number of comparisons."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """What `write_report` wrote."""

    report: Path
    bytes: int
    plots: tuple[Path, ...]
    versus: tuple[Versus, ...]


def write_report(runs: Sequence[RunFacts], out: Path) -> Written:
    """Write the page to `out`, and its plots as PNG and SVG into `plots/` beside it.

    Raises:
        DiskError: They cannot be written.
    """
    groups = group(runs)
    versus = compare_with_first(runs)
    details = _details(runs)
    shown = drawn(groups)
    figures = {name: plots.curves(shown, name) for name in _curves(runs)}
    figures["learning_rate"] = plots.learning_rate(shown)
    if any(len(each.of_seeds()) > 1 for each in groups):
        if any(each.values_of("test_accuracy") for each in shown):
            figures["seeds_accuracy"] = plots.seeds(shown, "test_accuracy")
        figures["seeds_loss"] = plots.seeds(shown, "test_loss")
    if heat := _heat_fields(groups):
        figures["heat_map"] = plots.heat_map(groups, *heat)
    for detail in details:
        if detail.answers.calibration:
            figures["confusion" + detail.suffix] = plots.confusion(detail.answers.evaluation)
            figures["calibration" + detail.suffix] = plots.calibration(detail.answers.calibration)
    # Odd bytes in a folder's name become lone surrogates, which no encoding has.
    page = _render(runs, groups, versus, details, figures, out).encode(errors="backslashreplace")
    folder = out.parent / "plots"
    if folder.is_symlink():
        raise DiskError(f"{folder} is a symbolic link: the plots must lie beside the report. Remove it.")
    with files.trying_to(f"make the folder {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
    written = []
    for (name, figure), kind in itertools.product(figures.items(), ("png", "svg")):
        written.append(folder / f"{name}.{kind}")
        files.write(written[-1], plots.as_file(figure, kind))
    files.write(out, page)
    return Written(report=out, bytes=len(page), plots=tuple(written), versus=tuple(versus))


def compare_with_first(runs: Sequence[RunFacts]) -> list[Versus]:
    """Compare the first run that has a model with each other such run on the same test images."""
    known = [(run, run.answers.correct) for run in runs if run.answers and run.answers.correct is not None]
    if not known:
        return []
    (base, first), *others = known
    others = [(run, correct) for run, correct in others if run.data_sha256 == base.data_sha256]
    found = [mcnemar(first, correct) for _, correct in others]
    adjusted = holm([each.p for each in found])
    return [Versus(*each) for each in zip([run for run, _ in others], found, adjusted, strict=True)]


def drawn(groups: Sequence[RunGroup]) -> list[RunGroup]:
    """The groups with curves: at most `DRAWN`, those with the highest mean test accuracy, in their order."""
    means = [spread.mean if (spread := each.spread("test_accuracy")) else 0.0 for each in groups]
    kept = sorted(range(len(groups)), key=lambda index: -means[index])[:DRAWN]
    return [groups[index] for index in sorted(kept)]


def _heat_fields(groups: Sequence[RunGroup]) -> list[str]:
    """The two fields in which groups differ; empty unless there are exactly two, and over two groups with results."""
    scored = [each for each in groups if each.spread("test_accuracy")]
    names = list(groups[0].values)
    return names if len(names) == 2 and len(scored) > 2 else []


def _curves(runs: Sequence[RunFacts]) -> list[str]:
    """The figures that are drawn by epoch: the loss, and each metric of a run."""
    return list(dict.fromkeys(["loss", *(metric.name for run in runs for metric in run.config.metrics)]))


def about(run: RunFacts) -> str:
    """What was trained, in one line."""
    config = run.config
    network = f"The network {where(config.model)}"
    if isinstance(config.model, MLP):
        sizes = " + ".join(map(str, config.model.hidden_sizes)) or "No hidden"
        activation = config.model.activation
        named = activation if isinstance(activation, str) else place_of(activation)
        network = f"{sizes} {named} units, dropout {config.model.dropout_rate}"
    rate = getattr(config.optimizer, "learning_rate", None)
    optimizer = where(config.optimizer) + (f" at {rate:g}" if isinstance(rate, float) else "")
    examples = f"{run.train_examples:,} {run.noun} of {config.data.name}"
    return f"{network}, {optimizer}, batches of {config.batch_size}, {_counted(config.epochs, 'epoch')} of {examples}"


def experiment_file(config: ExperimentConfig) -> str:
    """Source of an experiment file whose CONFIG is `config`, with every value and one part per line."""
    names = sorted({repr(part).partition("(")[0] for part in (config, *config.parts())})
    lines = [f"    {item.name}={getattr(config, item.name)!r},\n" for item in told_fields(config)]
    return f"from jaxmlp import {', '.join(names)}\n\nCONFIG = ExperimentConfig(\n{''.join(lines)})\n"


def _render(
    runs: Sequence[RunFacts],
    groups: Sequence[RunGroup],
    versus: Sequence[Versus],
    details: Sequence[_Detail],
    figures: Mapping[str, Figure],
    out: Path,
) -> str:
    found = environment()
    found.globals |= {
        "about": about,
        "code_of": code_of,
        "command": command_of,
        "counted": _counted,
        "experiment_file": experiment_file,
        "median": statistics.median,
        # Relative to the page's folder, so that both can be moved and no page names a folder of one machine.
        "quote": lambda path: shlex.quote(os.path.relpath(path.resolve(), out.parent.resolve())),
        "version": jaxmlp.__version__,
    }
    found.filters["kind_of"] = where

    def plot(name: str, alt: str) -> Markup:
        return Markup(plots.as_inline(figures[name], name, str(escape(alt))))

    return found.get_template("report.html").render(
        runs=runs,
        groups=groups,
        drawn=min(len(groups), DRAWN),
        details=details,
        heat=_heat_fields(groups),
        over_seeds="seeds_loss" in figures,
        scored="seeds_accuracy" in figures,
        names=_curves(runs),
        most=DETAILED,
        versus=versus,
        plot=plot,
        title=_title(groups),
    )


def _counted(count: int, noun: str) -> str:
    """A count with its noun: `1 epoch`, `20 epochs`, `10,000 test images`."""
    return f"{count:,} {noun}" + "s" * (count != 1)


def command_of(group: RunGroup) -> str:
    """The command that trains a group again from an experiment file."""
    seeds = dict.fromkeys(run.config.seed for run in group.runs)
    if len(seeds) == 1 and not any(run.lane for run in group.runs):
        return "jaxmlp train again.py"
    return f"jaxmlp sweep again.py --seeds {','.join(map(str, seeds))} --keep-runs"


def _title(groups: Sequence[RunGroup]) -> str:
    names = {run.config.name for group in groups for run in group.runs}
    if len(groups) == 1:
        return groups[0].name
    if len(names) == 1:
        return f"{names.pop()}, {len(groups)} settings"
    return f"{groups[0].name} and {len(groups) - 1} more"


class _Detail:
    """What the template needs to show a run with a model."""

    def __init__(self, run: RunFacts, answers: Answers, number: int, alone: bool) -> None:
        self.run = run
        self.answers = answers
        self.id = f"run-{number}"
        self.suffix = "" if alone else f"-{number}"
        """Suffix of the names of its figures."""
        self.mistakes = [
            (mistake, pictures.as_source(pictures.as_png(pictures.as_pixels(mistake.image))))
            for mistake in answers.mistakes
        ]
        self.augmented = _augmented(run.augmented)
        tiles, counts = answers.tiles, answers.evaluation.confusion
        self.weights = None if tiles is None else pictures.as_source(pictures.as_png(pictures.weights_sheet(tiles)))
        classes = range(0 if counts is None else len(counts))
        wrong = [(int(counts[i, j]), i, j) for i in classes for j in classes if counts is not None and i != j]
        self.confused = [each for each in sorted(wrong, key=lambda each: -each[0])[:3] if each[0]]
        """The most frequent mistakes: count, label, prediction."""


def _details(runs: Sequence[RunFacts]) -> list[_Detail]:
    shown = [(run, run.answers) for run in runs if run.answers][:DETAILED]
    return [_Detail(run, answers, number, alone=len(runs) == 1) for number, (run, answers) in enumerate(shown, start=1)]


def _augmented(draws: np.ndarray[Any, Any] | None) -> str | None:
    """The training images and their augmented draws, one row per draw, for an image's `src`."""
    if draws is None:
        return None
    white = max(float(draws[0].max()), 1e-12)
    images = [(np.clip(image / white, 0, 1) * 255).astype(np.uint8) for draw in draws for image in draw]
    return pictures.as_source(pictures.as_png(pictures.sheet(images, draws.shape[1])))
