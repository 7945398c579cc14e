"""What people and other programs see of `jaxmlp`: commands, JSON, messages, exit codes."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import jaxmlp
from jaxmlp import config as cfg
from jaxmlp import model, progress
from jaxmlp.cli import COMMANDS, flags, main
from jaxmlp.cli.experiment import load_config
from jaxmlp.cli.train import TrainFlags
from jaxmlp.fields import Part

ROOT = Path(__file__).parent.parent
QUICKSTART = str(ROOT / "experiments" / "quickstart.py")
SMALL = ("--model.hidden-sizes", "16", "--epochs", "1")
"""Makes the quickstart a matter of a second."""


class Ended(NamedTuple):
    """How the program ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def first_line(self) -> str:
        return self.stderr.partition("\n")[0]

    @property
    def document(self) -> dict[str, Any]:
        """All of stdout, as one JSON document."""
        document: dict[str, Any] = json.loads(self.stdout)
        return document


Program = Callable[..., Ended]


@pytest.fixture
def program(capsys: pytest.CaptureFixture[str]) -> Program:
    def run(*argv: str) -> Ended:
        capsys.readouterr()
        return Ended(main(argv), *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small finished run."""
    path = str(tmp_path_factory.mktemp("runs") / "trained")
    assert main(["train", QUICKSTART, *SMALL, "--out", path, "--verbose", "0"]) == 0
    return path


@pytest.fixture
def runs_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("JAXMLP_RUNS_DIR", str(tmp_path / "runs"))
    return tmp_path / "runs"


def script(*argv: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *argv]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False, **kwargs)


def imported_after(code: str) -> set[str]:
    """The packages that are loaded after these lines, in a new process."""
    ended = script("-c", f"import sys\n{code}\nprint(*sys.modules, file=sys.stderr)")
    assert ended.returncode == 0, ended.stderr
    return {name.partition(".")[0] for name in ended.stderr.split()}


def test_the_help_names_every_command_and_loads_nothing_that_takes_time(program: Program) -> None:
    ended = program("--help")
    assert ended.code == 0
    for name in COMMANDS:
        assert re.search(rf"^  {name} ", ended.stdout, re.MULTILINE)
    loaded = imported_after("from jaxmlp.cli import main; main(['--help'])")
    assert not loaded & {"jax", "tyro", "numpy", "rich"}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_commands_help_shows_its_flags_and_loads_neither_jax_nor_numpy(command: str, program: Program) -> None:
    ended = program(command, "--help")
    assert ended.code == 0
    assert ended.stdout.startswith(f"usage: jaxmlp {command} ")
    assert "--json" in ended.stdout and "--no-color" in ended.stdout
    loaded = imported_after(f"from jaxmlp.cli import main; main(['{command}', '--help'])")
    assert not loaded & {"jax", "numpy", "rich"}


def test_the_help_of_train_shows_the_experiments_own_values_and_what_they_mean(program: Program) -> None:
    words = " ".join(program("train", str(ROOT / "experiments/tanh_sgd_nesterov.py"), "--help").stdout.split())
    assert "--optimizer.momentum FLOAT" in words
    assert "Part of the velocity kept. (default: 0.9)" in words
    assert "--optimizer.schedule.decay FLOAT" in words


def test_the_version_is_the_packages(program: Program) -> None:
    assert program("--version") == (0, f"jaxmlp {jaxmlp.__version__}\n", "")


@pytest.mark.parametrize("word", ["", "1"])
def test_colours_are_off_by_flag_or_environment(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", word)
    monkeypatch.setenv("PYTHON_TYRO_ANSI_CODES", "True")
    assert main(["--version", *([] if word else ["--no-color"])]) == 0
    assert os.environ["NO_COLOR"] == "1"
    assert os.environ["PYTHON_TYRO_ANSI_CODES"] == "False"


ACTIVATIONS = ", ".join(model.ACTIVATIONS)
EXPERIMENTS = {
    "good.py": "from jaxmlp import ExperimentConfig\nCONFIG = ExperimentConfig()",
    "named.py": "from jaxmlp import ExperimentConfig\nCONFIG = ExperimentConfig(name='mine')",
    "neighbour.py": "from good import CONFIG",
    "empty.py": "",
    "other.py": "CONFIG = {'epochs': 3}",
    "raises.py": "x = 1\nx / 0",
    "leaves.py": "import sys\nsys.exit('no')",
    "wrong.py": "from jaxmlp import ModelConfig\nModelConfig(dropout_rate=50)",
    "bad name.py": "from jaxmlp import ExperimentConfig\nCONFIG = ExperimentConfig()",
}


@pytest.fixture
def experiments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of experiment files, the current one."""
    for name, text in EXPERIMENTS.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for path in tmp_path.glob("*.py"):
        sys.modules.pop(path.stem, None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("goood.py", "goood.py is not there. Did you mean good.py?"),
        ("nothing/like/it.py", "nothing/like/it.py is not there."),
        ("empty.py", "empty.py has no CONFIG. Add: CONFIG = ExperimentConfig(...), from jaxmlp"),
        ("other.py", "other.py has a CONFIG of type dict. Add: CONFIG = ExperimentConfig(...), from jaxmlp"),
        ("raises.py", "raises.py, line 2 raised ZeroDivisionError: division by zero"),
        ("leaves.py", "leaves.py, line 2 raised SystemExit: no"),
        ("wrong.py", "wrong.py: model.dropout_rate must be in [0, 1), got 50. Did you mean 0.5?"),
        ("", "train needs EXPERIMENT.py: jaxmlp train EXPERIMENT.py"),
        ("--seed 3", "train needs EXPERIMENT.py: jaxmlp train EXPERIMENT.py"),
        ("--seed 3 good", "good must come before the flags, or end in .py: jaxmlp train good ..."),
        ("good.py 7", "train takes no '7': jaxmlp train EXPERIMENT.py."),
        ("good.py --epoch 5", "--epoch is not a flag of train. Did you mean --epochs?"),
        ("good.py --epoch=5", "--epoch is not a flag of train. Did you mean --epochs?"),
        ("good.py -x", "-x is not a flag of train."),
        ("good.py --optimizer.rate 1", "--optimizer.rate is not a flag of train. Did you mean --optimizer.rho?"),
        ("good.py --epochs abc", "--epochs must be an integer, got 'abc'"),
        ("good.py --epochs 2.5", "--epochs must be an integer, got '2.5'"),
        ("good.py --epochs 0", "--epochs must be in [1, 1000000], got 0"),
        ("good.py --seed -1", "--seed must be in [0, 4294967295], got -1"),
        ("good.py --model.dropout-rate 50", "--model.dropout-rate must be in [0, 1), got 50. Did you mean 0.5?"),
        ("good.py --model.hidden-sizes 5 x", "--model.hidden-sizes must be an integer, got 'x'"),
        (
            "good.py --precision bfloat",
            "--precision must be one of float32, bfloat16, got 'bfloat'. Did you mean bfloat16?",
        ),
        ("good.py --device cuda", "--device must be one of auto, cpu, gpu, tpu, got 'cuda'."),
        ("good.py --min-accuracy 97", "--min-accuracy must be in [0, 1], got 97. Did you mean 0.97?"),
        ("good.py --verbose 3", "--verbose must be one of auto, 0, 1, 2, got '3'."),
        (
            "good.py --grad-shards 3",
            "--grad-shards must divide batch_size 128 into shards of 2 rows or more, got 3. "
            "The nearest that do: 2 and 4",
        ),
        ("good.py --epochs", "--epochs needs a value"),
        ("good.py --batch_size --seed 3", "--batch_size needs a value"),
        (
            "good.py --optimizer.momentum 0.9",
            "--optimizer.momentum belongs to sgd, and this experiment's optimizer is rmsprop. "
            "Another kind is one line in the experiment's file",
        ),
        (
            "good.py --optimizer.schedule.decay 1",
            "--optimizer.schedule.decay belongs to inverse_time, and this experiment's optimizer.schedule is constant. "
            "Another kind is one line in the experiment's file",
        ),
        (
            "--resume last --epochs 3",
            "--epochs is not a flag of train --resume DIR. The run's stored config holds; another one is another run.",
        ),
        (
            "--resume last good.py",
            "train --resume DIR takes no 'good.py': jaxmlp train --resume DIR. "
            "The run's stored config holds; another one is another run.",
        ),
    ],
)
def test_a_mistake_in_a_command_line_is_said_first_on_stderr_and_exits_2(
    words: str, message: str, program: Program, experiments: Path
) -> None:
    ended = program("train", *words.split())
    assert (ended.code, ended.first_line, ended.stdout) == (2, message, "")


def test_a_name_that_is_no_folders_name_is_refused(program: Program, experiments: Path) -> None:
    ended = program("train", "bad name.py")
    assert (ended.code, ended.first_line.partition(",")[0]) == (2, "bad name.py: name must be letters")


def test_an_experiment_is_named_after_its_file_unless_it_has_a_name_and_finds_its_neighbours(experiments: Path) -> None:
    assert load_config(Path("good.py")).name == "good"
    assert load_config(Path("named.py")).name == "mine"
    assert load_config(Path("neighbour.py")).name == "neighbour"


CONFIGS = [
    cfg.ExperimentConfig(optimizer=cfg.SGD(schedule=cfg.InverseTime())),
    cfg.ExperimentConfig(optimizer=cfg.RMSprop(schedule=cfg.Exponential()), loss=cfg.CrossEntropy()),
    cfg.ExperimentConfig(optimizer=cfg.Adam(schedule=cfg.Piecewise()), loss=cfg.MeanSquaredError()),
    cfg.ExperimentConfig(optimizer=cfg.AdamW(schedule=cfg.Cosine())),
]
OTHER: dict[type, Callable[[Any], Any]] = {bool: lambda b: not b, int: lambda n: n + 1, float: lambda x: x * 0.5 + 0.25}
"""Another value of the same type, valid for every field that has no entry of its own below."""
OTHER_OF_FIELD: dict[str, Any] = {
    "model.hidden_sizes": (),
    "model.activation": "tanh",
    "model.kernel_init": "he_normal",
    "data.name": "fashion_mnist",
    "data.validation": None,
    "optimizer.schedule.boundaries": (5,),
    "optimizer.schedule.factors": (0.5, 0.25),
    "loss.epsilon": 0.01,
    "name": "another",
    "precision": "bfloat16",
    "grad_shards": 8,
}


def leaf_paths(part: Part, prefix: str = "") -> Iterator[str]:
    for item in dataclasses.fields(part):
        value = getattr(part, item.name)
        yield from leaf_paths(value, f"{prefix}{item.name}.") if isinstance(value, Part) else [prefix + item.name]


def replaced(part: Any, path: str, value: Any) -> Any:
    name, _, rest = path.partition(".")
    return dataclasses.replace(part, **{name: replaced(getattr(part, name), rest, value) if rest else value})


def as_words(path: str, value: Any) -> list[str]:
    flag = "--" + path.replace("_", "-")
    if isinstance(value, bool):
        before, _, name = flag.rpartition(".") if "." in flag else ("", "", flag[2:])
        return [flag if value else (f"{before}.no-{name}" if before else f"--no-{name}")]
    return [flag, *(map(str, value) if isinstance(value, tuple) else ["none" if value is None else str(value)])]


@pytest.mark.parametrize(
    ("config", "path"),
    [(config, path) for config in CONFIGS for path in leaf_paths(config)],
    ids=lambda value: value if isinstance(value, str) else value.optimizer.kind,
)
def test_every_config_value_is_a_flag_that_changes_it_and_nothing_else(config: cfg.ExperimentConfig, path: str) -> None:
    value: Any = config
    for name in path.split("."):
        value = getattr(value, name)
    other = OTHER_OF_FIELD[path] if path in OTHER_OF_FIELD else OTHER[type(value)](value)
    wanted = replaced(config, path, other)
    assert wanted != config
    chosen, words = flags.parse(TrainFlags(config=config), as_words(path, other), "train")
    assert (chosen, words) == (TrainFlags(config=wanted), [])


def test_the_experiment_may_stand_anywhere_among_the_flags(program: Program, experiments: Path) -> None:
    words = ["--model.hidden-sizes", "5", "6", "good.py", "--data.name", "mnist_5k", "--json"]
    layers = program("summary", *words).document["layers"]
    assert [layer["output_shape"] for layer in layers if layer["type"] == "Dense"] == [[5], [6], [10]]


def test_an_unknown_command_is_guessed(program: Program) -> None:
    ended = program("trian", "x.py")
    assert ended.code == 2
    assert (
        ended.stderr == f"trian is not a command of jaxmlp. Did you mean train? The commands: {', '.join(COMMANDS)}\n"
    )


TRAIN_KEYS = {
    *("run_dir", "status", "seed", "epochs", "steps", "devices", "processes", "params_sha256", "state_sha256"),
    *("train_loss", "train_accuracy", "val_loss", "val_accuracy", "test_loss", "test_accuracy"),
    *("compile_s", "train_s", "total_s"),
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
    _, *epochs, result = ended.stdout.splitlines()
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
    assert ended.code == 5
    assert "holds a finished run (test accuracy 0." in ended.first_line
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
        ended = program(*words, str(tmp_path / "my run"))
    assert (ended.code, ended.document["status"]) == (128 + number, "interrupted")
    said = ended.stderr.splitlines()[-1]
    go_on = f"Go on: jaxmlp train --resume '{tmp_path}/my run'"
    assert said == f"{number.name}: step 32 is saved, 1 of 2 epochs done. {go_on}"
    rest = program("train", "--resume", str(tmp_path / "my run"), "--json")
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
    load_config(tmp_path / "other_noise.py")
    ended = program("train", "--resume", out)
    assert ended.code == 5
    assert ended.first_line.startswith(f"{out} was trained on other data: data_sha256: ")


def test_a_batch_larger_than_the_data_is_refused_before_a_run_is_begun(program: Program, runs_dir: Path) -> None:
    ended = program("train", QUICKSTART, "--batch-size", "5000")
    assert (ended.code, ended.first_line) == (2, "--batch-size must be at most the 4000 training examples, got 5000")
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
    assert f"accuracy: {told['test_accuracy']:.4f} (95 % interval {low:.4f} to {high:.4f})" in ended.stderr


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("evaluate {run} --split val", 2, "--split must be one of test, validation, train, got 'val'"),
        ("evaluate {run} --checkpoint first", 2, "--checkpoint must be last, best or the step of one, got 'first'"),
        ("evaluate {run} --checkpoint 7", 5, "{run}/checkpoints has no checkpoint of step 7. It has: 32."),
        ("evaluate {run}x", 5, "{run}x is not there. `jaxmlp runs` lists the runs."),
        ("evaluate {here}", 5, "{here} is not a run directory: it has no config.json. `jaxmlp runs` lists the runs."),
        ("evaluate last", 5, "there is no last run: {here}/runs has none."),
        ("evaluate", 2, "evaluate needs RUN: jaxmlp evaluate RUN"),
        ("evaluate {run} --min-accuracy 1", 3, "the accuracy {accuracy} is below the wanted 1"),
        ("train --resume {run} --min-accuracy 1", 3, "the test accuracy {accuracy} is below the wanted 1"),
        ("predict {run}", 2, "predict needs FILE...: jaxmlp predict RUN FILE..."),
        ("predict {run} {here}/x.png", 4, "data: {here}/x.png is not there"),
        ("predict {run} {here}", 4, "data: {here} has no images: wanted .png, .jpg, .jpeg, .npy or IDX files"),
        ("data prepair", 2, "data does status or prepare, not prepair. Did you mean prepare?"),
        ("data prepare mnits", 2, "--data.name must be one of mnist, fashion_mnist, mnist_5k"),
        ("train {quick} --batch-size 4001", 2, "--batch-size must be at most the 4000 training examples, got 4001"),
        (
            "train {quick} --grad-shards 8 --devices 3",
            2,
            "--devices must divide grad_shards 8, got 3. The nearest: 2 and 4",
        ),
        (
            "train {quick} --grad-shards 64 --devices 64",
            6,
            "device: 64 devices were asked for, but JAX finds 8",
        ),
        ("train {quick} --device tpu", 6, "device: tpu was asked for, but JAX finds cpu (cpu)."),
        (
            "train {quick} --data.name mnist --manual-dir {here}",
            4,
            "data: {here} has none of mnist's files: found nothing;",
        ),
    ],
)
def test_a_mistake_is_said_first_on_stderr_with_its_exit_code(
    words: str, code: int, message: str, program: Program, trained: str, runs_dir: Path, tmp_path: Path
) -> None:
    accuracy = program("train", "--resume", trained, "--json").document["test_accuracy"]
    facts = {"run": trained, "here": str(tmp_path), "quick": QUICKSTART, "accuracy": f"{accuracy:.4f}"}
    ended = program(*words.format(**facts).split())
    assert ended.code == code
    assert ended.first_line.startswith(message.format(**facts))


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
    assert rows[0] == "file,index,label,probability,top"
    assert rows[1].startswith(f"{names[0]},0,{found[0]['label']},{found[0]['probability']},")
    assert len(rows) == 5
    drawn = [line for line in ended.stderr.splitlines() if set(line) <= set(" .:-=+*#%@")]
    assert len(drawn) == 4 * 28


def test_answers_that_cannot_be_written_end_in_8(program: Program, trained: str, tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.zeros((28, 28), np.uint8))
    ended = program("predict", trained, str(tmp_path / "one.npy"), "--csv", str(tmp_path / "no" / "out.csv"))
    assert (ended.code, ended.first_line) == (8, f"could not write {tmp_path}/no/out.csv: No such file or directory.")


def test_data_status_tells_of_every_data_set(program: Program, tmp_path: Path) -> None:
    found = {
        each["name"]: each for each in program("data", "status", "--json", "--data-dir", str(tmp_path)).document["data"]
    }
    assert {"mnist", "fashion_mnist", "mnist_5k"} <= set(found)
    assert found["mnist_5k"]["prepared"] and len(found["mnist_5k"]["sha256"]) == 64
    assert program("data", "prepare", "mnist_5k", "--json").document["data"] == [found["mnist_5k"]]


def test_a_bug_shows_its_traceback_and_asks_for_a_report(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxmlp.cli.data.run", lambda argv: 1 / 0)
    ended = program("data", "status", "--json")
    assert ended.code == 1
    assert ended.stderr.startswith("Traceback")
    assert ended.stderr.splitlines()[-1].startswith("This is a bug in jaxmlp")
    assert ended.document == {"status": "failed", "error": "ZeroDivisionError: division by zero"}


def test_a_loss_that_is_not_finite_ends_in_7(program: Program, runs_dir: Path) -> None:
    ended = program(
        "train", QUICKSTART, *SMALL, "--model.activation", "linear", "--optimizer.learning-rate", "1e30", "--json"
    )
    assert (ended.code, ended.document["status"]) == (7, "diverged")
    assert "diverged: the loss is not finite at step" in ended.stderr


def test_ctrl_c_outside_of_training_ends_in_130(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(argv: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxmlp.cli.data.run", interrupted)
    ended = program("data", "status", "--json")
    assert (ended.code, ended.document["status"], ended.stderr) == (130, "interrupted", "interrupted\n")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["data", "status"], ["data", "status", "--json"]])
def test_a_closed_pipe_ends_the_program_without_a_word(words: list[str], unbuffered: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": unbuffered}
    command = [sys.executable, "-m", "jaxmlp", *words]
    ended = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, env=env, check=False, text=True)
    os.close(writing)
    assert ended.returncode == 128 + signal.SIGPIPE
    assert "Error" not in ended.stderr and ("--json" in words or ended.stderr == "")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [["--version"], ["--help"], ["data", "status"], ["data", "status", "--json"]])
def test_an_output_on_a_full_disk_ends_the_program_with_8(words: list[str], unbuffered: str) -> None:
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": unbuffered}
    command = [sys.executable, "-m", "jaxmlp", *words]
    with open("/dev/full", "w") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, env=env, check=False, text=True)
        silent = subprocess.run(command, stdout=full, stderr=full, env=env, check=False)
    assert ended.returncode == silent.returncode == 8
    assert ended.stderr.splitlines()[-1] == "could not write the output: No space left on device."
    assert "Traceback" not in ended.stderr and "Exception" not in ended.stderr


def test_a_file_does_not_take_the_place_of_a_stream_that_was_closed(tmp_path: Path) -> None:
    code = "import sys; from jaxmlp.cli import main; code = main(['--version']); file = open(sys.argv[1], 'w')\n"
    code += "print('to stdout'); print('to stderr', file=sys.stderr); sys.exit(code or (0 if file.fileno() > 2 else 9))"
    command = ["bash", "-c", 'exec "$@" <&- >&- 2>&-', "bash", sys.executable, "-c", code, str(tmp_path / "file")]
    assert subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False).returncode == 0
    assert (tmp_path / "file").read_text() == ""


def test_an_experiment_runs_as_a_script(tmp_path: Path) -> None:
    ended = script(QUICKSTART, *SMALL, "--out", str(tmp_path / "run"), "--json")
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["run_dir"] == str(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["name"] == "quickstart"
