"""The list of runs: all that are there, in the order asked for, and what sets those named apart."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from refusals import assert_names

from jaxmlp import SGD, ExperimentConfig, RMSprop
from jaxmlp.cli import COMMANDS, main
from jaxmlp.run.directory import RunDirectory
from jaxmlp.run.listing import Listed, different_values, ordered
from jaxmlp.sweep.directory import SweepDirectory
from jaxmlp.sweep.lanes import make_plan


@pytest.fixture
def runs_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("JAXMLP_RUNS_DIR", str(tmp_path))
    return tmp_path


def test_runs_are_listed_the_last_begun_first_and_a_damaged_one_says_why(
    two_runs: tuple[Path, Path], runs_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for run in two_runs:
        shutil.copytree(run, runs_dir / run.name, copy_function=shutil.copy)
    (runs_dir / "broken").mkdir()
    (runs_dir / "broken" / "config.json").write_text("{")
    capsys.readouterr()
    assert main(["runs", "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)["runs"]
    assert [Path(run["run_dir"]).name for run in found] == ["broken", "seed-1", "seed-0"]
    assert [(run["status"], run["seed"], run["epochs"]) for run in found[1:]] == [
        ("finished", 1, 2),
        ("finished", 0, 2),
    ]
    assert found[0]["status"] == "damaged"
    assert_names(found[0]["problem"], "config.json")
    result = json.loads((two_runs[0] / "manifest.json").read_text())["result"]
    assert {name: found[2][name] for name in ("test_accuracy", "train_s", "params_sha256")} == {
        name: result[name] for name in ("test_accuracy", "train_s", "params_sha256")
    }
    assert f"{result['test_accuracy']:.4f}" in err and result["params_sha256"][:12] in err


def test_named_runs_are_shown_with_the_values_in_which_they_differ(
    two_runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["runs", *map(str, two_runs), "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["differences"] == {"seed": [0, 1]}
    assert err.endswith("\n  seed  0  1\n")


def test_versions_that_differ_are_shown_and_a_run_that_was_changed_is_marked(
    two_runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(two_runs[0], other)
    manifest = json.loads((other / "manifest.json").read_text())
    here, manifest["binding"]["jax"] = manifest["binding"]["jax"], "0.1.2"
    (other / "manifest.json").write_text(json.dumps(manifest))
    capsys.readouterr()
    assert main(["runs", str(two_runs[0]), str(other), "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["differences"] == {"jax": [here, "0.1.2"]}
    assert [(run["status"], run["problem"].partition(":")[0]) for run in found["runs"]] == [
        ("finished", ""),
        ("damaged", "manifest.json"),
    ]
    assert "damaged" in err


def test_a_named_run_that_is_not_there_ends_in_5(runs_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", str(runs_dir / "no")]) == 5
    assert_names(capsys.readouterr().err, runs_dir / "no")


def test_no_runs_tell_how_to_begin_one(runs_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs"]) == 0
    assert_names(capsys.readouterr().out, runs_dir, "jaxmlp train quickstart")


def test_sweeps_are_listed_with_how_far_they_came(runs_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = make_plan(ExperimentConfig(), [0, 1], [{"batch_size": 64}, {"batch_size": 128}])
    with SweepDirectory.create(runs_dir / "good", plan, {}):
        pass
    (runs_dir / "bad").mkdir()
    (runs_dir / "bad" / "sweep.json").write_text("{")
    capsys.readouterr()
    assert main(["runs", "--json"]) == 0
    out, err = capsys.readouterr()
    bad, good = json.loads(out)["sweeps"]
    assert [good[name] for name in ("status", "ended", "lanes")] == ["interrupted", 0, 4]
    assert good["sweep_dir"] == str(runs_dir / "good")
    assert bad["status"] == "damaged"
    assert_names(bad["problem"], "sweep.json")
    assert_names(err, "good", "interrupted", 0, 4)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_name_that_the_streams_encoding_lacks_is_shown_with_escapes(
    encoding: str, runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    RunDirectory.create(runs_dir / "expérience λ", ExperimentConfig(), {"binding": {}, "not_binding": {}}).close()
    out = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr(sys, "stdout", out)
    assert main(["runs"]) == 0
    shown = {"ascii": r"exp\xe9rience \u03bb", "latin-1": r"expérience \u03bb", "utf-8": "expérience λ"}[encoding]
    out.seek(0)
    assert shown in out.read()


@pytest.mark.parametrize(
    ("by", "names"), [("begun", "bac"), ("name", "abc"), ("test_accuracy", "abc"), ("train_s", "bac")]
)
def test_runs_are_sorted_the_best_first_and_those_without_the_figure_last(by: str, names: str) -> None:
    runs = [
        Listed("x/b", "finished", test_accuracy=0.5, train_s=1),
        Listed("x/a", "finished", test_accuracy=0.9, train_s=2),
        Listed("x/c", "interrupted"),
    ]
    assert "".join(run.run_dir[-1] for run in ordered(runs, by)) == names


def test_a_value_that_one_config_has_not_is_a_difference() -> None:
    found = different_values([ExperimentConfig(optimizer=rule).to_dict() for rule in (RMSprop(), SGD())])
    assert found["optimizer.kind"] == ["rmsprop", "sgd"]
    assert found["optimizer.momentum"] == [None, 0.0]
    assert "batch_size" not in found


@pytest.mark.parametrize(
    ("words", "wanted"),
    [(["jaxmlp", "tra"], ["train"]), (["jaxmlp", "runs", "--so"], ["--sort"]), (["jaxmlp", ""], [*COMMANDS])],
)
def test_bash_finishes_commands_and_flags(
    words: list[str], wanted: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    quoted = " ".join(f"'{word}'" for word in words)
    ask = f"COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _jaxmlp; echo ${{COMPREPLY[@]}}"
    ended = subprocess.run(["bash", "-c", script + ask], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == wanted
