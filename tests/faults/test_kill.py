"""SIGKILL before, and within, every write of a real process; and no good checkpoint left at all."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from faults import scenarios
from faults.conftest import some
from faults.inject import Injector, injected

Tried = Callable[[Counter[str]], None]
SCENARIO = scenarios.Scenario()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Any]:
    """The changes of an undisturbed run, and what it leaves."""
    place = tmp_path_factory.mktemp("whole")
    with injected(Injector(place)) as injector:
        scenarios.done(*SCENARIO.command(place))
    return injector.changes, SCENARIO.result(place)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["kill", "torn"])
def test_a_process_killed_at_any_write_goes_on_to_the_same_bits(
    fault: str, whole: tuple[list[str], Any], tmp_path: Path, tried: Tried
) -> None:
    changes, wanted = whole
    counts: Counter[str] = Counter()
    for at in some(range(len(changes)), few=1):
        place = tmp_path / f"{fault}-{at}"
        place.mkdir()
        words = [str(word) for word in ("tests/faults/inject.py", place, at, fault, *SCENARIO.command(place))]
        ended = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=120, check=False)
        if ended.returncode == 0:
            assert "nothing was broken" in ended.stderr  # This machine made fewer checkpoints.
            continue
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        scenarios.done(*SCENARIO.again(place))
        assert SCENARIO.result(place) == wanted, f"{fault} at change {at}"
        counts["killed"] += 1
    assert counts["killed"]
    tried(counts)


@pytest.mark.parametrize("damage", ["cut off", "flipped", "empty"])
def test_where_no_checkpoint_is_good_every_command_names_them_all_and_ends_with_5(
    damage: str, tmp_path: Path, tried: Tried
) -> None:
    at = next(n for n, change in enumerate(changes_of_a_run(tmp_path / "dry")) if "step-00000008" in change)
    with injected(Injector(tmp_path, at + 12, "kill")):
        assert scenarios.run(*SCENARIO.command(tmp_path)).code is None
    files = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))
    assert len(files) > 1
    for file in files:
        raw = bytearray(file.read_bytes())
        raw[len(raw) // 2] ^= 1
        file.write_bytes({"cut off": raw[:-1], "flipped": raw, "empty": b""}[damage])
    for words in (["train", "--resume"], ["evaluate"], ["report"], ["export", "--format", "safetensors"]):
        ended = scenarios.run(*words, tmp_path / "run")
        assert ended.code == 5, ended
        assert all(file.name in ended.said for file in files), ended.said
    tried(Counter({"ended 5": 4}))


def changes_of_a_run(place: Path) -> list[str]:
    place.mkdir()
    with injected(Injector(place)) as injector:
        scenarios.done(*SCENARIO.command(place))
    return injector.changes
