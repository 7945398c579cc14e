"""What do people see of a sweep in training? A line per epoch of a group, and a live line on a terminal."""

from __future__ import annotations

import contextlib
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager

from jaxmlp.engine.history import EpochRecord
from jaxmlp.engine.progress import REDRAWS_PER_S, Verbose, choose
from jaxmlp.errors import printable


class SweepProgress:
    """Receives a sweep's events. Override the methods for the events that you want."""

    def begin(self, updates: int) -> None:
        """The sweep begins, with this many updates left in all lanes together."""

    def note(self, text: str) -> None:
        """A line that people must see once."""

    def updates_done(self, where: str, updates: int) -> None:
        """This many more updates are done. `where` names lanes and epoch."""

    def epoch_ended(self, where: str, seconds: float, records: Sequence[EpochRecord]) -> None:
        """An epoch of a group has ended. `records` has the lanes that continue."""


class SweepNotes(SweepProgress):
    """Prints only the notes."""

    def note(self, text: str) -> None:
        """Print the note at once."""
        print(printable(text), flush=True)


class SweepLines(SweepNotes):
    """Prints a line per epoch, with an estimate of the remaining time."""

    def begin(self, updates: int) -> None:
        """Reset the counts."""
        self.total, self.done, self.began, self.done_then = updates, 0, 0.0, 0

    def updates_done(self, where: str, updates: int) -> None:
        """Count the updates. The estimate's clock starts after the first updates, which include compilation."""
        self.done += updates
        if not self.began:
            self.began, self.done_then = time.perf_counter(), self.done

    def epoch_ended(self, where: str, seconds: float, records: Sequence[EpochRecord]) -> None:
        """Print a line with means over the lanes."""
        self.note(" - ".join([where, f"{seconds:.1f}s", *_means(records), self.left()]))

    def left(self) -> str:
        """The estimated remaining time, such as `about 3 min left`."""
        elapsed, timed = time.perf_counter() - self.began, self.done - self.done_then
        seconds = elapsed / max(timed, 1) * (self.total - self.done)
        for unit, size in (("h", 3600), ("min", 60)):
            if seconds >= 2 * size:
                return f"about {seconds / size:.0f} {unit} left"
        return f"about {seconds:.0f} s left"


def _means(records: Sequence[EpochRecord]) -> list[str]:
    names = records[0].figures if records else ()
    known = {name: [each for record in records if (each := record.figures[name]) is not None] for name in names}
    return [f"{name}: {statistics.fmean(values):.4f}" for name, values in known.items() if values]


def make_progress(verbose: Verbose) -> AbstractContextManager[SweepProgress]:
    """Write a sweep's progress to `sys.stdout` within the block. `verbose` is as in `engine.progress`."""
    how = choose(verbose)
    if how == "1":
        return _live_line()
    return contextlib.nullcontext(SweepNotes() if how == "0" else SweepLines())


@contextlib.contextmanager
def _live_line() -> Iterator[SweepProgress]:
    from rich import progress
    from rich.console import Console

    console = Console(file=sys.stdout, markup=False, highlight=False)
    columns = (progress.TextColumn("{task.description}", markup=False), progress.BarColumn())
    more = (progress.TaskProgressColumn(), progress.TimeElapsedColumn())
    bar = progress.Progress(*columns, *more, console=console, refresh_per_second=REDRAWS_PER_S, transient=True)
    task = bar.add_task("compiling", total=None)

    class LiveLine(SweepLines):
        def note(self, text: str) -> None:
            console.print(printable(text), soft_wrap=True)

        def updates_done(self, where: str, updates: int) -> None:
            super().updates_done(where, updates)
            bar.update(task, completed=self.done, total=self.total, description=f"{where} - {self.left()}")

    with bar:
        console.show_cursor(True)  # As in `jaxmlp.engine.progress`, for a second Ctrl-C.
        yield LiveLine()
