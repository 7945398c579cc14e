"""A terminal has one live line below the epochs' lines; anything else has these lines alone."""

from __future__ import annotations

import contextlib
import io
import os
import re
import threading
import time
from dataclasses import replace

import pytest

from jaxmlp.engine import progress as progress_of
from jaxmlp.engine.history import EpochRecord
from jaxmlp.engine.progress import Progress, epoch_line, folded, make_progress

TRAINED = {"loss": 0.24512, "accuracy": 0.92571}
RECORD = EpochRecord(1, 469, {**TRAINED, "val_loss": 0.10611, "val_accuracy": 0.96721}, 0.001, 1.31)
LINE = "Epoch 1/20 - 1.3s - loss: 0.2451 - accuracy: 0.9257 - val_loss: 0.1061 - val_accuracy: 0.9672"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    return Terminal()


def timers(limit_s: float) -> None:
    """Wait for the timers' threads to end."""
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer):
            thread.join(limit_s)


def tell(progress: Progress) -> None:
    progress.note("a note")
    progress.steps_done(1, 234, 469, {"loss": 0.5, "accuracy": 0.8125})
    progress.epoch_ended(RECORD)


def test_an_epochs_line_is_kerass() -> None:
    assert epoch_line(RECORD, 20) == LINE
    assert epoch_line(replace(RECORD, figures=TRAINED), 20) == LINE.partition(" - val_loss")[0]


@pytest.mark.parametrize(
    ("verbose", "text"), [("0", "a note\n"), *((v, f"a note\n{LINE}\n") for v in ("auto", "1", "2"))]
)
def test_off_a_terminal_there_are_lines_alone(verbose: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with make_progress(verbose, 20) as progress:
        tell(progress)
    assert capsys.readouterr().out == text


@pytest.mark.parametrize(("long_s", "lines"), [(0, 1), (60, 0)])
def test_off_a_terminal_a_long_compile_says_so_in_a_line(
    long_s: float, lines: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress_of, "LONG_S", long_s)
    with make_progress("2", 20) as progress, progress.compiling():
        timers(0.0 if long_s else 10.0)
    assert capsys.readouterr().out.count("compiling") == lines


def test_a_reader_that_leaves_while_a_run_compiles_is_met_by_the_next_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error in the announcement's thread would print a traceback, which pytest counts as a failure."""
    monkeypatch.setattr(progress_of, "LONG_S", 0)
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as left:
        with contextlib.redirect_stdout(left), make_progress("2", 20) as progress:
            with progress.compiling():
                timers(10.0)
            with pytest.raises(BrokenPipeError):
                progress.epoch_ended(RECORD)
        os.dup2(os.open(os.devnull, os.O_WRONLY), writer)  # What is left is written when the file is closed.


@pytest.mark.parametrize("verbose", ["auto", "1"])
def test_on_a_terminal_the_live_line_shows_the_step_and_leaves_the_lines_and_the_cursor(
    verbose: str, terminal: Terminal
) -> None:
    with contextlib.redirect_stdout(terminal), make_progress(verbose, 20) as progress:
        # A second Ctrl-C may end the process at any moment.
        assert terminal.getvalue().rindex("\x1b[?25h") > terminal.getvalue().rindex("\x1b[?25l")
        tell(progress)
    text = terminal.getvalue()
    assert "234/469" in text and "loss: 0.5000 - accuracy: 0.8125" in text
    assert text.index("a note\n") < text.index(f"{LINE}\n")
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


@pytest.mark.parametrize(("verbose", "term"), [("2", "xterm"), ("auto", "dumb"), ("auto", "")])
def test_a_terminal_that_cannot_draw_or_should_not_has_lines_alone(
    verbose: str, term: str, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", term)
    with contextlib.redirect_stdout(terminal), make_progress(verbose, 20) as progress:
        tell(progress)
    assert terminal.getvalue() == f"a note\n{LINE}\n"


def test_however_often_it_is_told_the_live_line_is_drawn_at_most_ten_times_a_second(terminal: Terminal) -> None:
    began = time.monotonic()
    with contextlib.redirect_stdout(terminal), make_progress("1", 20) as progress:
        for step in range(20_000):
            progress.steps_done(1, step, 20_000, {"loss": 0.5, "accuracy": 0.8125})
        elapsed = time.monotonic() - began
    # And once as it comes, and as it goes.
    assert terminal.getvalue().count("Epoch 1/20") <= 10 * elapsed + 4


@pytest.mark.parametrize("no_color", ["", "1"])
def test_the_live_line_has_colours_unless_they_are_unwanted(
    no_color: str, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", no_color)
    with contextlib.redirect_stdout(terminal), make_progress("1", 20) as progress:
        tell(progress)
    assert bool(re.search(r"\x1b\[[\d;]*3[0-9]", terminal.getvalue())) is not bool(no_color)


@pytest.mark.parametrize(("columns", "shown"), [(80, "loss: 0.5000 - accuracy: 0.8125"), (40, "loss: 0.5000")])
def test_lines_fit_the_terminal_and_the_live_one_tells_epoch_step_and_loss_in_it(
    columns: int, shown: str, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    with contextlib.redirect_stdout(terminal), make_progress("1", 100) as progress:
        progress.steps_done(100, 46_900, 46_900, {"loss": 0.5, "accuracy": 0.8125})
        progress.epoch_ended(RECORD)
    drawn = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", terminal.getvalue()).replace("\r", "\n").splitlines()
    assert max(map(len, drawn)) <= columns
    assert any("100/100" in line and "46900/46900" in line and shown in line for line in drawn)
    assert " - ".join(line.strip() for line in drawn if re.match("Epoch 1/.* - |  ", line)) == LINE.replace(
        "/20", "/100"
    )


@pytest.mark.parametrize(
    ("width", "lines"),
    [(100, [LINE]), (60, [LINE.partition(" - val_loss")[0], "  val_loss: 0.1061 - val_accuracy: 0.9672"])],
)
def test_a_line_is_folded_between_its_figures(width: int, lines: list[str]) -> None:
    assert folded(LINE, width) == "\n".join(lines)
