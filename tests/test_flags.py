"""An experiment's file and flags make its config; a mistake in them is said first on stderr and exits 2."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import command_line
import pytest
from command_line import Program

from jaxmlp import config as cfg
from jaxmlp.cli import flags
from jaxmlp.cli.experiment import load_config
from jaxmlp.cli.train import TrainFlags
from jaxmlp.fields import Part

program = command_line.program
EXPERIMENTS = {
    "good.py": "from jaxmlp import ExperimentConfig\nCONFIG = ExperimentConfig()",
    "named.py": "from jaxmlp import ExperimentConfig\nCONFIG = ExperimentConfig(name='mine')",
    "neighbour.py": "from good import CONFIG",
    "empty.py": "",
    "other.py": "CONFIG = {'epochs': 3}",
    "raises.py": "x = 1\nx / 0",
    "leaves.py": "import sys\nsys.exit('no')",
    "wrong.py": "from jaxmlp import MLP\nMLP(dropout_rate=50)",
    "bad name.py": "from jaxmlp import ExperimentConfig\nCONFIG = ExperimentConfig()",
}
SHIPPED = (
    "These ship: benchmark_peers, quickstart, relu_rmsprop, speedrun, tanh_sgd_nesterov. "
    "A file of your own has a / in its name, or ends in .py"
)


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
        (
            "goood",
            f"goood is not an experiment that ships with jaxmlp. Did you mean good.py? {SHIPPED}",
        ),
        (
            "relu",
            f"relu is not an experiment that ships with jaxmlp. Did you mean relu_rmsprop? {SHIPPED}",
        ),
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


def test_a_bare_name_is_the_experiment_that_ships_in_every_command(program: Program, experiments: Path) -> None:
    Path("relu_rmsprop.py").write_text("raise SystemExit('another file was read')")
    for words in (["summary", "relu_rmsprop"], ["train", "relu_rmsprop", "--dry-run"]):
        assert program(*words, "--json").document["params"] == 669706
