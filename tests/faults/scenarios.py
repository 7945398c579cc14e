"""What is broken, what people do next, and what must be there in the end."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from mnist_stand_in import stand_in_source, write_stand_in

from faults import tiny
from faults.inject import ERRORS, Dead, Death, Error, Injector, injected
from jaxmlp.cli import main
from jaxmlp.data import official
from jaxmlp.errors import DiskError
from jaxmlp.run.directory import RunDirectory

TINY = str(tiny.__file__)


class Ended(NamedTuple):
    """How a command ended; without a code where it was killed."""

    code: int | None
    said: str


def run(*words: object) -> Ended:
    """The program, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(word) for word in words])
        except Dead:
            code = None
    assert "Traceback" not in out.getvalue() + err.getvalue(), err.getvalue()
    return Ended(code, err.getvalue())


def done(*words: object) -> None:
    """The program, which must end well."""
    ended = run(*words)
    assert ended.code == 0, ended.said


class Scenario:
    """A command in an empty folder: a new run, with a checkpoint after every few updates."""

    def lay(self, place: Path) -> None:
        """What is there before."""

    def command(self, place: Path) -> list[object]:
        """What is broken."""
        return ["train", TINY, "--checkpoint-s", "0", "--digest-every", "4", "--out", place / "run"]

    def again(self, place: Path) -> list[object]:
        """What people do next."""
        if (place / "run" / "config.json").exists():
            return ["train", "--resume", place / "run", "--checkpoint-s", "0", "--digest-every", "4"]
        return self.command(place)

    def kept(self, place: Path, changes: Iterable[str]) -> None:
        """Make sure that no checkpoint is lost that was complete."""
        newest = completed(changes)
        if newest:
            found = RunDirectory.open(place / "run", write=False).newest_checkpoint(lambda _: None)
            assert found and found.step >= newest, f"step {newest} is lost"

    def result(self, place: Path) -> Any:
        """What an undisturbed command leaves, but for times."""
        done("verify", place / "run")
        assert not list(place.rglob(".jaxmlp-*")), "a temporary file is left"
        return logs(place / "run")


def completed(changes: Iterable[str]) -> int:
    """The step of the last checkpoint whose name was synced."""
    newest, waiting = 0, 0
    for change in list(changes)[:-1]:
        if written := re.fullmatch(r"rename run/checkpoints/step-(\d+)\.safetensors", change):
            waiting = int(written[1])
        elif change == "fsync run/checkpoints":
            newest = waiting
    return newest


def logs(path: Path) -> list[Any]:
    """The logs of a finished run, without times, its last state and its best step."""
    with RunDirectory.open(path, write=False) as stored:
        assert stored.status == "finished"
        metrics = [{name: value for name, value in line.items() if name != "seconds"} for line in stored.epochs()]
        result, newest, best = (
            stored.manifest["result"],
            stored.newest_checkpoint(pytest.fail),
            stored.checkpoints.best(),
        )
        assert newest and newest.step == result["steps"]
        return [metrics, stored.digests(), stored.trace(), result["state_sha256"], best and best.step]


class Resume(Scenario):
    """A killed run goes on: its newest checkpoint is damaged, and it was writing another."""

    def lay(self, place: Path) -> None:
        """A run that was killed in its second epoch."""
        injector = Injector(place, fault="kill")
        with injected(injector):
            super_command = Scenario.command(self, place)
            done(*super_command)
        at = [n for n, change in enumerate(injector.changes) if change.startswith("rename run/checkpoints/step-")][4]
        shutil.rmtree(place / "run")
        with injected(Injector(place, at, "torn")):
            assert run(*super_command).code is None
        newest = RunDirectory.open(place / "run", write=False).checkpoints.paths()[0]
        newest.write_bytes(newest.read_bytes()[:-1])

    def command(self, place: Path) -> list[object]:
        """Go on."""
        return self.again(place)


class Sweep(Scenario):
    """A sweep of two seeds that leaves a run directory of each."""

    def command(self, place: Path) -> list[object]:
        """A new sweep."""
        return ["sweep", TINY, "--seeds", "0:2", "--keep-runs", "--checkpoint-s", "0", "--out", place / "sweep"]

    def again(self, place: Path) -> list[object]:
        """Go on with it."""
        if (place / "sweep" / "sweep.json").exists():
            return ["sweep", "--resume", place / "sweep", "--checkpoint-s", "0"]
        return self.command(place)

    def kept(self, place: Path, changes: Iterable[str]) -> None:
        """Its checkpoints go when their lanes have ended."""

    def result(self, place: Path) -> Any:
        """Each lane's bits, from the sweep's result and from its run directory."""
        lanes = json.loads((place / "sweep" / "result.json").read_text())["runs"]
        assert not list(place.rglob(".jaxmlp-*")), "a temporary file is left"
        return [[lane["params_sha256"] for lane in lanes], *map(logs, sorted((place / "sweep" / "runs").iterdir()))]


class Prepare(Scenario):
    """Data is prepared from four files, by tensorflow-datasets; its C++ code writes past the injector."""

    def lay(self, place: Path) -> None:
        """The files of a stand-in for MNIST, which is `mnist` from now on."""
        official.SOURCES["mnist"] = stand_in_source(write_stand_in(place / "files"))

    def command(self, place: Path) -> list[object]:
        """Prepare it, or what is left."""
        return ["data", "prepare", "mnist", "--manual-dir", place / "files", "--data-dir", place / "data"]

    def again(self, place: Path) -> list[object]:
        """The same."""
        return self.command(place)

    def kept(self, place: Path, changes: Iterable[str]) -> None:
        """No checkpoints here."""

    def result(self, place: Path) -> Any:
        """The copy's bytes; a folder `.making-*` that could not be removed goes with the next preparation."""
        return (place / "data" / "mnist.idx").read_bytes()


def break_each(
    scenario: Scenario, fault: Error | Death, places: Path, wanted: Any, picked: Iterable[int]
) -> Counter[str]:
    """Break these changes of a command, one a try, and go on.

    Args:
        scenario: The command.
        fault: See `inject`.
        places: An empty folder, or one with `template`, from which every try starts.
        wanted: What must be there in the end.
        picked: Numbers of changes.
    """
    counts: Counter[str] = Counter()
    for at in picked:
        place = places / f"{fault}-{at}"
        if (places / "template").exists():
            shutil.copytree(places / "template", place)
        else:
            place.mkdir()
        with injected(Injector(place, at, fault)) as injector:
            ended = run(*scenario.command(place))
        if not injector.reached:
            continue
        told = f"{fault} at change {at}, {injector.changes[at]}: ended {ended.code}, {ended.said}"
        try:
            if fault in ERRORS:
                assert ended.code in (0, DiskError.exit_code), "the exit code"
                assert ended.code == 0 or ended.said.strip(), "no message"
            else:
                assert ended.code is None, "it lives"
            scenario.kept(place, injector.changes)
            if ended.code == 0:
                assert scenario.result(place) == wanted, "another result"
            else:
                done(*scenario.again(place))
                assert scenario.result(place) == wanted, "another result after it went on"
        except Exception as error:
            error.add_note(told)
            raise
        counts[f"ended {ended.code}" if fault in ERRORS else "killed"] += 1
        shutil.rmtree(place)
    return counts
