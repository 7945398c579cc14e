"""How is a benchmark drawn? Roofline, throughput by batch size, and growth of cost, for light and dark pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

INKS = ("#0072b2", "#b84a00", "#00795a", "#a3497a", "#7d6200", "#4f5b93")
"""Okabe and Ito's hues, dark enough for lines on white. Each line also has its own marker and dashes."""
MARKERS, DASHES = "os^Dv*", ("-", "--", "-.", ":", "-", "--")
STYLE: Any = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "white",  # Opaque, so that lines keep their contrast on a dark page.
    "font.size": 12,
    "grid.color": "#d1d9e0",
    "legend.fontsize": 10,
    "svg.hashsalt": "jaxmlp",
}


def draw(document: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write the pictures of a document of `run_suite` as SVG into `folder`, and return their paths.

    A picture without any line is left out.
    """
    paths = []
    for name, plot in {"roofline": roofline, "throughput": throughput, "scaling": scaling}.items():
        # The user's matplotlibrc must not change the pictures.
        with mpl.style.context(STYLE, after_reset=True):
            if figure := plot(document):
                paths.append(folder / f"{name}.svg")
                figure.savefig(paths[-1], metadata={"Date": None})
    return paths


def roofline(document: Mapping[str, Any]) -> Figure:
    """Achieved FLOP/s over FLOPs per byte, with the roofs of this device's products and copies."""
    figure = Figure(figsize=(8, 5.6), layout="constrained")
    axes = figure.add_subplot()
    rows = [row for row in document["rows"] if "of_roof" in row and row["devices"] == row["grad_shards"] == 1]
    peaks = document["peaks"]
    fastest = max(peaks["copies"].values())
    ends = [row["flops"] / row["bytes"] for row in rows]
    ends += [peak / rate for peak in peaks["flops_per_s"].values() for rate in (fastest, peaks["bytes_per_s"])]
    reach = np.geomspace(min(ends) / 2, max(ends) * 2, 200)
    slow = np.minimum(max(peaks["flops_per_s"].values()), reach * peaks["bytes_per_s"])
    axes.plot(reach, slow, ":", color="#57606a", label="roof of the memory")
    for number, (precision, peak) in enumerate(peaks["flops_per_s"].items()):
        roof = np.minimum(peak, reach * fastest)
        axes.plot(reach, roof, DASHES[number], color=INKS[number], label=f"roof, {precision}")
        for what, marker in (("step", "o"), ("epoch", "^"), ("evaluation", "s")):
            points = [row for row in rows if (row["what"], row["precision"]) == (what, precision)]
            places = [row["flops"] / row["bytes"] for row in points], [row["flops_per_s"] for row in points]
            face = INKS[number] if number == 0 else "white"
            axes.plot(*places, marker, color=INKS[number], markerfacecolor=face, label=f"{what}, {precision}")
    axes.set(xscale="log", yscale="log", xlabel="FLOPs a byte", ylabel="FLOP/s", title=_title(document, "roofline"))
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def throughput(document: Mapping[str, Any]) -> Figure | None:
    """Examples per second over batch size, with a line for each width and precision that has two batch sizes or more.

    None if there is no such line.
    """
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    steps = [row for row in document["rows"] if row["what"] == "step" and row["devices"] == row["grad_shards"] == 1]
    lines: dict[tuple[int, str], list[Any]] = {}
    for row in sorted(steps, key=lambda row: (row["width"], row["precision"], row["batch_size"])):
        lines.setdefault((row["width"], row["precision"]), []).append(row)
    lines = {held: line for held, line in lines.items() if len(line) > 1}
    for number, ((width, precision), line) in enumerate(lines.items()):
        style: Any = {"color": INKS[number % 6], "marker": MARKERS[number % 6], "label": f"width {width}, {precision}"}
        x, y = ([row[name] for row in line] for name in ("batch_size", "examples_per_s"))
        axes.plot(x, y, DASHES[(number + number // 6) % 6], **style)
    axes.set(xscale="log", yscale="log", xlabel="batch size", ylabel="examples a second")
    axes.set_title(_title(document, "training"))
    _plain_ticks(axes, sorted({row["batch_size"] for line in lines.values() for row in line}))
    figure.legend(loc="outside lower center", ncols=3)
    return figure if lines else None


def scaling(document: Mapping[str, Any]) -> Figure | None:
    """Time over each of `scaling.SIZES`, with the fitted power. None if nothing was fitted."""
    found = document["scaling"]
    rows = -(-len(found) // 2)
    figure = Figure(figsize=(8, 3.4 * rows + 0.4), layout="constrained")
    for number, fit in enumerate(found):
        axes, sizes = figure.add_subplot(rows, min(2, len(found)), number + 1), np.asarray(fit["sizes"])
        axes.plot(sizes, 1e3 * np.asarray(fit["median_s"]), MARKERS[number], color=INKS[number])
        axes.plot(sizes, 1e3 * fit["factor"] * sizes ** fit["exponent"], "--", color=INKS[number])
        size = fit["size"].replace("_", " ")
        axes.set(xscale="log", yscale="log", xlabel=size, ylabel=f"{fit['what']}, ms")
        axes.set_title(f"grows as {size} ^ {fit['exponent']:.2f}", fontsize=12)
        _plain_ticks(axes, fit["sizes"])
    figure.suptitle(_title(document, "cost"))
    return figure if found else None


def _plain_ticks(axes: Axes, sizes: Sequence[int]) -> None:
    """Label the x axis with the timed sizes, and both axes with plain numbers."""
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _title(document: Mapping[str, Any], what: str) -> str:
    machine = document["machine"]
    name = machine["processor"] if machine["device_kind"] == "cpu" else machine["device_kind"]
    return f"{name or machine['device_kind']}: {what}"
