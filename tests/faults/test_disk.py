"""Every write, sync, rename and removal of a command fails in turn: it ends with 8, or goes on; nothing is lost."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from faults import scenarios
from faults.conftest import some
from faults.inject import DEATHS, ERRORS, Death, Error, Injector, injected
from jaxmlp.data import official
from jaxmlp.engine import loop
from jaxmlp.sweep import group

FAULTS = Path(__file__).parent


class Laid(NamedTuple):
    """A scenario that was played once, undisturbed."""

    scenario: scenarios.Scenario
    places: Path
    changes: list[str]
    wanted: Any


PLAYED = [scenarios.Scenario, scenarios.Resume, scenarios.Sweep, scenarios.Prepare]


@pytest.fixture(scope="module", params=PLAYED)
def laid(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laid]:
    scenario = request.param()
    places = tmp_path_factory.mktemp("faults")
    (places / "template").mkdir()
    with pytest.MonkeyPatch.context() as patched:
        # As many updates a call however fast the machine is, so that the changes are the same every time.
        patched.setattr(loop.Loop, "chunk_s", 1e6)
        patched.setattr(group.LaneGroup, "chunk_s", 1e6)
        patched.setitem(official.SOURCES, "mnist", official.SOURCES["mnist"])  # Restores mnist afterwards.
        # These faults cut no power, and waiting for the disk is slow.
        patched.setattr(os, "fsync", lambda descriptor: None)
        scenario.lay(places / "template")
        yield play(scenario, places)


def play(scenario: scenarios.Scenario, places: Path) -> Laid:
    place = places / "undisturbed"
    shutil.copytree(places / "template", place)
    with injected(Injector(place)) as injector:
        scenarios.done(*scenario.command(place))
    return Laid(scenario, places, injector.changes, scenario.result(place))


@pytest.mark.parametrize("fault", [*ERRORS, *DEATHS])
def test_a_fault_at_any_change_loses_nothing(
    laid: Laid, fault: Error | Death, tried: Callable[[Counter[str]], None]
) -> None:
    picked = some(range(len(laid.changes)))
    counts = scenarios.break_each(laid.scenario, fault, laid.places, laid.wanted, picked)
    assert counts.total() == len(picked)
    tried(counts)


UNPRIVILEGED = "setpriv --bounding-set=-dac_override,-dac_read_search" if os.geteuid() == 0 else ""
"""Begins a command for which file modes hold although root runs it."""
MEANS = {
    "a limit on file sizes": ("ulimit -S -f 40", "ulimit -S -f unlimited"),
    "no bytes at all": ("ulimit -S -f 0", "ulimit -S -f unlimited"),
    "a folder that is read only": ("mkdir run; chmod 500 run", "chmod 700 run"),
    "checkpoints that are read only": (
        "$BREAK . 90 kill train $EXPERIMENT --checkpoint-s 0 --out run; chmod 500 run/checkpoints",
        "chmod 700 run/checkpoints",
    ),
    "a full disk": (
        "mount -t tmpfs -o size=600k tmpfs . && cd $PWD && head -c 450k /dev/zero >ballast",
        "rm ballast",
    ),
}
"""What makes the system itself refuse, in the folder of the run, and what ends it."""
SCRIPT = """
cd "$1"
{before}
if [ -e run/config.json ]; then WORDS="--resume run"; else WORDS="$EXPERIMENT --out run"; fi
$TRAIN $WORDS
code=$?
{after}
if [ -e run/config.json ]; then WORDS="--resume run"; else WORDS="$EXPERIMENT --out run"; fi
$TRAIN $WORDS || exit 99
cp -r run "$2"
exit $code
"""


@pytest.mark.slow
@pytest.mark.parametrize("means", some(list(MEANS)))
def test_where_the_system_refuses_the_run_ends_with_8_and_goes_on_later(
    means: str, tmp_path: Path, tried: Callable[[Counter[str]], None]
) -> None:
    before, after = MEANS[means]
    private = ["unshare", "--user", "--map-root-user", "--mount"] if means == "a full disk" else UNPRIVILEGED.split()
    if means == "a full disk" and subprocess.run([*private, "true"], check=False).returncode:
        pytest.skip("needs a mount of its own, which this machine does not allow")
    (tmp_path / "whole").mkdir()
    wanted = play_real(tmp_path / "whole")
    (tmp_path / "place").mkdir()
    start, inject = (shlex.join([sys.executable, str(FAULTS / name)]) for name in ("start.py", "inject.py"))
    program = {"TRAIN": f"{start} train --checkpoint-s 0", "BREAK": inject, "EXPERIMENT": scenarios.TINY}
    words = ["bash", "-c", SCRIPT.format(before=before, after=after), "bash", tmp_path / "place", tmp_path]
    ended = subprocess.run(
        [*private, *map(str, words)], env=os.environ | program, capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 8, ended.stderr
    assert ended.stderr and "Traceback" not in ended.stderr
    assert scenarios.logs(tmp_path / "run") == wanted
    scenarios.done("verify", tmp_path / "run")
    tried(Counter({"ended 8": 1}))


def play_real(place: Path) -> Any:
    """What an undisturbed run leaves."""
    scenarios.done("train", scenarios.TINY, "--checkpoint-s", "0", "--out", place / "run")
    return scenarios.logs(place / "run")
