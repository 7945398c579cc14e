"""TensorBoard's files hold every figure of every epoch, the weights as an image, and the hyperparameters."""

from __future__ import annotations

import builtins
import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from refusals import assert_names
from tensorboardX.proto import event_pb2

from jaxmlp.cli import main

QUICKSTART = str(Path(__file__).parents[1] / "experiments" / "quickstart.py")
SMALL = ("--model.hidden-sizes", "16", "--epochs", "2", "--verbose", "0")


def events(folder: Path) -> Iterator[Any]:
    """What the files in `folder` say: records of length, checksum, event, checksum."""
    for path in sorted(folder.rglob("events.*")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            yield event_pb2.Event.FromString(data[12 : 12 + length])  # type: ignore[attr-defined]
            data = data[16 + length :]


def test_tensorboard_shows_figures_hyperparameters_and_weights(tmp_path: Path) -> None:
    assert main(["train", QUICKSTART, *SMALL, "--out", str(tmp_path), "--tensorboard"]) == 0
    values = [(event.step, value) for event in events(tmp_path / "tensorboard") for value in event.summary.value]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for name in ("loss", "accuracy", "val_loss", "val_accuracy", "learning_rate", "seconds"):
        found = [(step, value.simple_value) for step, value in values if step and value.tag == name]
        assert found == [(line["steps"], pytest.approx(line[name])) for line in lines]
    images = [value.image for _, value in values if value.tag.startswith("first_layer")]
    assert len(images) == 2
    assert images[0].encoded_image_string.startswith(b"\x89PNG")
    assert any("hparams" in value.metadata.plugin_data.plugin_name for _, value in values)
    assert "test_accuracy" in {value.tag for _, value in values}


def test_without_the_package_the_flag_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **kwargs: Any) -> Any:
        if name.startswith("tensorboardX"):
            raise ModuleNotFoundError("No module named 'tensorboardX'", name="tensorboardX")
        return real(name, *rest, **kwargs)

    monkeypatch.delitem(sys.modules, "jaxmlp.report.tracking", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    assert main(["train", QUICKSTART, *SMALL, "--out", str(tmp_path / "run"), "--tensorboard"]) == 2
    assert_names(capsys.readouterr().err, "--tensorboard", "pip install 'jaxmlp[tensorboard]'")
