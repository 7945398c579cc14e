"""The page itself: what is known of the runs, put into the template, with its pictures inside and beside it."""

from __future__ import annotations

import itertools
import shlex
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup, escape
from matplotlib.figure import Figure

import jaxmlp
from jaxmlp import pictures
from jaxmlp.config import ExperimentConfig
from jaxmlp.fields import Part
from jaxmlp.report import plots
from jaxmlp.report.facts import RunFacts
from jaxmlp.report.scores import Comparison, holm, mcnemar
from jaxmlp.run import files

DETAILED = 8
"""Runs that are shown in detail; of more, the others are in tables and curves alone."""


class Versus(NamedTuple):
    """The first run against another one, on the same test images."""

    run: RunFacts
    comparison: Comparison
    adjusted_p: float
    """By Holm, for as many comparisons as there are."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """What `write_report` made."""

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
    versus = compare(runs)
    shared = {
        "loss": plots.curves(groups, "loss"),
        "accuracy": plots.curves(groups, "accuracy"),
        "learning_rate": plots.learning_rate(groups),
    }
    detailed = {
        f"{kind}{'' if len(runs) == 1 else f'-{number}'}": figure
        for number, run in enumerate(runs[:DETAILED], start=1)
        for kind, figure in (
            ("confusion", plots.confusion(run.evaluation)),
            ("calibration", plots.calibration(run.calibration)),
        )
    }
    page = _render(runs, groups, versus, shared | detailed)
    folder = out.parent / "plots"
    with files.trying_to(f"make the folder {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
    written = []
    for (name, figure), kind in itertools.product((shared | detailed).items(), ("png", "svg")):
        written.append(folder / f"{name}.{kind}")
        files.write(written[-1], plots.as_file(figure, kind))
    files.write(out, page.encode())
    return Written(report=out, bytes=len(page.encode()), plots=tuple(written), versus=tuple(versus))


def group(runs: Sequence[RunFacts]) -> list[list[RunFacts]]:
    """Runs that differ by their seed alone, together."""
    found: dict[tuple[Any, str], list[RunFacts]] = {}
    for run in runs:
        found.setdefault((run.experiment, run.data_sha256), []).append(run)
    return list(found.values())


def compare(runs: Sequence[RunFacts]) -> list[Versus]:
    """The first run against each other one that has the same test images."""
    first, *others = runs
    others = [run for run in others if run.data_sha256 == first.data_sha256]
    found = [mcnemar(first.correct, run.correct) for run in others]
    adjusted = holm([each.p for each in found])
    return [Versus(*each) for each in zip(others, found, adjusted, strict=True)]


def experiment_file(config: ExperimentConfig) -> str:
    """An experiment's file whose CONFIG is `config`: every value, a part a line."""
    names = sorted({"ExperimentConfig", *_part_names(config)})
    lines = [f"    {item.name}={getattr(config, item.name)!r},\n" for item in fields(config)]
    return f"from jaxmlp import {', '.join(names)}\n\nCONFIG = ExperimentConfig(\n{''.join(lines)})\n"


def _part_names(part: Part) -> Iterator[str]:
    for item in fields(part):  # type: ignore[arg-type]
        if isinstance(value := getattr(part, item.name), Part):
            yield type(value).__name__
            yield from _part_names(value)


def spread(values: Sequence[float]) -> str:
    """`0.9832 ± 0.0008`: mean and sample standard deviation; of one value that value."""
    deviation = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.4f}{deviation}"


def _render(
    runs: Sequence[RunFacts], groups: Sequence[Sequence[RunFacts]], versus: Sequence[Versus], figures: dict[str, Figure]
) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jaxmlp.report", "page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "css": Markup(files.read(Path(__file__).parent / "page" / "style.css").decode()),
        "experiment_file": experiment_file,
        "group_name": plots.group_name,
        "median": statistics.median,
        "quote": lambda path: shlex.quote(str(path)),
        "spread": spread,
        "version": jaxmlp.__version__,
    }

    def plot(name: str, alt: str) -> Markup:
        return Markup(plots.as_inline(figures[name], name, str(escape(alt))))

    return environment.get_template("report.html").render(
        runs=runs,
        groups=groups,
        detailed=[_Detail(run, number, len(runs) == 1) for number, run in enumerate(runs[:DETAILED], start=1)],
        versus=versus,
        plot=plot,
        title=_title(groups),
    )


def _title(groups: Sequence[Sequence[RunFacts]]) -> str:
    (first, *seeds), *others = groups
    if others:
        return f"{first.name} and {sum(map(len, groups)) - 1} more"
    return f"{first.config.name}, {1 + len(seeds)} seeds" if seeds else first.name


class _Detail:
    """What the template needs of one run in detail, ready to be shown."""

    def __init__(self, run: RunFacts, number: int, alone: bool) -> None:
        self.run = run
        self.id = f"run-{number}"
        self.suffix = "" if alone else f"-{number}"
        """Of its figures' names."""
        self.mistakes = [
            (mistake, pictures.as_source(pictures.as_png(pictures.as_pixels(mistake.image))))
            for mistake in run.mistakes
        ]
        self.weights = pictures.as_source(pictures.as_png(pictures.weights_sheet(run.tiles)))
        counts = run.evaluation.confusion
        wrong = [(int(counts[i, j]), i, j) for i in range(len(counts)) for j in range(len(counts)) if i != j]
        self.confused = [each for each in sorted(wrong, key=lambda each: -each[0])[:3] if each[0]]
        """The most frequent mistakes: how often, what it is, what it is taken for."""
