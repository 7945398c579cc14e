"""What people and other programs see of training a run and using it: JSON, messages, exit codes."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import signal
from pathlib import Path

import command_line
import numpy as np
import pytest
from command_line import QUICKSTART, ROOT, SMALL, Program, assert_refused
from refusals import assert_names

from jaxmlp.cli import main
from jaxmlp.engine import progress
from jaxmlp.source.file import load_experiment

program = command_line.program


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small finished run."""
    path = str(tmp_path_factory.mktemp("runs") / "trained")
    assert main(["train", QUICKSTART, *SMALL, "--out", path, "--verbose", "0"]) == 0
    return path


TRAIN_KEYS = {
    *("run_dir", "status", "stopped", "seed", "epochs", "steps", "devices", "processes", "params_sha256"),
    *("state_sha256", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "test_loss", "test_accuracy"),
    *("metrics", "compile_s", "train_s", "total_s"),
}
EPOCH_LINE = (
    r"Epoch {}/{} - \d+\.\ds - loss: \d+\.\d{{4}} - accuracy: [01]\.\d{{4}}"
    r" - val_loss: \d+\.\d{{4}} - val_accuracy: [01]\.\d{{4}}"
)


def test_train_prints_one_json_document_and_people_read_the_epochs_on_stderr(program: Program, runs_dir: Path) -> None:
    ended = program("train", QUICKSTART, *SMALL, "--seed", "7", "--json")
    document = ended.document
    assert ended.code == 0
    assert set(document) == TRAIN_KEYS
    assert (document["status"], document["seed"], document["epochs"], document["steps"]) == ("finished", 7, 1, 32)
    assert Path(document["run_dir"]).parent == runs_dir
    assert Path(document["run_dir"]).name.endswith("-quickstart-s7")
    assert document["compile_s"] + document["train_s"] < document["total_s"]
    assert re.search(EPOCH_LINE.format(1, 1), ended.stderr)


def test_off_a_terminal_an_epoch_is_one_line_without_control_characters(program: Program, runs_dir: Path) -> None:
    ended = program("train", QUICKSTART, *SMALL, "--epochs", "2", "--verbose", "1")
    _, *epochs, result = [line for line in ended.stdout.splitlines() if not line.startswith("compiling")]
    assert len(epochs) == 2
    for number, line in enumerate(epochs, start=1):
        assert re.fullmatch(EPOCH_LINE.format(number, 2), line)
    assert result.startswith("test_loss: ")
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", ended.stdout)
    assert ended.stderr == ""


def test_a_finished_run_shows_its_stored_result_again(program: Program, trained: str) -> None:
    stored = program("train", "--resume", trained, "--json")
    again = program("train", "--resume", trained, "--json")
    assert (stored.code, set(stored.document)) == (0, TRAIN_KEYS)
    assert {**again.document, "total_s": 0} == {**stored.document, "total_s": 0}


def test_a_folder_with_a_run_is_taken_and_left_as_it_is(program: Program, trained: str) -> None:
    before = {path: path.read_bytes() for path in Path(trained).rglob("*") if path.is_file()}
    ended = program("train", QUICKSTART, *SMALL, "--out", trained, "--json")
    accuracy = json.loads((Path(trained) / "manifest.json").read_text())["result"]["test_accuracy"]
    assert_refused(ended, 5, trained, f"{accuracy:.4f}", f"jaxmlp train --resume {trained}", "--out")
    assert ended.document == {"status": "failed", "error": ended.first_line}
    assert {path: path.read_bytes() for path in Path(trained).rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stop_signal_saves_says_how_to_go_on_and_the_rest_gives_the_uninterrupted_bits(
    number: signal.Signals, program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("train", QUICKSTART, *SMALL, "--epochs", "2", "--json", "--out")
    whole = program(*words, str(tmp_path / "whole"))

    def interrupt(*_: object) -> None:
        os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(progress.EpochLines, "epoch_ended", interrupt)
        ended = program(*words, str(tmp_path / "my run"), "--tensorboard", "--checkpoint-s", "1e3")
    assert (ended.code, ended.document["status"]) == (128 + number, "interrupted")
    said = ended.stderr.splitlines()[-1]
    go_on = f"jaxmlp train --resume '{tmp_path}/my run' --checkpoint-s 1000.0 --tensorboard"
    assert said.endswith(go_on)
    assert_names(said, number.name, 32, 1, 2)
    rest = program(*shlex.split(go_on)[1:], "--json")
    assert (rest.code, rest.document["status"]) == (0, "finished")
    assert rest.document["state_sha256"] == whole.document["state_sha256"]


def test_a_run_goes_on_only_with_the_data_it_began_with(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (
        "import numpy as np\nfrom jaxmlp import DataConfig, ExperimentConfig, data\n"
        "images, labels = np.random.default_rng(SEED).integers(0, 256, (64, 28, 28), np.uint8), np.arange(64) % 10\n"
        "data.register('noise', lambda: ((images, labels), (images, labels)))\n"
        "CONFIG = ExperimentConfig(data=DataConfig(name='noise'), batch_size=16)\n"
    )
    (tmp_path / "noise.py").write_text(text.replace("SEED", "0"))
    (tmp_path / "other_noise.py").write_text(text.replace("SEED", "1"))
    monkeypatch.setattr(progress.EpochLines, "epoch_ended", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    out = str(tmp_path / "run")
    assert program("train", str(tmp_path / "noise.py"), *SMALL, "--epochs", "2", "--out", out).code == 143
    load_experiment(tmp_path / "other_noise.py")
    ended = program("train", "--resume", out)
    assert_refused(ended, 5, out, "data_sha256")


def test_a_batch_larger_than_the_data_is_refused_before_a_run_is_begun(program: Program, runs_dir: Path) -> None:
    ended = program("train", QUICKSTART, "--batch-size", "5000")
    assert_refused(ended, 2, "--batch-size", 4000, 5000)
    assert not list(runs_dir.glob("*"))


def test_a_dry_run_shows_the_network_of_an_experiment_without_its_data_and_writes_nothing(
    program: Program, runs_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAXMLP_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.delenv("JAXMLP_MANUAL_DIR", raising=False)
    ended = program("train", str(ROOT / "experiments/relu_rmsprop.py"), "--dry-run")
    assert ended.code == 0
    assert "Total params: 669,706" in ended.stdout
    assert list(tmp_path.iterdir()) == []


def test_summary_of_a_run_is_of_its_own_network(program: Program, trained: str) -> None:
    for words in ([trained, "--json"], ["--json", trained]):
        assert program("summary", *words).document["params"] == 784 * 16 + 16 + 16 * 10 + 10


def test_evaluate_agrees_with_what_training_told(program: Program, trained: str) -> None:
    told = program("train", "--resume", trained, "--json").document
    ended = program("evaluate", trained, "--json")
    document = ended.document
    assert (document["split"], document["examples"]) == ("test", 1000)
    assert (document["loss"], document["accuracy"]) == (told["test_loss"], told["test_accuracy"])
    low, high = document["ci95"]
    assert low < document["accuracy"] < high
    assert np.trace(document["confusion"]) == document["accuracy"] * 1000
    assert_names(ended.stderr, f"{told['test_accuracy']:.4f}", f"{low:.4f}", f"{high:.4f}")


@pytest.mark.parametrize(
    ("words", "code", "named"),
    [
        ("evaluate {run} --split val", 2, "--split test validation train 'val'"),
        ("evaluate {run} --checkpoint first", 2, "--checkpoint last best ema 'first'"),
        ("evaluate {run} --checkpoint 7", 5, "{run}/checkpoints 7 32"),
        ("evaluate {run}x", 5, "{run}x"),
        ("evaluate {here}", 5, "{here} config.json"),
        ("evaluate last", 5, "{here}/runs"),
        ("evaluate", 2, "evaluate RUN"),
        ("evaluate {run} --min-accuracy 1", 3, "{accuracy} 1"),
        ("train --resume {run} --min-accuracy 1", 3, "{accuracy} 1"),
        ("predict {run}", 2, "predict FILE..."),
        ("predict {run} {here}/x.png", 4, "{here}/x.png"),
        ("predict {run} {here}", 4, "{here} .png .jpg"),
        ("train {quick} --metrics top_k --min-accuracy 0.5", 2, "--min-accuracy top_3"),
        ("train {quick} --metrics top_k brier_score", 2, "'brier_score' --metrics A,B"),
        ("data prepair", 2, "status prepair prepare?"),
        ("data prepare mnits", 2, "--data.name mnist fashion_mnist mnist_5k 'mnits'"),
        ("train {quick} --grad-shards 8 --devices 3", 2, "--devices grad_shards 8 3 2 4"),
        ("train {quick} --grad-shards 64 --devices 64", 6, "64 8"),
        ("train {quick} --device tpu", 6, "tpu cpu"),
        ("train {quick} --data.name mnist --manual-dir {here}", 4, "{here} mnist"),
    ],
)
def test_a_mistake_is_said_first_on_stderr_with_its_exit_code(
    words: str, code: int, named: str, program: Program, trained: str, runs_dir: Path, tmp_path: Path
) -> None:
    accuracy = program("train", "--resume", trained, "--json").document["test_accuracy"]
    facts = {"run": trained, "here": str(tmp_path), "quick": QUICKSTART, "accuracy": f"{accuracy:.4f}"}
    ended = program(*words.format(**facts).split())
    assert_refused(ended, code, *named.format(**facts).split())


def test_predict_tells_and_writes_the_likeliest_classes_of_every_image(
    program: Program, trained: str, tmp_path: Path
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28), np.uint8)
    np.save(tmp_path / "three.npy", images)
    np.save(tmp_path / "last.npy", images[2])
    names = [str(tmp_path / "three.npy"), str(tmp_path / "last.npy")]
    ended = program("predict", trained, *names, "--top", "2", "--csv", str(tmp_path / "out.csv"), "--show", "--json")
    found = ended.document["predictions"]
    assert [(each["file"], each["index"]) for each in found] == [*((names[0], i) for i in range(3)), (names[1], 0)]
    assert {**found[3], "file": names[0], "index": 2} == found[2]
    for each in found:
        first, second = each["top"]
        assert first == {"label": each["label"], "probability": each["probability"]}
        assert first["probability"] >= second["probability"]
    rows = (tmp_path / "out.csv").read_text().splitlines()
    assert rows[0] == "file,index,label,probability,top,numbers"
    assert rows[1].startswith(f"{names[0]},0,{found[0]['label']},{found[0]['probability']},")
    assert len(rows) == 5
    drawn = [line for line in ended.stderr.splitlines() if set(line) <= set(" .:-=+*#%@")]
    assert len(drawn) == 4 * 28


def test_answers_that_cannot_be_written_end_in_8(program: Program, trained: str, tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.zeros((28, 28), np.uint8))
    ended = program("predict", trained, str(tmp_path / "one.npy"), "--csv", str(tmp_path / "no" / "out.csv"))
    assert_refused(ended, 8, tmp_path / "no" / "out.csv", os.strerror(errno.ENOENT))


def test_data_status_tells_of_every_data_set(program: Program, tmp_path: Path) -> None:
    found = {
        each["name"]: each for each in program("data", "status", "--json", "--data-dir", str(tmp_path)).document["data"]
    }
    assert {"mnist", "fashion_mnist", "mnist_5k"} <= set(found)
    assert found["mnist_5k"]["prepared"] and len(found["mnist_5k"]["sha256"]) == 64
    assert program("data", "prepare", "mnist_5k", "--json").document["data"] == [found["mnist_5k"]]


def test_a_loss_that_is_not_finite_ends_in_7_and_names_the_last_good_checkpoint(
    program: Program, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    words = ("--optimizer.learning-rate", "1e35", "--checkpoint-s", "0", "--out", str(out), "--json")
    ended = program("train", QUICKSTART, *SMALL, *words)
    assert (ended.code, ended.document["status"]) == (7, "diverged")
    assert json.loads((out / "manifest.json").read_text())["status"] == "diverged"
    assert_names(ended.stderr, max((out / "checkpoints").iterdir()).stem)
