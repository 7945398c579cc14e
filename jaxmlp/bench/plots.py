"""A benchmark's pictures, readable on light and dark: the roofline, throughput by batch size, and how cost grows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INKS = ("#0072b2", "#b84a00", "#00795a", "#a3497a", "#7d6200", "#4f5b93")
"""Okabe and Ito's hues, dark enough for lines on white; a marker and a dash go with each."""
MARKERS, DASHES = "os^Dv*", ("-", "--", "-.", ":", "-", "--")
STYLE: Any = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "white",  # Opaque, so that a dark page keeps the ink's contrast.
    "font.size": 12,
    "grid.color": "#d1d9e0",
    "legend.fontsize": 10,
    "svg.hashsalt": "jaxmlp",
}


def draw(document: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write the pictures of a document of `run_suite` as SVG into `folder`, and return their paths."""
    paths = []
    for name, plot in {"roofline": roofline, "throughput": throughput, "scaling": scaling}.items():
        path = folder / f"{name}.svg"
        # Whatever the user's own matplotlibrc says.
        with mpl.style.context(STYLE, after_reset=True):
            plot(document).savefig(path, metadata={"Date": None})
        paths.append(path)
    return paths


def roofline(document: Mapping[str, Any]) -> Figure:
    """Achieved FLOP/s over FLOPs a byte, under the roof that this device's product and copy set."""
    figure = Figure(figsize=(7, 4.6), layout="constrained")
    axes = figure.add_subplot()
    rows = [row for row in document["rows"] if "of_roof" in row and row["devices"] == row["grad_shards"] == 1]
    peaks = document["peaks"]
    ridges = [peak / peaks["bytes_per_s"] for peak in peaks["flops_per_s"].values()]
    intensities = [row["flops"] / row["bytes"] for row in rows]
    reach = np.geomspace(min(intensities + ridges) / 3, max(intensities + ridges) * 3, 200)
    for number, (precision, peak) in enumerate(peaks["flops_per_s"].items()):
        roof = np.minimum(peak, reach * peaks["bytes_per_s"])
        axes.plot(reach, roof, DASHES[number], color=INKS[number], label=f"roof, {precision}")
        for what, marker in (("step", "o"), ("epoch", "^"), ("evaluation", "s")):
            points = [row for row in rows if (row["what"], row["precision"]) == (what, precision)]
            x = [row["flops"] / row["bytes"] for row in points]
            y = [row["flops_per_s"] for row in points]
            face = INKS[number] if number == 0 else "white"
            axes.plot(x, y, marker, color=INKS[number], markerfacecolor=face, label=f"{what}, {precision}")
    axes.set(xscale="log", yscale="log", xlabel="FLOPs a byte", ylabel="FLOP/s", title=_title(document, "roofline"))
    axes.legend(loc="lower right", ncols=2)
    return figure


def throughput(document: Mapping[str, Any]) -> Figure:
    """Examples a second over the batch size, a line for each width and precision."""
    figure = Figure(figsize=(7, 4.6), layout="constrained")
    axes = figure.add_subplot()
    steps = [row for row in document["rows"] if row["what"] == "step" and row["devices"] == row["grad_shards"] == 1]
    for number, (width, precision) in enumerate(sorted({(row["width"], row["precision"]) for row in steps})):
        line = [row for row in steps if (row["width"], row["precision"]) == (width, precision)]
        line.sort(key=lambda row: row["batch_size"])
        _line(axes, number, [row["batch_size"] for row in line], [row["examples_per_s"] for row in line],
              f"width {width}, {precision}")  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set(yscale="log", xlabel="batch size", ylabel="examples a second", title=_title(document, "training"))
    axes.legend(ncols=2)
    return figure


def scaling(document: Mapping[str, Any]) -> Figure:
    """Time over each of `scaling.SIZES`, with the power that fits."""
    found = document["scaling"]
    figure = Figure(figsize=(4.2 * len(found), 3.8), layout="constrained")
    for number, (axes, fit) in enumerate(zip(figure.subplots(1, len(found), squeeze=False)[0], found, strict=True)):
        sizes = np.asarray(fit["sizes"])
        axes.plot(sizes, fit["median_s"], MARKERS[number], color=INKS[number], label="median")
        label = f"size ^ {fit['exponent']:.2f}"
        axes.plot(sizes, fit["factor"] * sizes ** fit["exponent"], "--", color=INKS[number], label=label)
        axes.set_xscale("log", base=2)
        axes.set(yscale="log", xlabel=fit["size"].replace("_", " "), ylabel=f"seconds, {fit['what']}")
        axes.legend()
    figure.suptitle(_title(document, "cost"))
    return figure


def _line(axes: Axes, number: int, x: Any, y: Any, label: str) -> None:
    style: Any = {"color": INKS[number % 6], "marker": MARKERS[number % 6], "label": label}
    axes.plot(x, y, DASHES[(number + number // 6) % 6], **style)


def _title(document: Mapping[str, Any], what: str) -> str:
    return f"{document['manifest']['binding']['device_kind']}: {what}"
