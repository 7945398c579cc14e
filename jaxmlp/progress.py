"""What people see of a run while it trains: a line an epoch, and on a terminal a live one below them."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Literal, TypeAlias

from jaxmlp.errors import printable
from jaxmlp.history import EpochRecord

Verbose: TypeAlias = Literal["auto", "0", "1", "2"]
REDRAWS_PER_S = 10


class Progress:
    """What `fit` tells while it runs; override what you want to hear."""

    def note(self, text: str) -> None:
        """A line that people should see once."""

    def steps_done(self, epoch: int, done: int, total: int, loss: float, accuracy: float) -> None:
        """`done` of the epoch's `total` updates are made; the means are the epoch's so far."""

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

    def epoch_ended(self, record: EpochRecord) -> None:
        """Print the line."""
        print(epoch_line(record, self.epochs), flush=True)


def epoch_line(record: EpochRecord, epochs: int) -> str:
    """`Epoch 1/20 - 1.3s - loss: 0.2451 - accuracy: 0.9257 - val_loss: 0.1061 - val_accuracy: 0.9672`, as Keras's."""
    shown = {name: getattr(record, name) for name in ("loss", "accuracy", "val_loss", "val_accuracy")}
    figures = [f"{name}: {value:.4f}" for name, value in shown.items() if value is not None]
    return " - ".join([f"Epoch {record.epoch}/{epochs}", f"{record.seconds:.1f}s", *figures])


@contextlib.contextmanager
def make_progress(verbose: Verbose, epochs: int) -> Iterator[Progress]:
    """What tells `sys.stdout` of a run of so many epochs, while the block lasts.

    Args:
        verbose: `0`: notes alone. `1`: a live line on a terminal. `2`: a line an epoch. `auto`: `1` on a terminal,
            else `2`. Where stdout is no terminal, there is no live line.
        epochs: Of the whole run.
    """
    terminal = sys.stdout.isatty() and os.environ.get("TERM") not in (None, "", "dumb")
    if verbose == "0":
        yield Notes()
    elif verbose == "2" or not terminal:
        yield EpochLines(epochs)
    else:
        with _live_line(epochs) as live:
            yield live


@contextlib.contextmanager
def _live_line(epochs: int) -> Iterator[Progress]:
    from rich import progress
    from rich.console import Console

    console = Console(file=sys.stdout, markup=False, highlight=False)
    bar = progress.Progress(
        progress.TextColumn("Epoch {task.fields[epoch]}/" + str(epochs)),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.description}", markup=False),
        progress.TimeElapsedColumn(),
        console=console,
        refresh_per_second=REDRAWS_PER_S,
        transient=True,
    )
    task = bar.add_task("compiling", total=None, epoch=1)

    class LiveLine(EpochLines):
        def note(self, text: str) -> None:
            console.print(printable(text), soft_wrap=True)

        def steps_done(self, epoch: int, done: int, total: int, loss: float, accuracy: float) -> None:
            description = f"loss: {loss:.4f} - accuracy: {accuracy:.4f}"
            bar.update(task, completed=done, total=total, description=description, epoch=epoch)

        def epoch_ended(self, record: EpochRecord) -> None:
            console.print(epoch_line(record, epochs), soft_wrap=True)

    with bar:
        # rich hides the cursor, and a second Ctrl-C ends the process with no chance to bring it back.
        console.show_cursor(True)
        yield LiveLine(epochs)
