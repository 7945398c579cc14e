"""A run directory reads back as it was written, survives a kill at any moment, and is taken by one run alone."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import run_stand_in
from refusals import refused
from run_stand_in import CONFIG, MANIFEST, READ_ONLY, append_epochs, no_warning, refuse, save

from jaxmlp.errors import DiskError, RunError
from jaxmlp.proof.verify import verify
from jaxmlp.run import files
from jaxmlp.run.directory import RunDirectory
from jaxmlp.run.record import FORMAT

path = run_stand_in.path
run = run_stand_in.run


def test_a_run_reads_back_as_it_was_written(run: RunDirectory, path: Path) -> None:
    append_epochs(run, 1, 2)
    save(run, 9380)
    run.finish("finished", {"test_loss": 0.1, "test_accuracy": 0.98})
    read = RunDirectory.open(path, write=False)
    assert read.config == CONFIG
    assert read.status == "finished"
    result = {"test_loss": 0.1, "test_accuracy": 0.98}
    assert read.manifest == {"format": FORMAT, **MANIFEST, "status": "finished", "result": result}
    assert read.epochs() == [{"epoch": 1, "loss": 1.0}, {"epoch": 2, "loss": 0.5}]
    assert [line["epoch"] for line in read.digests()] == [1, 2]
    assert (path / "history.csv").read_text() == "epoch,loss\n1,1.0\n2,0.5\n"
    newest = read.newest_checkpoint(no_warning)
    assert newest and newest.path == path / "checkpoints" / "step-00009380.safetensors"
    assert newest.step == 9380 and newest.meta["epoch"] == 9380 and newest.arrays["params/w"][0] == 9380


def test_reading_a_run_imports_no_jax(run: RunDirectory, path: Path) -> None:
    append_epochs(run, 1)
    save(run, 1)
    code = (
        "import sys; from jaxmlp.run.directory import RunDirectory; run = RunDirectory.open(sys.argv[1], write=False)\n"
        "run.epochs(); run.newest_checkpoint(print); print('jax' in sys.modules, 'flax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


def test_only_the_owner_can_enter_the_folders(run: RunDirectory, path: Path) -> None:
    assert path.stat().st_mode & 0o777 == 0o700
    assert (path / "checkpoints").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_who_may_read_a_written_file_the_umask_says(umask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        files.write(tmp_path / "report.html", b"page")
    finally:
        os.umask(before)
    assert (tmp_path / "report.html").stat().st_mode & 0o777 == mode


def test_sha256sums_covers_every_file_but_itself_and_the_lock(run: RunDirectory, path: Path) -> None:
    append_epochs(run, 1)
    save(run, 1)
    run.finish("finished", {})
    *lines, last = (path / "SHA256SUMS").read_text().splitlines(keepends=True)
    sums = {name: sha256 for sha256, name in (line.rstrip().split("  ") for line in lines)}
    assert sums == {name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in sums}
    present = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}
    assert present - sums.keys() == {"SHA256SUMS", "lock"}
    assert last == f"# {hashlib.sha256(''.join(lines).encode()).hexdigest()}  the lines above\n"


def test_figures_that_are_not_finite_are_written_as_null(run: RunDirectory, path: Path) -> None:
    run.append_epoch({"epoch": 1, "loss": float("inf"), "per_class": [float("nan")]}, {"epoch": 1})
    run.finish("diverged", {"test": {"loss": float("nan")}})
    assert run.epochs() == [{"epoch": 1, "loss": None, "per_class": [None]}]
    assert json.loads((path / "manifest.json").read_text())["result"] == {"test": {"loss": None}}


def test_a_folder_with_a_finished_run_is_refused_with_its_accuracy_and_the_ways_on(
    run: RunDirectory, path: Path
) -> None:
    run.finish("finished", {"test_loss": 0.1, "test_accuracy": 0.98254})
    run.close()
    with refused(RunError, path, 0.9825, f"--resume '{path}'", "--out"):
        RunDirectory.create(path, CONFIG, MANIFEST)


def test_a_folder_with_an_unfinished_run_is_refused_with_how_far_it_came(run: RunDirectory, path: Path) -> None:
    append_epochs(run, 1, 2)
    run.close()
    with refused(RunError, path, "interrupted", 2, 5, f"--resume '{path}'", "--out"):
        RunDirectory.create(path, CONFIG, MANIFEST)
    assert RunDirectory.open(path, write=True).epochs()


def test_a_folder_without_a_config_is_free_and_what_lies_there_is_set_aside(run: RunDirectory, path: Path) -> None:
    append_epochs(run, 1)
    save(run, 5)
    run.finish("interrupted", None)
    run.close()
    (path / "config.json").unlink()
    (path / "notes.txt").write_text("mine")
    with RunDirectory.create(path, CONFIG, MANIFEST) as fresh:
        assert fresh.epochs() == [] and fresh.checkpoints.paths() == []
        assert not (path / "SHA256SUMS").exists()
        assert (path / "notes.txt").read_text() == "mine"
        assert len(list(path.glob("set-aside-*/checkpoints/step-00000005.safetensors"))) == 1


def test_a_run_killed_before_it_had_a_config_leaves_the_folder_free(path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from jaxmlp import ExperimentConfig\n"
        "from jaxmlp.run.directory import RunDirectory; replace = os.replace\n"
        "def killed(a, b):\n"
        "    os._exit(9) if Path(b).name == 'config.json' else replace(a, b)\n"
        "os.replace = killed; RunDirectory.create(sys.argv[1], ExperimentConfig(), {})"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)]).returncode == 9
    assert list(path.glob(".jaxmlp-*.tmp"))
    with RunDirectory.create(path, CONFIG, MANIFEST):
        assert not list(path.glob(".jaxmlp-*.tmp"))


@pytest.mark.parametrize("write", [True, False])
def test_a_folder_that_is_missing_or_no_run_cannot_be_opened(tmp_path: Path, write: bool) -> None:
    with refused(RunError, tmp_path / "missing"):
        RunDirectory.open(tmp_path / "missing", write=write)
    with refused(RunError, tmp_path, "config.json"):
        RunDirectory.open(tmp_path, write=write)
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_no_folder_for_a_run(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with refused(RunError, tmp_path / "file"):
        RunDirectory.create(tmp_path / "file", CONFIG, MANIFEST)


@pytest.mark.parametrize("name", ["config.json", "manifest.json"])
@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format": 2, "status": "fine"}', "[" * 100_000, b"\xff"])
def test_a_damaged_config_or_manifest_is_named(run: RunDirectory, path: Path, name: str, text: str | bytes) -> None:
    run.close()
    (path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with refused(RunError, path / name):
        RunDirectory.open(path, write=False)
    with refused(RunError, path / name):
        RunDirectory.create(path, CONFIG, MANIFEST)


@pytest.mark.parametrize(("facts", "told"), [({}, "1"), ({"format": FORMAT + 1}, str(FORMAT + 1))])
def test_a_run_of_another_format_is_refused_with_both_numbers(
    run: RunDirectory, path: Path, facts: dict[str, int], told: str
) -> None:
    run.close()
    (path / "manifest.json").write_text(json.dumps({**facts, "status": "finished", "result": None}))
    with refused(RunError, path, told, FORMAT):
        RunDirectory.open(path, write=False)


def test_a_result_without_the_test_scores_is_a_damaged_manifest(run: RunDirectory, path: Path) -> None:
    run.finish("finished", {"test_loss": None, "test_accuracy": None})
    run.close()
    RunDirectory.open(path, write=False)
    text = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(text.replace("test_loss", "loss"))
    with refused(RunError, path / "manifest.json"):
        RunDirectory.open(path, write=False)


def test_a_temporary_file_that_cannot_be_removed_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.mkdir(parents=True)
    (path / ".jaxmlp-abc.tmp").touch()
    refuse(monkeypatch, "unlink")
    with refused(DiskError, path, READ_ONLY):
        RunDirectory.create(path, CONFIG, MANIFEST)


@pytest.mark.parametrize("killed_at", ["SHA256SUMS", "manifest.json"])
def test_a_run_killed_before_it_could_say_that_it_has_finished_is_finished_again(
    run: RunDirectory, path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: str
) -> None:
    real = os.replace

    def killed(source: Any, target: Any) -> None:
        if Path(target).name == killed_at:
            raise KeyboardInterrupt
        real(source, target)

    append_epochs(run, 1)
    save(run, 1)
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            run.finish("finished", {})
    run.close()
    with RunDirectory.open(path, write=True) as again:
        assert again.status == "running"
        again.finish("finished", {})
        again.close()
        assert verify(path).damaged == ()


def test_what_a_killed_process_was_writing_is_gone_after_the_next_open(run: RunDirectory, path: Path) -> None:
    append_epochs(run, 1)
    run.finish("interrupted", None)
    run.close()
    leftovers = [path / ".jaxmlp-abc.tmp", path / "checkpoints" / ".jaxmlp-def.tmp"]
    for leftover in leftovers:
        leftover.touch()
    RunDirectory.open(path, write=False)
    assert all(leftover.exists() for leftover in leftovers)
    with RunDirectory.open(path, write=True) as again:
        assert not any(leftover.exists() for leftover in leftovers)
        assert again.status == "running"
        assert not (path / "SHA256SUMS").exists()


def test_opening_a_finished_run_changes_none_of_its_files(run: RunDirectory, path: Path) -> None:
    append_epochs(run, 1)
    run.finish("finished", {"test_loss": 0.0, "test_accuracy": 1.0})
    run.close()
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    with RunDirectory.open(path, write=True) as again:
        assert again.status == "finished"
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("name", ["config.json", "manifest.json", "metrics.jsonl", "checkpoints", "lock"])
def test_a_symbolic_link_out_of_the_run_directory_is_not_followed(run: RunDirectory, path: Path, name: str) -> None:
    save(run, 1)
    (path / "checkpoints" / ".jaxmlp-abc.tmp").touch()
    run.close()
    outside = path.parent / name
    (path / name).rename(outside)
    (path / name).symlink_to(outside)
    before = [(file, file.read_bytes()) for file in (outside, *outside.rglob("*")) if file.is_file()]
    with refused((RunError, DiskError), path if name == "lock" else path / name):
        RunDirectory.open(path, write=True)
    assert [(file, file.read_bytes()) for file in (outside, *outside.rglob("*")) if file.is_file()] == before
