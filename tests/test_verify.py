"""`verify` finds every alteration of a run directory, and names the file."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from refusals import assert_names, refused

import jaxmlp
from jaxmlp import MLP, ExperimentConfig, data
from jaxmlp.cli import main
from jaxmlp.engine import fitting, loop
from jaxmlp.errors import RunError
from jaxmlp.proof.verify import verify
from jaxmlp.run.directory import RunDirectory
from jaxmlp.run.manifest import manifest

CONFIG = ExperimentConfig(model=MLP(hidden_sizes=(12,)), batch_size=64, epochs=3)
ALTERATIONS = 100


@pytest.fixture(scope="module")
def whole(small_dataset: data.Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with two checkpoints and a trace."""
    path = tmp_path_factory.mktemp("runs") / "whole"
    facts = manifest(CONFIG, small_dataset)
    with pytest.MonkeyPatch.context() as patch, RunDirectory.create(path, CONFIG, facts) as run:
        patch.setattr(loop.Loop, "chunk_s", 0.0)  # One update a chunk, so that the last two updates have checkpoints.
        fitting.fit(CONFIG, small_dataset, run=run, checkpoint_s=0, digest_every=2)
    return path


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def files(path: Path) -> list[Path]:
    return sorted(each for each in path.rglob("*") if each.is_file())


def flip(raw: bytearray, rng: random.Random) -> None:
    raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)


def truncate(raw: bytearray, rng: random.Random) -> None:
    del raw[rng.randrange(len(raw)) :]


def append(raw: bytearray, rng: random.Random) -> None:
    raw += rng.randbytes(rng.randint(1, 9))


def edit_a_digit(raw: bytearray, rng: random.Random) -> None:
    at = rng.choice([i for i, byte in enumerate(raw) if chr(byte).isdecimal() and byte < 128])
    raw[at] = ord(rng.choice([digit for digit in "0123456789" if ord(digit) != raw[at]]))


KINDS: dict[str, Callable[[bytearray, random.Random], None]] = {
    "flip": flip,
    "truncate": truncate,
    "append": append,
    "edit a digit": edit_a_digit,
}


def alter(path: Path, rng: random.Random) -> tuple[str, set[str]]:
    """Alter a file at random, and say how and which."""
    file, other = rng.sample(files(path), 2)
    raw = bytearray(file.read_bytes())
    name = str(file.relative_to(path))
    match rng.choice(["delete", "swap", *(KINDS if raw else ["append"])]):
        case "delete":
            file.unlink()
            return "delete", {name}
        case "swap":
            file.write_bytes(other.read_bytes())
            other.write_bytes(raw)
            return "swap", {name, str(other.relative_to(path))}
        case kind:
            KINDS[kind](raw, rng)
            file.write_bytes(raw)
            return kind, {name}


def test_a_whole_run_verifies_and_every_file_of_it_is_counted(whole: Path) -> None:
    found = verify(whole)
    assert found.damaged == () and found.not_covered == () and found.ended
    assert found.files == len(files(whole)) == 10
    assert found.tensors == 2 * (1 + 4 + 4 + 1 + 3)  # step, parameters, their averages, count, sums


def test_each_of_100_random_alterations_is_found_and_its_files_are_named(whole: Path, tmp_path: Path) -> None:
    kinds, names = set(), set()
    for seed in range(ALTERATIONS):
        path = Path(shutil.copytree(whole, tmp_path / str(seed)))
        kind, altered = alter(path, random.Random(seed))
        assert {damage.file for damage in verify(path).damaged} == altered, (seed, kind)
        kinds.add(kind)
        names |= altered
    assert kinds == {*KINDS, "delete", "swap"}
    assert names == {str(each.relative_to(whole)) for each in files(whole)}


def test_sums_made_anew_do_not_hide_files_that_contradict_each_other(copy: Path) -> None:
    for name, old, new in [
        ("config.json", '"seed": 0', '"seed": 1'),
        ("digests.jsonl", '"params_sha256": "..', '"params_sha256": "00'),
        ("metrics.jsonl", '"val_accuracy": 0', '"val_accuracy": 1'),
    ]:
        (copy / name).write_text(re.sub(old, new, (copy / name).read_text()))
    with RunDirectory.open(copy, write=False) as run:
        run.finish(run.manifest["status"], run.manifest["result"])
    problems = dict(verify(copy).damaged)
    newest = "checkpoints/step-00000015.safetensors"
    assert problems.keys() == {"config.json", "manifest.json", newest}
    assert_names(problems["config.json"], "SHA-256", "manifest.json")
    assert_names(problems["manifest.json"], "val_accuracy", "metrics.jsonl")
    assert_names(problems[newest], "params", "digests.jsonl")


def test_a_checkpoint_that_the_sums_do_not_know_is_damage_and_a_report_is_not(copy: Path) -> None:
    (copy / "report.html").touch()
    shutil.copy(copy / "checkpoints/step-00000015.safetensors", copy / "checkpoints/step-00000016.safetensors")
    found = verify(copy)
    assert found.not_covered == ("report.html",)
    ((file, problem),) = found.damaged
    assert file == "checkpoints/step-00000016.safetensors"
    assert_names(problem, "SHA256SUMS")


def test_a_link_in_a_files_place_is_named(copy: Path, whole: Path) -> None:
    (copy / "metrics.jsonl").unlink()
    (copy / "metrics.jsonl").symlink_to(whole / "metrics.jsonl")
    assert [damage.file for damage in verify(copy).damaged] == ["metrics.jsonl"]


def test_a_killed_run_is_whole_and_said_not_to_have_ended(small_dataset: data.Dataset, tmp_path: Path) -> None:
    code = f"""if True:
        import os, sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})
        from jaxmlp.experiment.config import ExperimentConfig; from jaxmlp.run.directory import RunDirectory
        run = RunDirectory.create({str(tmp_path / "run")!r}, ExperimentConfig(), {{}})
        run.append_epoch({{"epoch": 1, "steps": 5}}, {{"epoch": 1, "steps": 5}})
        open(run.path / "metrics.jsonl", "a").write('{{"epo')
        os.kill(os.getpid(), 9)"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert (tmp_path / "run" / "lock").read_text()
    found = verify(tmp_path / "run")
    assert found.damaged == () and not found.ended


def test_a_run_in_use_and_a_folder_that_is_none_are_refused(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path / "run", CONFIG, {}), refused(RunError, tmp_path / "run"):
        verify(tmp_path / "run")
    with refused(RunError, tmp_path):
        verify(tmp_path)


def test_the_command_answers_with_what_is_damaged_and_5(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(copy), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "files": 10, "tensors": 26, "damaged": [], "not_covered": [], "ended": True
    }  # fmt: skip
    (copy / "history.csv").unlink()
    assert main(["verify", str(copy), "--json"]) == 5
    out, err = capsys.readouterr()
    assert [each["file"] for each in json.loads(out)["damaged"]] == ["history.csv"]
    assert_names(err, copy, 1, 9, "history.csv")


def test_verifying_imports_no_jax(whole: Path) -> None:
    code = f"import sys, jaxmlp; jaxmlp.verify({str(whole)!r}); print('jax' in sys.modules, 'flax' in sys.modules)"
    root = str(Path(jaxmlp.__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout == "False False\n"
