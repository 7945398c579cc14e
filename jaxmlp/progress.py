"""What people see of a run while it trains: a line an epoch, and on a terminal a live one below them."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Literal, TypeAlias, get_args

from jaxmlp.errors import ConfigError, printable
from jaxmlp.history import EpochRecord

Verbose: TypeAlias = Literal["auto", "0", "1", "2", 0, 1, 2]
REDRAWS_PER_S = 5
"""Of the live line, about 1 ms each; there are new figures four times a second (`loop.CHUNK_S`)."""
NARROW = 72
"""Columns below which the live line has no bar, clock and accuracy."""
LONG_S = 2.0
"""A compile that takes longer is told of in a line."""


class Progress:
    """What `fit` tells while it runs; override what you want to hear."""

    def note(self, text: str) -> None:
        """A line that people should see once."""

    def compiling(self) -> AbstractContextManager[None]:
        """The programs are compiled while the block lasts."""
        return contextlib.nullcontext()

    def steps_done(self, epoch: int, done: int, total: int, figures: Mapping[str, float]) -> None:
        """`done` of the epoch's `total` updates are made; the figures are the epoch's so far."""

    def epoch_ended(self, record: EpochRecord) -> None:
        """An epoch is over and recorded."""


class Notes(Progress):
    """The notes alone."""

    def note(self, text: str) -> None:
        """Print it at once."""
        print(printable(text), flush=True)


class EpochLines(Notes):
    """A line an epoch, without control characters: for log files."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def compiling(self) -> AbstractContextManager[None]:
        """Say so where it takes long."""
        return self._announced()

    @contextlib.contextmanager
    def _announced(self) -> Iterator[None]:
        timer = threading.Timer(LONG_S, self.note, ["compiling: the first start with these shapes takes longer"])
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def epoch_ended(self, record: EpochRecord) -> None:
        """Print the line."""
        print(epoch_line(record, self.epochs), flush=True)


def folded(line: str, width: int) -> str:
    """The line, broken before the figures that do not fit."""
    lines = [""]
    for part in line.split(" - "):
        joined = f"{lines[-1]} - {part}" if lines[-1] else part
        if len(joined) <= width or not lines[-1]:
            lines[-1] = joined
        else:
            lines.append(f"  {part}")
    return "\n".join(lines)


def epoch_line(record: EpochRecord, epochs: int) -> str:
    """`Epoch 1/20 - 1.3s - loss: 0.2451 - accuracy: 0.9257 - val_loss: 0.1061 - val_accuracy: 0.9672`, as Keras's."""
    figures = [f"{name}: {value:.4f}" for name, value in record.figures.items() if value is not None]
    return " - ".join([f"Epoch {record.epoch}/{epochs}", f"{record.seconds:.1f}s", *figures])


@contextlib.contextmanager
def make_progress(verbose: Verbose, epochs: int) -> Iterator[Progress]:
    """What tells `sys.stdout` of a run of so many epochs, while the block lasts.

    Args:
        verbose: `0`: notes alone. `1`: a live line on a terminal. `2`: a line an epoch. `auto`: `1` on a terminal,
            else `2`. Where stdout is no terminal, there is no live line.
        epochs: Of the whole run.

    Raises:
        ConfigError: `verbose` is none of these.
    """
    how = choose(verbose)
    if how == "0":
        yield Notes()
    elif how == "2":
        yield EpochLines(epochs)
    else:
        with _live_line(epochs) as live:
            yield live


def choose(verbose: Verbose) -> Literal["0", "1", "2"]:
    """How much is told, on this `sys.stdout`.

    Raises:
        ConfigError: `verbose` is none of what there is.
    """
    if verbose not in get_args(Verbose) or isinstance(verbose, bool):
        raise ConfigError("verbose", f"must be auto, 0, 1 or 2, got {verbose!r}")
    if verbose in ("0", 0):
        return "0"
    terminal = sys.stdout.isatty() and os.environ.get("TERM") not in (None, "", "dumb")
    return "2" if verbose in ("2", 2) or not terminal else "1"


@contextlib.contextmanager
def _live_line(epochs: int) -> Iterator[Progress]:
    from rich import progress
    from rich.console import Console

    console = Console(file=sys.stdout, markup=False, highlight=False)
    wide = console.width >= NARROW
    names = ["Epoch {task.fields[epoch]}/" + str(epochs), "{task.fields[steps]}", "{task.description}"]
    epoch, steps, figures = (progress.TextColumn(name, markup=False) for name in names)
    columns = [epoch, progress.BarColumn(), steps, figures, progress.TimeElapsedColumn()]
    bar = progress.Progress(
        *(columns if wide else (epoch, steps, figures)),
        console=console,
        refresh_per_second=REDRAWS_PER_S,
        transient=True,
    )
    task = bar.add_task("compiling", total=None, epoch=1, steps="")

    class LiveLine(EpochLines):
        def note(self, text: str) -> None:
            console.print(printable(text), soft_wrap=True)

        def compiling(self) -> AbstractContextManager[None]:
            return contextlib.nullcontext()  # The line says so from its beginning.

        def steps_done(self, epoch: int, done: int, total: int, figures: Mapping[str, float]) -> None:
            shown = [f"{name}: {value:.4f}" for name, value in figures.items()][: None if wide else 1]
            steps = f"{done:{len(str(total))}}/{total}"
            bar.update(task, completed=done, total=total, description=" - ".join(shown), epoch=epoch, steps=steps)

        def epoch_ended(self, record: EpochRecord) -> None:
            console.print(folded(epoch_line(record, epochs), console.width), soft_wrap=True)

    with bar:
        # rich hides the cursor, and a second Ctrl-C ends the process with no chance to bring it back.
        console.show_cursor(True)
        yield LiveLine(epochs)
