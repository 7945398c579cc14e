"""`doctor` says whether this machine computes the reference bits, where it leaves them, or what has no reference."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from jaxmlp import MLP, DataConfig, ExperimentConfig
from jaxmlp.cli import main
from jaxmlp.proof import references, right_bits
from jaxmlp.proof.experiments import BANDS, MNIST_SHA256, QUICKSTART, REFERENCED, RELU_RMSPROP, bands
from jaxmlp.source.file import load_experiment

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
SMALL = ExperimentConfig(model=MLP(hidden_sizes=(16,)), data=DataConfig(name="mnist_5k"), batch_size=500, epochs=2)


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """The reference that the command records here, of a quickstart that takes a moment."""
    monkeypatch.setattr(references, "FOLDER", tmp_path / "references")
    monkeypatch.setitem(REFERENCED, "quickstart", SMALL)
    monkeypatch.setattr(right_bits, "GOLDEN", {})  # tests/test_right_bits.py has those.
    assert main(["doctor", "--record"]) == 0
    (path,) = (tmp_path / "references").iterdir()
    capsys.readouterr()
    return path


def change(path: Path, *keys: str | int, to: str) -> None:
    """Change a value in a reference."""
    document = inner = json.loads(path.read_text())
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = to
    path.write_text(json.dumps(document))


def self_test(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    (found,) = json.loads(capsys.readouterr().out)["self_tests"]
    return dict(found)


def test_a_recorded_platform_computes_the_reference_bits(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "self-test: quickstart, 16 updates: the same bits as the reference\n" in said
    for fact in ("versions: jaxmlp", "devices: ", "flags: XLA_FLAGS", "data: mnist_5k: ", "GB free for runs"):
        assert fact in said


def test_bits_that_leave_the_reference_end_in_3_with_update_and_leaf(
    recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at = ("experiments", "quickstart", "points", 2)  # after the first epoch
    change(recorded, *at, "params_sha256", to="0" * 64)
    change(recorded, *at, "leaves_sha256", "params/Dense_1/bias", to="0" * 64)
    assert main(["doctor", "--json"]) == 3
    found = self_test(capsys)
    assert found["verdict"] == "differs"
    assert found["first_difference"]["steps"] == [2, 8]
    assert found["first_difference"]["leaves"] == ["params/Dense_1/bias"]


def test_a_platform_without_a_reference_is_told_which_facts_have_none(
    recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = json.loads(recorded.read_text())["platform"]["isa"]
    change(recorded, "platform", "isa", to="another")
    assert main(["doctor", "--json"]) == 0
    assert self_test(capsys)["verdict"] == "same"
    change(recorded, "experiments", "quickstart", "points", 0, "params_sha256", to="0" * 64)
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert f"no reference for this platform. The nearest, {recorded.name}, differs in:\n  isa: another there" in said
    assert f"{here} here\n" in said and "jaxmlp doctor --record" in said


def test_an_experiment_that_has_changed_since_has_no_reference(
    recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(recorded, "experiments", "quickstart", "config_sha256", to="0" * 64)
    assert main(["doctor"]) == 0
    assert "16 updates: no reference for this experiment\n" in capsys.readouterr().out


@pytest.mark.optimized
@pytest.mark.slow
def test_this_machine_computes_its_platforms_reference_bits_or_says_that_there_is_none(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A real check where the platform was recorded; elsewhere it must not fail, for no promise is broken."""
    assert main(["doctor", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    (found,) = document["self_tests"]
    assert found["verdict"] == ("no reference" if found["changed"] and found["first_difference"] else "same")
    assert found["reference"]
    # Portable bits are the same on every platform: no "no reference" there.
    assert (document["portable"]["same"], document["probes"]) == (True, [])
    assert [each["updates"] for each in document["portable"]["experiments"]] == [96]


def test_what_references_and_bands_are_of_is_what_the_experiment_files_say() -> None:
    for config in BANDS:
        loaded = load_experiment(EXPERIMENTS / f"{config.name}.py").config
        assert config == dataclasses.replace(loaded, precision=config.precision)
    quickstart = load_experiment(EXPERIMENTS / "quickstart.py").config
    assert quickstart.to_dict() | {"epochs": QUICKSTART.epochs} == QUICKSTART.to_dict()


def test_a_band_is_of_its_experiment_and_data_whatever_name_seed_and_shards() -> None:
    other = dataclasses.replace(RELU_RMSPROP, name="mine", seed=3, grad_shards=8)
    assert bands(other, MNIST_SHA256) == BANDS[RELU_RMSPROP]
    band = BANDS[RELU_RMSPROP]["test_accuracy"]
    assert band.low < 0.9828 < band.mean < 0.9845 < band.high < 1  # docs/results.md's range of ten seeds lies in it.
    half = dataclasses.replace(other, precision="bfloat16")
    assert bands(half, MNIST_SHA256)["test_accuracy"].mean == 0.9837
    assert bands(other, "0" * 64) == {}
    assert bands(dataclasses.replace(other, epochs=19), MNIST_SHA256) == {}
