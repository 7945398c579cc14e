"""An experiment's file and flags make its config; a mistake in them is said first on stderr and exits 2."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import command_line
import optax
import pytest
from command_line import Program, assert_refused
from refusals import assert_names

import jaxmlp
from jaxmlp import ExperimentConfig
from jaxmlp.cli.experiment import parse_changes
from jaxmlp.cli.train import TrainFlags
from jaxmlp.experiment.parts import Part, role_of
from jaxmlp.experiment.plain import kinds, roles_of, stored_fields
from jaxmlp.source.file import load_experiment

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
    ("words", "named"),
    [
        ("goood.py", "goood.py good.py?"),
        ("nothing/like/it.py", "nothing/like/it.py"),
        ("empty.py", "empty.py ExperimentConfig(...)"),
        ("other.py", "other.py dict ExperimentConfig(...)"),
        ("raises.py", "raises.py 2 ZeroDivisionError zero"),
        ("leaves.py", "leaves.py 2 SystemExit no"),
        ("wrong.py", "wrong.py model.dropout_rate 50 0.5?"),
        ("", "train EXPERIMENT.py"),
        ("--seed 3", "train EXPERIMENT.py"),
        ("--seed 3 good", "good .py"),
        ("good.py 7", "'7' EXPERIMENT.py"),
        ("good.py --epoch 5", "--epoch --epochs?"),
        ("good.py --epoch=5", "--epoch --epochs?"),
        ("good.py -x", "-x"),
        ("good.py --optimizer.rate 1", "--optimizer.rate --optimizer.rho?"),
        ("good.py --epochs abc", "--epochs 'abc'"),
        ("good.py --epochs 2.5", "--epochs '2.5'"),
        ("good.py --epochs 0", "--epochs [1, 1000000], 0"),
        ("good.py --seed -1", "--seed [0, 4294967295], -1"),
        ("good.py --model.dropout-rate 50", "--model.dropout-rate [0, 1), 50 0.5?"),
        ("good.py --model.hidden-sizes 5 x", "--model.hidden-sizes 'x'"),
        ("good.py --precision bfloat", "--precision float32 tensorfloat32 portable 'bfloat' bfloat16?"),
        ("good.py --device cuda", "--device auto cpu gpu tpu 'cuda'"),
        ("good.py --min-accuracy 97", "--min-accuracy [0, 1], 97 0.97?"),
        ("good.py --verbose 3", "--verbose auto 0 1 2 '3'"),
        ("good.py --grad-shards 3", "--grad-shards 128 3 2 4"),
        ("good.py --optimizer adem", "--optimizer sgd rmsprop adam adamw"),
        ("good.py --optimizer", "--optimizer"),
        ("good.py --optimizer --seed 3", "--optimizer"),
        ("good.py --outputs 3", "--outputs --out?"),
        ("good.py --total-steps 3", "--total-steps"),
        ("good.py --epochs", "--epochs"),
        ("good.py --batch_size --seed 3", "--batch_size"),
        ("good.py --optimizer.momentum 0.9", "--optimizer.momentum --optimizer sgd"),
        ("good.py --optimizer.schedule.decay 1", "--optimizer.schedule.decay --optimizer.schedule inverse_time"),
        ("--resume last --seed 3", "--seed --resume"),
        ("--resume last good.py", "--resume 'good.py'"),
    ],
)
def test_a_mistake_in_a_command_line_is_said_first_on_stderr_and_exits_2(
    words: str, named: str, program: Program, experiments: Path
) -> None:
    ended = program("train", *words.split())
    assert (ended.code, ended.stdout) == (2, "")
    assert_names(ended.first_line, *named.split())


def test_a_name_that_is_no_folders_name_is_refused(program: Program, experiments: Path) -> None:
    ended = program("train", "bad name.py")
    assert_refused(ended, 2, "bad name.py", "name")


def test_an_experiment_is_named_after_its_file_unless_it_has_a_name_and_finds_its_neighbours(experiments: Path) -> None:
    assert load_experiment(Path("good.py")).config.name == "good"
    assert load_experiment(Path("named.py")).config.name == "mine"
    assert load_experiment(Path("neighbour.py")).config.name == "neighbour"


CONFIGS = [
    ExperimentConfig(optimizer=jaxmlp.SGD(schedule=jaxmlp.InverseTime())),
    ExperimentConfig(optimizer=jaxmlp.RMSprop(schedule=jaxmlp.Exponential()), loss=jaxmlp.CrossEntropy()),
    ExperimentConfig(optimizer=jaxmlp.Adam(schedule=jaxmlp.Piecewise()), loss=jaxmlp.MeanSquaredError()),
    ExperimentConfig(optimizer=jaxmlp.AdamW(schedule=jaxmlp.Cosine()), metrics=(jaxmlp.Accuracy(), jaxmlp.TopK())),
]
OTHER: dict[type, Callable[[Any], Any]] = {bool: lambda b: not b, int: lambda n: n + 1, float: lambda x: x * 0.5 + 0.25}
"""Another value of the same type, valid for every field that has no entry of its own below."""
OTHER_OF_FIELD: dict[str, Any] = {
    "data.class_weights": (1.0, 2.0),
    "data.also": ("test",),
    "clip_norm": 1.0,
    "clip_value": 0.5,
    "model.hidden_sizes": (),
    "model.activation": "tanh",
    "model.kernel_init": "he_normal",
    "data.name": "fashion_mnist",
    "data.validation": None,
    "optimizer.schedule.boundaries": (5,),
    "optimizer.schedule.factors": (0.5, 0.25),
    "loss.epsilon": 0.01,
    "best_by": "accuracy",
    "name": "another",
    "precision": "bfloat16",
    "grad_shards": 8,
}


def leaf_paths(part: Part, prefix: str = "") -> Iterator[str]:
    for item in stored_fields(part):
        value, path = getattr(part, item.name), prefix + item.name
        if isinstance(value, Part):
            yield from leaf_paths(value, f"{path}.")
        elif item.metadata.get("parts"):
            for number, each in enumerate(value):
                yield from leaf_paths(each, f"{path}.{number}.")
        else:
            yield path


def value_of(part: Any, path: str) -> Any:
    for name in path.split("."):
        part = part[int(name)] if isinstance(part, tuple) else getattr(part, name)
    return part


def replaced(part: Any, path: str, value: Any) -> Any:
    name, _, rest = path.partition(".")
    inner = replaced(value_of(part, name), rest, value) if rest else value
    if isinstance(part, tuple):
        return (*part[: int(name)], inner, *part[int(name) + 1 :])
    return dataclasses.replace(part, **{name: inner})


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
def test_every_config_value_is_a_flag_that_changes_it_and_nothing_else(config: ExperimentConfig, path: str) -> None:
    value = value_of(config, path)
    other = OTHER_OF_FIELD[path] if path in OTHER_OF_FIELD else OTHER[type(value)](value)
    wanted = replaced(config, path, other)
    assert wanted != config
    chosen, _ = parse_changes(TrainFlags, ["FILE", *as_words(path, other)], "train", "FILE", config)
    assert chosen == type(chosen)(config=wanted)  # type: ignore[call-arg]


def test_the_experiment_may_stand_anywhere_among_the_flags(program: Program, experiments: Path) -> None:
    words = ["--model.hidden-sizes", "5", "6", "good.py", "--data.name", "mnist_5k", "--json"]
    layers = program("summary", *words).document["layers"]
    assert [layer["output_shape"] for layer in layers if layer["type"] == "Dense"] == [[5], [6], [10]]


def changed(words: list[str], config: ExperimentConfig) -> ExperimentConfig:
    """The config as flags change it."""
    chosen, _ = parse_changes(TrainFlags, words, "train", "FILE", config)
    found: ExperimentConfig = chosen.config  # type: ignore[attr-defined]
    return found


KINDS = [(path, kind) for path, role in roles_of(ExperimentConfig()).items() for kind in kinds(role_of(type(role)))]


@pytest.mark.parametrize(("path", "kind"), KINDS)
@pytest.mark.parametrize("form", ["{flag} {kind}", "{flag}={kind}"])
def test_a_flag_chooses_the_kind_of_a_part_with_its_defaults(path: str, kind: str, form: str) -> None:
    words = form.format(flag=f"--{path}", kind=kind).split()
    found = changed(["FILE", *words], ExperimentConfig())
    chosen = kinds(role_of(type(value_of(ExperimentConfig(), path))))[kind]
    assert found == replaced(ExperimentConfig(), path, chosen())


def test_a_chosen_kind_takes_its_values_from_flags_before_or_after_it() -> None:
    words = "FILE --optimizer.b1 0.8 --optimizer.schedule.end-factor 0.5 --optimizer adam --optimizer.schedule cosine"
    found = changed(words.split(), ExperimentConfig())
    assert found.optimizer == jaxmlp.Adam(b1=0.8, schedule=jaxmlp.Cosine(end_factor=0.5))


class Signed(jaxmlp.Optimizer):
    """A part of a file's own."""

    beta: float = 0.9

    def transformation(self, total_steps: Any) -> optax.GradientTransformation:
        return optax.lion(0.1, b1=self.beta)


@pytest.mark.parametrize(
    ("optimizer", "kind"),
    [(jaxmlp.RMSprop(rho=0.5), "rmsprop"), (Signed(beta=0.5), "Signed"), (Signed(beta=0.5), "signed")],
)
def test_the_kind_that_the_file_has_keeps_the_files_values(optimizer: jaxmlp.Optimizer, kind: str) -> None:
    config = ExperimentConfig(optimizer=optimizer)
    assert changed(["FILE", "--optimizer", kind], config) == config
