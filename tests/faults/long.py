"""2,000 epochs with a checkpoint five times a second, watched: `python tests/faults/long.py [EPOCHS]`.

Writes what it saw to `docs/long.json`, and draws it to `docs/long.svg`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

DOCS = Path(__file__).parents[2] / "docs"
WARM_S = 5.0
"""From the start, in which programs are compiled and buffers grow."""


class Sample(NamedTuple):
    """What the process and its run directory were like at a moment."""

    second: float
    epochs: int
    cpu_s: float
    """Of the process so far: unlike the seconds, these are not those of others on the machine."""
    memory_mb: float
    handles: int
    checkpoints: int
    checkpoints_mb: float


def sample(process: int, run: Path, second: float) -> Sample:
    """Look at a process, without disturbing it."""
    status = Path(f"/proc/{process}/status").read_text()
    times = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
    resident = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    files = {path: path.stat().st_size for path in (run / "checkpoints").glob("step-*") if path.exists()}
    return Sample(
        second=second,
        epochs=(run / "metrics.jsonl").read_bytes().count(b"\n"),
        cpu_s=sum(map(int, times)) / os.sysconf("SC_CLK_TCK"),
        memory_mb=int(resident.split()[1]) / 1024,
        handles=len(os.listdir(f"/proc/{process}/fd")),
        checkpoints=len(files),
        checkpoints_mb=sum(files.values()) / 2**20,
    )


def watch(epochs: int) -> list[Sample]:
    """Train so long, and look every half second."""
    samples = []
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        words = ["train", "experiments/quickstart.py", "--epochs", epochs, "--batch-size", 500, "--checkpoint-s", 0.2]
        command = [sys.executable, "-m", "jaxmlp", *map(str, words), "--model.hidden-sizes", "64", "--out", str(run)]
        began = time.monotonic()
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            while process.poll() is None:
                time.sleep(0.5)
                second = time.monotonic() - began
                if (run / "metrics.jsonl").exists() and second > WARM_S:
                    try:
                        samples.append(sample(process.pid, run, second))
                    except (FileNotFoundError, ProcessLookupError, StopIteration):
                        continue  # A checkpoint was removed, or the process has ended, in between.
        assert process.returncode == 0
    return samples


def told(samples: list[Sample]) -> dict[str, Any]:
    """The figures: at the end of every tenth of the epochs, and the largest."""
    columns = {name: np.array([getattr(each, name) for each in samples]) for name in Sample._fields}
    tenths = np.searchsorted(columns["epochs"], np.linspace(columns["epochs"][0], columns["epochs"][-1], 11))
    cpu_ms = 1000 * np.diff(columns["cpu_s"][tenths]) / np.diff(columns["epochs"][tenths])
    figures: dict[str, Any] = {"seconds": round(columns["second"][-1], 1), "samples": len(samples)}
    figures["cpu_ms_an_epoch"] = cpu_ms.round(2).tolist()
    for name in ("memory_mb", "handles", "checkpoints", "checkpoints_mb"):
        values = columns[name]
        figures[name] = values[tenths[1:]].round(2).tolist()
        figures[f"largest_{name}"] = round(float(values.max()), 2)
    return figures


def draw(samples: list[Sample], path: Path) -> None:
    """Memory, handles, checkpoints and pace, one above the other, over time."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams |= {"svg.hashsalt": "jaxmlp", "font.size": 8, "svg.fonttype": "none"}
    from matplotlib import pyplot

    seconds = [each.second for each in samples]
    rows: dict[str, list[float]] = {
        "memory, MB": [each.memory_mb for each in samples],
        "open handles": [each.handles for each in samples],
        "checkpoints, MB": [each.checkpoints_mb for each in samples],
        "epochs done": [each.epochs for each in samples],
    }
    figure, axes = pyplot.subplots(len(rows), 1, sharex=True, figsize=(6, 5), layout="constrained")
    for axis, (name, values) in zip(axes, rows.items(), strict=True):
        axis.plot(seconds, values, linewidth=1, color="#0072b2")
        axis.set(ylabel=name, ylim=(0, 1.15 * max(values)))
        axis.grid(alpha=0.3)
    axes[-1].set_xlabel("seconds")
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Train, tell, and draw."""
    samples = watch(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
    figures = told(samples)
    (DOCS / "long.json").write_text(json.dumps(figures, indent=1) + "\n")
    draw(samples, DOCS / "long.svg")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
