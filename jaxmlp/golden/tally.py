"""What did one pytest session do with golden records? The counts of each worker, and their sum."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytest

FOLDER = "golden_bits"
"""Name of the folder, beside the tests, that holds their records."""

Outcome = Literal["missing", "new", "changed", "same", "checked"]
"""No record to compare with; recorded for the first time; recorded again with different bits; with the same;
compared."""


class Tests(NamedTuple):
    """The tests of one file, by their names in the file."""

    exist: set[str]
    ran: set[str]
    """Tests that finished, with any result."""
    passed: set[str]


class Check(NamedTuple):
    """One call of `golden_bits.check`."""

    test_file: str
    test: str
    """Name of the test in its file, such as `TestStep::test_update[8]`."""
    name: str | None
    """Name of the check in the test."""
    portable: bool
    platform: str
    """Platform as `records.platform_tag` names it."""
    digest: str
    outcome: Outcome


def id_in_file(node: pytest.Item) -> str:
    """Name of a test without its file, such as `TestStep::test_update[8]`.

    It does not come from the node's id, because pytest-xdist may add a group to the id.
    """
    chain = node.listchain()
    last_file = max((i for i, each in enumerate(chain) if isinstance(each, pytest.File)), default=0)
    return "::".join(each.name for each in chain[last_file + 1 :])


def folder_of(test_file: Path) -> Path:
    """The folder with the records of a test file."""
    return test_file.parent / FOLDER / (test_file.stem if test_file.suffix == ".py" else test_file.name)


@dataclass
class Tally:
    """What was collected, run and checked."""

    tests: dict[str, Tests] = field(default_factory=dict)
    """Tests by the path of their file."""
    checks: list[Check] = field(default_factory=list)
    in_part: bool = False
    """Whether some tests of the collected files may be unknown."""

    def file(self, path: Path | str) -> Tests:
        """The tests of a file, initially none."""
        return self.tests.setdefault(str(path), Tests(set(), set(), set()))

    def forget_others(self) -> None:
        """Keep only test files that have a folder of records beside them."""
        folders = {Path(path).parent for path in self.tests}
        with_records = {folder for folder in folders if (folder / FOLDER).is_dir()}
        self.tests = {path: tests for path, tests in self.tests.items() if Path(path).parent in with_records}

    def as_json(self) -> dict[str, Any]:
        """The tally as plain values that a worker can send."""
        tests = {path: [sorted(names) for names in each] for path, each in self.tests.items()}
        return {"tests": tests, "checks": [list(each) for each in self.checks], "in_part": self.in_part}

    def add(self, sent: dict[str, Any]) -> None:
        """Add what a worker sent, if it sent anything."""
        for path, sets in sent.get("tests", {}).items():
            for mine, names in zip(self.file(path), sets, strict=True):
                mine.update(names)
        self.checks += [Check(*each) for each in sent.get("checks", [])]
        self.in_part |= sent.get("in_part", False)
