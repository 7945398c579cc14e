"""The logs of a run: a torn last line is ignored and written over, a damaged one before it is named."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import run_stand_in
from refusals import refused
from run_stand_in import append_epochs, save

from jaxmlp.errors import DiskError, RunError
from jaxmlp.run.directory import RunDirectory

path = run_stand_in.path
run = run_stand_in.run


@pytest.mark.parametrize("torn", [b'{"epoch": 3, "lo', b'{"epoch": 3}', b"\0" * 4096])
@pytest.mark.parametrize("name", ["metrics.jsonl", "digests.jsonl"])
def test_the_torn_last_line_of_a_killed_process_is_ignored_and_written_over(
    run: RunDirectory, path: Path, name: str, torn: bytes
) -> None:
    append_epochs(run, 1, 2)
    run.close()
    with open(path / name, "ab") as file:
        file.write(torn)
    read = RunDirectory.open(path, write=False)
    assert [line["epoch"] for line in read.epochs()] == [line["epoch"] for line in read.digests()] == [1, 2]
    with RunDirectory.open(path, write=True) as again:
        append_epochs(again, 3)
        assert [line["epoch"] for line in again.epochs()] == [line["epoch"] for line in again.digests()] == [1, 2, 3]


@pytest.mark.parametrize("line", ["", "{}", "[1]", '{"epoch": "1"}', "[" * 100_000])
def test_a_damaged_line_before_the_last_is_named(run: RunDirectory, path: Path, line: str) -> None:
    append_epochs(run, 1)
    (path / "metrics.jsonl").write_text(f'{{"epoch": 1}}\n{line}\n{{"epoch": 3}}\n')
    with refused(RunError, path / "metrics.jsonl", "line 2"):
        run.epochs()


def test_cutting_back_keeps_the_bytes_of_the_epochs_before(run: RunDirectory, path: Path) -> None:
    append_epochs(run, 1, 2)
    before = [(path / name).read_bytes() for name in ("metrics.jsonl", "digests.jsonl")]
    append_epochs(run, 3, 4)
    run.cut_back(3)
    assert [(path / name).read_bytes() for name in ("metrics.jsonl", "digests.jsonl")] == before
    run.cut_back(1)
    assert run.epochs() == run.digests() == []


def test_the_logs_are_on_the_disk_before_a_checkpoint_that_knows_them(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, path: Path
) -> None:
    names = {file.stat().st_ino: file.name for file in path.iterdir()}
    calls: list[str] = []

    def recorded(descriptor: int) -> None:
        calls.append(names.get(os.fstat(descriptor).st_ino, "checkpoint"))

    monkeypatch.setattr(os, "fsync", recorded)
    save(run, 1)
    assert calls == ["metrics.jsonl", "digests.jsonl", "checkpoint", "checkpoints"]


def test_a_line_that_cannot_be_written_is_told(run: RunDirectory, path: Path) -> None:
    (path / "metrics.jsonl").unlink()
    (path / "metrics.jsonl").mkdir()
    with refused(DiskError, path / "metrics.jsonl", os.strerror(errno.EISDIR)):
        append_epochs(run, 1)
