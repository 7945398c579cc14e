"""The file of docs/howto.md with a part of each role of one's own goes through every command, to the same bits."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxmlp.cli import main

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / "howto.md").read_text(), re.M | re.S)
ONE_EPOCH = ("--model.features", "2", "--batch-size", "200", "--epochs", "1")
SMALL = (*ONE_EPOCH[:-1], "2", "--verbose", "0")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file, as the document has it."""
    (text,) = [block for block in BLOCKS if "class FocalLoss" in block]
    path = tmp_path_factory.mktemp("own") / "own.py"
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def run(own: Path) -> Path:
    path = own.parent / "run"
    assert main(["train", str(own), *SMALL, "--devices", "1", "--out", str(path)]) == 0
    return path


def answer(capsys: pytest.CaptureFixture[str], *words: object) -> Any:
    """The JSON of a command that ends well."""
    assert main([*map(str, words), "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def digests(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "digests.jsonl").read_text().splitlines()]


@pytest.mark.optimized
def test_a_run_killed_on_one_device_goes_on_on_four_to_the_same_bits(own: Path, run: Path, tmp_path: Path) -> None:
    path = tmp_path / "killed"
    words = [sys.executable, "-m", "jaxmlp", "train", str(own), *SMALL, "--devices", "1", "--checkpoint-s", "0"]
    process = subprocess.Popen([*words, "--out", str(path)], env=os.environ, stdout=subprocess.PIPE, text=True)
    while process.poll() is None and not list(path.glob("checkpoints/*.safetensors")):
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert main(["train", "--resume", str(path)]) == 5  # The copy in the run is not run unasked.
    resume = ["train", "--resume", str(path), "--experiment", str(own), "--devices", "4", "--verbose", "0"]
    assert main(resume) == 0
    assert digests(path) == digests(run)
    assert {"params_sha256", "opt_state_sha256", "variables_sha256"} <= digests(run)[0].keys()


@pytest.mark.optimized
def test_every_command_knows_the_parts(
    own: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = ("--experiment", own)
    scored = answer(capsys, "evaluate", run, *code)
    assert scored["metrics"]["top"] > scored["accuracy"] > 0.3
    np.save(tmp_path / "digits.npy", np.zeros((2, 28, 28, 1), np.uint8))
    assert len(answer(capsys, "predict", run, tmp_path / "digits.npy", *code)["predictions"]) == 2
    assert answer(capsys, "reproduce", run, *code, "--devices", 1)["same"] is True
    assert answer(capsys, "summary", run, *code)["params"] == scored_params(run)
    assert Path(answer(capsys, "report", run, *code, "--out", tmp_path / "report.html")["report"]).stat().st_size > 0
    answer(capsys, "export", run, *code, "--format", "stablehlo", "--out", tmp_path / "model.stablehlo")
    assert main(["export", str(run), "--experiment", str(own), "--format", "onnx"]) == 5
    assert answer(capsys, "verify", run)["damaged"] == []
    assert answer(capsys, "runs", run)["runs"][0]["config"]["optimizer"]["kind"] == "own.py:Lion"


def scored_params(run: Path) -> int:
    from safetensors.numpy import load_file

    newest = sorted((run / "checkpoints").glob("*.safetensors"))[-1]
    return sum(array.size for name, array in load_file(newest).items() if name.startswith("state/params/"))


def test_a_sweep_varies_kinds_and_a_field_of_each_part(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = ("model.dropout-rate=0.1", "loss.gamma=1", "augmentation.0.pixels=1", "metrics.0.k=2")
    words = [word for field in ("optimizer=Lion,adam", *fields) for word in ("--set", field)]
    one = (own, *ONE_EPOCH, "--devices", 1)
    found = answer(capsys, "sweep", *one, "--seeds", "0:2", *words, "--out", tmp_path / "sweep")
    assert [each["status"] for each in found["runs"]] == ["finished"] * 4
    flags = [word for field in fields for word in f"--{field}".split("=")]
    solo = answer(capsys, "train", *one, "--seed", 1, "--verbose", 0, *flags, "--out", tmp_path / "solo")
    assert solo["state_sha256"] in {each["state_sha256"] for each in found["runs"]}
    assert len({each["params_sha256"] for each in found["runs"]}) == 4


def test_the_experiment_to_start_from_trains_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.py"
    assert main(["new", str(file)]) == 0
    capsys.readouterr()
    found = answer(capsys, "train", file, "--epochs", 1, "--verbose", 0, "--out", tmp_path / "run")
    assert found["metrics"]["accuracy"]["val"] > 0.3
    assert main(["new", str(file)]) == 2
    assert main(["new", str(tmp_path / "mine")]) == 2
