"""The program called within this process, on an experiment of a second, and how it ended."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from refusals import assert_names

from jaxmlp.cli import main

ROOT = Path(__file__).parent.parent
QUICKSTART = str(ROOT / "experiments" / "quickstart.py")
SMALL = ("--model.hidden-sizes", "16", "--epochs", "1")
"""Flags with which the quickstart trains in about a second."""


class Ended(NamedTuple):
    """How the program ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def first_line(self) -> str:
        return self.stderr.partition("\n")[0]

    @property
    def document(self) -> dict[str, Any]:
        """All of stdout, as one JSON document."""
        document: dict[str, Any] = json.loads(self.stdout)
        return document


Program = Callable[..., Ended]


def assert_refused(ended: Ended, code: int, *values: object) -> None:
    """The program ended with this exit code, and the first line on stderr names each value."""
    assert ended.code == code, ended
    assert "Traceback" not in ended.stderr
    assert_names(ended.first_line, *values)


def sweep_quickstart(out: Path, largest_rate: str) -> Path:
    """Two seeds of six settings, on one hidden layer of 8 units; no runs are kept."""
    small = ("--model.hidden-sizes", "8", "--epochs", "2", "--verbose", "0", "--seeds", "0:2")
    vary = ("--set", f"optimizer.learning-rate=0.001,0.003,{largest_rate}", "--set", "batch-size=100,200")
    assert main(["sweep", QUICKSTART, *small, *vary, "--out", str(out)]) == 0
    return out


@pytest.fixture
def program(capsys: pytest.CaptureFixture[str]) -> Program:
    def run(*argv: str) -> Ended:
        capsys.readouterr()
        return Ended(main(argv), *capsys.readouterr())

    return run
