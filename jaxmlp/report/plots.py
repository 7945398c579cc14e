"""How are the report's plots drawn? With matplotlib, one figure per question, in named colours that a page can set.

Every colour is one of `INKS`. A file has the value given here; a page has a CSS variable of that name, so that one
drawing serves light and dark themes. The hues are Okabe and Ito's, darkened for lines on white. Dashes and
markers repeat every distinction that hues make.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import matplotlib as mpl
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter

from jaxmlp.report.groups import RunGroup
from jaxmlp.report.scores import Calibration
from jaxmlp.trained.inference import Evaluation

INKS = {
    "ink": "#1b1f24",
    "muted": "#59636e",
    "line": "#d1d9e0",
    "series-0": "#0072b2",
    "series-1": "#b84a00",
    "series-2": "#00795a",
    "series-3": "#a3497a",
    "series-4": "#7d6200",
    "series-5": "#4f5b93",
}
SERIES = [color for name, color in INKS.items() if name.startswith("series")]
MARKERS = "os^Dv*"

STYLE: Any = {
    "axes.edgecolor": INKS["muted"],
    "axes.labelcolor": INKS["ink"],
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INKS["ink"],
    "axes.axisbelow": True,
    "axes.grid": True,
    "font.size": 12,
    "grid.color": INKS["line"],
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.labelcolor": INKS["ink"],
    "lines.linewidth": 2,
    "savefig.bbox": "tight",
    "svg.fonttype": "none",
    "svg.hashsalt": "jaxmlp",
    "text.color": INKS["ink"],
    "text.parse_math": False,
    "xtick.color": INKS["muted"],
    "xtick.labelcolor": INKS["ink"],
    "ytick.color": INKS["muted"],
    "ytick.labelcolor": INKS["ink"],
}


def styled() -> AbstractContextManager[None]:
    """The style of the report's plots, whatever the user's matplotlibrc says."""
    context: AbstractContextManager[None] = mpl.style.context(STYLE, after_reset=True)
    return context


CURVES = 4.6, 3.2
"""Size of a figure of curves in inches. Three of them stand side by side."""


@contextlib.contextmanager
def _axes(width: float = 5.2, height: float = 3.4, *, legend: float = 0) -> Iterator[Axes]:
    """Axes of a new figure in this style. A legend below the axes adds to the height."""
    with styled():
        yield Figure(figsize=(width, height + legend), layout="constrained").add_subplot()


def as_file(figure: Figure, kind: str, *, transparent: bool = False) -> bytes:
    """The figure as PNG or SVG, with the same bytes every time."""
    buffer = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else {}
    with styled():
        figure.savefig(buffer, format=kind, dpi=160, transparent=transparent, metadata=metadata)
    return buffer.getvalue()


def as_inline(figure: Figure, name: str, alt: str) -> str:
    """The figure as an `<svg>` for a page in all its themes.

    Args:
        figure: A figure drawn here.
        name: A word that keeps the figure's ids apart from other figures' ids.
        alt: What the figure shows, escaped.
    """
    svg = as_file(figure, "svg", transparent=True).decode()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    for ink, color in INKS.items():
        svg = svg.replace(color, f"var(--{ink})")
    # An inline SVG, unlike a file, has no size, so that it fits its place.
    svg = re.sub(r'(<svg\b[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg\b[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{alt}" ', 1)


def curves(groups: Sequence[RunGroup], figure: str) -> Figure:
    """A figure by epoch: validation solid, training dashed; for several seeds in a group, mean and band."""
    with _axes(*CURVES, legend=_legend_height(groups)) as axes:
        for number, group in enumerate(groups):
            color, marker = SERIES[number % len(SERIES)], MARKERS[number % len(MARKERS)]
            labelled = False
            for prefix, style, what in (("val_", "-", "validation"), ("", "--", "training")):
                rows = _rows(group, prefix + figure)
                if not rows.size:
                    continue
                epochs = np.arange(1, rows.shape[1] + 1)
                mean = np.nanmean(rows, axis=0)
                shown: Any = {"marker": marker, "markevery": max(1, len(epochs) // 8), "markersize": 5}
                if len(groups) == 1:
                    shown["label"] = what
                elif not labelled:
                    shown["label"], labelled = group.name, True
                axes.plot(epochs, mean, style, color=color, **shown)
                if len(rows) > 1:
                    low, high = np.nanmin(rows, axis=0), np.nanmax(rows, axis=0)
                    axes.fill_between(epochs, low, high, color=color, alpha=0.18, linewidth=0)
        axes.set_ylabel(figure)
        _label_epochs(axes, groups)
        _legend(axes, columns=2 if len(groups) == 1 else 1)
        return _figure(axes)


def _label_epochs(axes: Axes, groups: Sequence[RunGroup]) -> None:
    axes.set_xlabel("epoch")
    axes.set_xticks(epoch_ticks(max((len(run.epochs) for group in groups for run in group.runs), default=0)))


def epoch_ticks(epochs: int) -> list[int]:
    """At most eight epochs to label: the first, the last, and round numbers between them, none too close."""
    if epochs <= 8:
        return list(range(1, epochs + 1))
    steps = (factor * 10**power for power in itertools.count() for factor in (1, 2, 5))
    step = next(step for step in steps if epochs / step <= 6)
    between = [tick for tick in range(step, epochs, step) if min(tick - 1, epochs - tick) > step / 2]
    return [1, *between, epochs]


def _legend(axes: Axes, columns: int = 1) -> None:
    """Put the legend below the axes, where it crosses no line."""
    if axes.get_legend_handles_labels()[1]:
        _figure(axes).legend(fontsize=10, loc="outside lower left", ncols=columns)


def _legend_height(groups: Sequence[RunGroup]) -> float:
    return 0.22 * max(1, len(groups))


def _rows(group: RunGroup, name: str) -> np.ndarray[Any, Any]:
    """A figure as [seeds, epochs]; nan if a run has not reached the epoch or its figure was not finite."""
    known = [[np.nan if line.get(name) is None else line[name] for line in run.epochs] for run in group.of_seeds()]
    rows = np.array(list(itertools.zip_longest(*known, fillvalue=np.nan)), float).T
    return rows[:, ~np.isnan(rows).all(axis=0)] if rows.size else rows


def learning_rate(groups: Sequence[RunGroup]) -> Figure:
    """Learning rate of each epoch's last update; dotted, the schedule's rates for a run that has not ended."""
    with _axes(*CURVES, legend=_legend_height(groups) if len(groups) > 1 else 0) as axes:
        for number, group in enumerate(groups):
            lines = group.runs[0].epochs
            rates = [np.nan if line["learning_rate"] is None else line["learning_rate"] for line in lines]
            points = [line["epoch"] for line in lines], rates
            color = SERIES[number % len(SERIES)]
            axes.plot(*points, color=color, label=group.name if len(groups) > 1 else "_")
            if planned := group.runs[0].planned:
                axes.plot(*zip(*planned, strict=True), ":", color=color, label="_")
        axes.set_ylim(bottom=0)
        axes.set_ylabel("learning rate")
        _label_epochs(axes, groups)
        _legend(axes)
        return _figure(axes)


def seeds(groups: Sequence[RunGroup], figure: str) -> Figure:
    """`test_accuracy` or `test_loss` of each seed, a row per group, with the 95 % interval of the group's mean."""
    with _axes(height=1.0 + 0.42 * len(groups)) as axes:
        for number, group in enumerate(groups):
            color, marker = SERIES[number % len(SERIES)], MARKERS[number % len(MARKERS)]
            values = group.values_of(figure)
            spread = group.spread(figure)
            if spread and spread.ci95:
                axes.plot(spread.ci95, [number, number], color=color, lw=7, alpha=0.3, solid_capstyle="butt")
                axes.plot([spread.mean] * 2, [number - 0.28, number + 0.28], color=color)
            axes.plot(values, [number] * len(values), marker, color=color, markersize=5)
        labels = [group.name.rpartition(", ")[0] or group.name for group in groups]
        axes.set_yticks(range(len(groups)), labels, fontsize=10)
        axes.set(ylim=(len(groups) - 0.5, -0.5), xlabel=figure.replace("_", " "))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        return _figure(axes)


def heat_map(groups: Sequence[RunGroup], rows: str, columns: str) -> Figure:
    """Mean test accuracy for each pair of values of two fields. Higher accuracies have deeper colours."""
    down, across = (_in_order(group.values[field] for group in groups) for field in (rows, columns))
    means = np.full((len(down), len(across)), np.nan)
    for group in groups:
        place = down.index(group.values[rows]), across.index(group.values[columns])
        means[place] = spread.mean if (spread := group.spread("test_accuracy")) else np.nan
    low, high = np.nanmin(means), np.nanmax(means)
    with _axes(1.4 + 0.95 * max(4, len(across)), 1.2 + 0.55 * max(3, len(down))) as axes:
        axes.grid(False)
        for (row, column), mean in np.ndenumerate(means):
            if not np.isnan(mean):
                strength = 0.06 + 0.54 * (mean - low) / max(high - low, 1e-12)
                corner = column - 0.48, row - 0.48
                axes.add_patch(Rectangle(corner, 0.96, 0.96, color=SERIES[0], alpha=strength, lw=0))
            axes.text(column, row, "-" if np.isnan(mean) else f"{mean:.4f}", ha="center", va="center", fontsize=10)
        axes.set(xlim=(-0.5, len(across) - 0.5), ylim=(len(down) - 0.5, -0.5), xlabel=columns, ylabel=rows)
        axes.set_xticks(range(len(across)), [_short(value) for value in across])
        axes.set_yticks(range(len(down)), [_short(value) for value in down])
        return _figure(axes)


def _in_order(values: Iterable[Any]) -> list[Any]:
    """The values without duplicates; numbers sorted, others in their order."""
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    return sorted(found) if all(isinstance(value, int | float) for value in found) else found


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def confusion(evaluation: Evaluation) -> Figure:
    """Confusion matrix: a row per true class, a column per prediction. Frequent mistakes have deeper colours."""
    counts = evaluation.confusion
    assert counts is not None
    classes = len(counts)
    mistakes = counts * (1 - np.eye(classes, dtype=int))
    with _axes(5.2, 5.2) as axes:
        axes.grid(False)
        for label, answer in np.ndindex(*counts.shape):
            right, count = label == answer, counts[label, answer]
            strength = 0.14 if right else 0.65 * np.sqrt(count / max(1, mistakes.max()))
            color = SERIES[0] if right else SERIES[1]
            axes.add_patch(Rectangle((answer - 0.48, label - 0.48), 0.96, 0.96, color=color, alpha=strength, lw=0))
            if count and classes <= 20:
                axes.text(answer, label, f"{count}", ha="center", va="center", fontsize=10)
        axes.set(xlim=(-0.5, classes - 0.5), ylim=(classes - 0.5, -0.5), xlabel="answer", ylabel="true class")
        axes.set_aspect("equal")
        if classes <= 20:
            axes.set(xticks=range(classes), yticks=range(classes))
        return _figure(axes)


def calibration(found: Calibration) -> Figure:
    """Fraction of right predictions by their probability, with the share of predictions of each probability."""
    with _axes(5.2, 4.2, legend=0.44) as axes:
        filled = [each for each in found.bins if each.examples]
        total = sum(each.examples for each in filled)
        width = 1 / len(found.bins)
        shares = [each.examples / total for each in filled]
        middles = [(each.low + each.high) / 2 for each in filled]
        axes.bar(middles, shares, 0.86 * width, color=SERIES[0], alpha=0.25, lw=0, label="share of all answers")
        axes.plot([0, 1], [0, 1], "--", color=INKS["muted"], lw=1.2, label="perfectly calibrated")
        points = [each.confidence for each in filled], [each.accuracy for each in filled]
        axes.plot(*points, "o-", color=SERIES[1], label="this model")
        axes.set(xlim=(0, 1.02), ylim=(0, 1.04), xlabel="probability of the answer", ylabel="answers that are right")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1))
        _legend(axes, columns=2)
        return _figure(axes)


def _figure(axes: Axes) -> Figure:
    figure = axes.figure
    assert isinstance(figure, Figure)
    return figure
