"""The program called within this process, on an experiment of a second, and how it ended."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

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


@pytest.fixture
def program(capsys: pytest.CaptureFixture[str]) -> Program:
    def run(*argv: str) -> Ended:
        capsys.readouterr()
        return Ended(main(argv), *capsys.readouterr())

    return run
