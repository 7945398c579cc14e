"""What do people see of a run in training? A line per epoch, and on a terminal a live line below them."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Literal, TypeAlias, get_args

from jaxmlp.engine.history import EpochRecord
from jaxmlp.errors import ConfigError, printable

Verbose: TypeAlias = Literal["auto", "0", "1", "2", 0, 1, 2]
REDRAWS_PER_S = 5
"""Redraws of the live line per second, each about 1 ms. New figures come four times a second (`loop.CHUNK_S`)."""
NARROW = 72
"""Columns below which the live line has no bar, clock or accuracy."""
LONG_S = 2.0
"""Seconds after which a compilation is announced."""


class Progress:
    """Receives a run's events from `fit`. Override the methods for the events that you want."""

    def note(self, text: str) -> None:
        """A line that people must see once."""

    def compiling(self) -> AbstractContextManager[None]:
        """The programs are compiled within the block."""
        return contextlib.nullcontext()

    def steps_done(self, epoch: int, done: int, total: int, figures: Mapping[str, float]) -> None:
        """`done` of the epoch's `total` updates are made. The figures cover the epoch so far."""

    def epoch_ended(self, record: EpochRecord) -> None:
        """An epoch has ended and is recorded."""


class Notes(Progress):
    """Prints only the notes."""

    def note(self, text: str) -> None:
        """Print the note at once."""
        print(printable(text), flush=True)


class EpochLines(Notes):
    """Prints a line per epoch without control characters, for log files."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    @contextlib.contextmanager
    def compiling(self) -> Iterator[None]:
        """Announce the compilation if it takes long."""
        timer = threading.Timer(LONG_S, self._announce)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _announce(self) -> None:
        with contextlib.suppress(OSError):  # The next line raises it in the main thread, where it ends the run.
            self.note("compiling: the first start with these shapes takes longer")

    def epoch_ended(self, record: EpochRecord) -> None:
        """Print the epoch's line."""
        print(epoch_line(record, self.epochs), flush=True)


def folded(line: str, width: int) -> str:
    """The line, broken before figures that do not fit the width."""
    lines = [""]
    for part in line.split(" - "):
        joined = f"{lines[-1]} - {part}" if lines[-1] else part
        if len(joined) <= width or not lines[-1]:
            lines[-1] = joined
        else:
            lines.append(f"  {part}")
    return "\n".join(lines)


def epoch_line(record: EpochRecord, epochs: int) -> str:
    """A line as Keras prints it: `Epoch 1/20 - 1.3s - loss: 0.2451 - accuracy: 0.9257 - val_loss: 0.1061`."""
    figures = [f"{name}: {value:.4f}" for name, value in record.figures.items() if value is not None]
    return " - ".join([f"Epoch {record.epoch}/{epochs}", f"{record.seconds:.1f}s", *figures])


def make_progress(verbose: Verbose, epochs: int) -> AbstractContextManager[Progress]:
    """Write a run's progress to `sys.stdout` within the block.

    Args:
        verbose: `0`: only notes. `1`: a live line on a terminal. `2`: a line per epoch. `auto`: `1` on a terminal, else
            `2`. If stdout is not a terminal, there is no live line.
        epochs: Number of epochs in the whole run.

    Raises:
        ConfigError: `verbose` has another value.
    """
    how = choose(verbose)
    if how == "1":
        return _live_line(epochs)
    return contextlib.nullcontext(Notes() if how == "0" else EpochLines(epochs))


def choose(verbose: Verbose) -> Literal["0", "1", "2"]:
    """The level of output for this `sys.stdout`.

    Raises:
        ConfigError: `verbose` has another value.
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

    class LiveLine(Progress):  # `compiling` does nothing, because the bar says "compiling" until the first update.
        def note(self, text: str) -> None:
            console.print(printable(text), soft_wrap=True)

        def steps_done(self, epoch: int, done: int, total: int, figures: Mapping[str, float]) -> None:
            shown = [f"{name}: {value:.4f}" for name, value in figures.items()][: None if wide else 1]
            steps = f"{done:{len(str(total))}}/{total}"
            bar.update(task, completed=done, total=total, description=" - ".join(shown), epoch=epoch, steps=steps)

        def epoch_ended(self, record: EpochRecord) -> None:
            console.print(folded(epoch_line(record, epochs), console.width), soft_wrap=True)

    with bar:
        # rich hides the cursor, but a second Ctrl-C ends the process without a chance to show it again.
        console.show_cursor(True)
        yield LiveLine()
