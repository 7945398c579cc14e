"""What one pytest session did with golden records: what each worker saw, and the sum of all workers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytest

FOLDER = "golden_bits"
"""The name of the folder beside the tests that has their records."""

Outcome = Literal["missing", "new", "changed", "same", "checked"]
"""No record to compare with; recorded for the first time; recorded anew with other bits, or with the same; compared."""


class Tests(NamedTuple):
    """The tests of one file, by their names in the file."""

    exist: set[str]
    ran: set[str]
    """Finished, whatever came out."""
    passed: set[str]


class Check(NamedTuple):
    """One call of `golden_bits.check`."""

    test_file: str
    test: str
    """The name in the file, such as `TestStep::test_update[8]`."""
    name: str | None
    """The check's own name in the test."""
    portable: bool
    platform: str
    """As `records.platform_tag` names it."""
    digest: str
    outcome: Outcome


def id_in_file(node: pytest.Item) -> str:
    """The name of a test without its file: `TestStep::test_update[8]`.

    It does not come from the node's id, to which pytest-xdist may add a group.
    """
    chain = node.listchain()
    last_file = max((i for i, each in enumerate(chain) if isinstance(each, pytest.File)), default=0)
    return "::".join(each.name for each in chain[last_file + 1 :])


def folder_of(test_file: Path) -> Path:
    """The folder with the records of a test file."""
    return test_file.parent / FOLDER / (test_file.stem if test_file.suffix == ".py" else test_file.name)


@dataclass
class Tally:
    """What was collected, what ran and what was checked."""

    tests: dict[str, Tests] = field(default_factory=dict)
    """By the path of the test file."""
    checks: list[Check] = field(default_factory=list)
    in_part: bool = False
    """Whether some tests of the collected files may be unknown."""

    def file(self, path: Path | str) -> Tests:
        """The tests of a file, none at first."""
        return self.tests.setdefault(str(path), Tests(set(), set(), set()))

    def forget_others(self) -> None:
        """Keep only the files of tests that have a folder of records beside them."""
        folders = {Path(path).parent for path in self.tests}
        with_records = {folder for folder in folders if (folder / FOLDER).is_dir()}
        self.tests = {path: tests for path, tests in self.tests.items() if Path(path).parent in with_records}

    def as_json(self) -> dict[str, Any]:
        """Plain values that a worker can send."""
        tests = {path: [sorted(names) for names in each] for path, each in self.tests.items()}
        return {"tests": tests, "checks": [list(each) for each in self.checks], "in_part": self.in_part}

    def add(self, sent: dict[str, Any]) -> None:
        """Add what a worker sent, or nothing where it sent nothing."""
        for path, sets in sent.get("tests", {}).items():
            for mine, names in zip(self.file(path), sets, strict=True):
                mine.update(names)
        self.checks += [Check(*each) for each in sent.get("checks", [])]
        self.in_part |= sent.get("in_part", False)
