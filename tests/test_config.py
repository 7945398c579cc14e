"""The config's promises: checked where it is made, the same after JSON, and split into program and leaves."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import typing
from types import NoneType, UnionType
from typing import Any, Literal, TypeAlias

import jax
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jaxmlp.config import DataConfig, ExperimentConfig
from jaxmlp.errors import ConfigError
from jaxmlp.fields import hints
from jaxmlp.losses import ClippedCrossEntropy, CrossEntropy, MeanSquaredError
from jaxmlp.metrics import Accuracy, MeanAbsoluteError, TopK
from jaxmlp.mlp import MLP
from jaxmlp.optimizers import SGD, Adam, AdamW, RMSprop
from jaxmlp.parts import Augmentation, Loss, Metric, Model, Optimizer, Part, Schedule, kinds, stored_fields
from jaxmlp.schedules import Constant, Cosine, Exponential, InverseTime, Piecewise

PartType: TypeAlias = Any
"""A subclass of `Part`."""

INTERVALS: dict[PartType, dict[str, str]] = {
    ExperimentConfig: {
        "batch_size": "[1, 2147483647]",
        "epochs": "[1, 1000000]",
        "seed": "[0, 4294967295]",
        "grad_shards": "[1, 65536]",
    },
    MLP: {"hidden_sizes": "[1, 1000000]", "dropout_rate": "[0, 1)", "l1": "[0, inf)", "l2": "[0, inf)"},
    DataConfig: {"validation": "(0, 1)", "pixel_scale": "(0, inf)"},
    SGD: {"learning_rate": "[0, inf)", "momentum": "[0, 1)"},
    RMSprop: {"learning_rate": "[0, inf)", "rho": "[0, 1)", "epsilon": "(0, inf)"},
    Adam: {"learning_rate": "[0, inf)", "b1": "[0, 1)", "b2": "[0, 1)", "epsilon": "(0, inf)"},
    AdamW: {
        "learning_rate": "[0, inf)",
        "b1": "[0, 1)",
        "b2": "[0, 1)",
        "epsilon": "(0, inf)",
        "weight_decay": "[0, inf)",
    },
    Constant: {},
    InverseTime: {"decay": "[0, inf)"},
    Exponential: {"decay_rate": "(0, inf)", "decay_steps": "(0, inf)"},
    Piecewise: {"boundaries": "[1, 2147483647]", "factors": "[0, inf)"},
    Cosine: {"warmup_fraction": "[0, 1)", "end_factor": "[0, 1]"},
    ClippedCrossEntropy: {"epsilon": "(0, 0.5)"},
    CrossEntropy: {"label_smoothing": "[0, 1)"},
    MeanSquaredError: {},
    Accuracy: {},
    TopK: {"k": "[1, 1000000]"},
    MeanAbsoluteError: {},
}
"""What every number may be, written down a second time."""

FREE = {(ExperimentConfig, name) for name in ("name", "epochs", "best_by")} | {
    (DataConfig, name) for name in ("name", "validation")
}
"""Fields that no compiled program depends on, beside the traced ones."""

PARTS = [pytest.param(cls, id=cls.__name__) for cls in INTERVALS]
FIELDS, PLAIN_FIELDS = (
    [
        pytest.param(cls, item.name, id=f"{cls.__name__}.{item.name}")
        for cls in INTERVALS
        for item in stored_fields(cls)
        if not without or not (isinstance(getattr(cls(), item.name), Part) or item.metadata.get("parts"))
    ]
    for without in (False, True)
)
NUMBERS = [
    pytest.param(cls, name, interval, id=f"{cls.__name__}.{name}")
    for cls, intervals in INTERVALS.items()
    for name, interval in intervals.items()
]


def is_traced(cls: PartType, name: str) -> bool:
    """Every number of optimizers and schedules is, and the seed, and nothing else."""
    return (cls.path.startswith("optimizer") and name in INTERVALS[cls]) or (cls, name) == (ExperimentConfig, "seed")


def dotted(cls: PartType, name: str) -> str:
    return f"{cls.path}.{name}" if cls.path else name


def in_json(cls: PartType, name: str) -> str:
    """The field's path in JSON, where a metric is an element of a list."""
    return f"metrics.0.{name}" if issubclass(cls, Metric) else dotted(cls, name)


@functools.cache
def types_of(cls: PartType, name: str) -> tuple[Any, ...]:
    hint = hints(cls)[name]
    return typing.get_args(hint) if isinstance(hint, UnionType) else (hint,)


def number_type(cls: PartType, name: str) -> Any:
    """int, float, or None where the field holds no number."""
    plain = [typing.get_args(t)[0] if typing.get_origin(t) is tuple else t for t in types_of(cls, name)]
    return next((t for t in plain if t in (int, float)), None)


def float32_ends(interval: str) -> tuple[float, float]:
    """The least and the largest number of float32 in an interval."""
    low, high = (np.float32(bound) for bound in interval[1:-1].split(","))
    least = low if interval[0] == "[" else np.nextafter(low, np.float32(np.inf))
    return float(least), float(high if interval[-1] == "]" else np.nextafter(high, np.float32(-np.inf)))


def numbers(cls: PartType, name: str) -> st.SearchStrategy[Any]:
    interval = INTERVALS[cls][name]
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    if number_type(cls, name) is int:
        return st.integers(int(low), int(high))
    # Any number between two that float32 has is rounded to one between them.
    return st.floats(*float32_ends(interval))


@functools.cache
def values(cls: PartType, name: str) -> st.SearchStrategy[Any]:
    """Whatever the field may hold."""
    if (cls, name) == (ExperimentConfig, "name"):
        return st.from_regex(r"[\w-][\w.-]*", fullmatch=True)
    if (cls, name) == (ExperimentConfig, "best_by"):
        return st.sampled_from(["loss", "accuracy"])
    if known := next(item.metadata.get("known") for item in stored_fields(cls) if item.name == name):
        return st.sampled_from(list(known))
    found: list[st.SearchStrategy[Any]] = []
    for choice in types_of(cls, name):
        if typing.get_origin(choice) is Literal:
            found.append(st.sampled_from(typing.get_args(choice)))
        elif choice == tuple[Metric, ...]:
            found.append(st.lists(any_kind(Metric), max_size=3, unique_by=lambda metric: metric.name).map(tuple))
        elif choice == tuple[Augmentation, ...]:
            found.append(st.just(()))
        elif typing.get_origin(choice) is tuple:
            found.append(st.lists(numbers(cls, name), max_size=4).map(tuple))
        elif choice in (int, float):
            found.append(numbers(cls, name))
        elif issubclass(choice, Part):
            found.append(any_kind(choice) if choice.rule else parts(choice))
        else:
            found.append({bool: st.booleans(), str: st.text(), NoneType: st.none()}[choice])
    return st.one_of(found)


def any_kind(role: PartType) -> st.SearchStrategy[Any]:
    """Any part of a role."""
    return st.one_of([parts(kind) for kind in kinds(role).values()])


@st.composite
def parts(draw: st.DrawFn, cls: PartType) -> Any:
    """Any part of this type."""
    drawn = {item.name: draw(values(cls, item.name)) for item in stored_fields(cls)}
    if cls is Piecewise:
        drawn["boundaries"] = sorted(set(drawn["boundaries"]))
        drawn["factors"] = [draw(numbers(cls, "factors")) for _ in range(len(drawn["boundaries"]) + 1)]
    if cls is ExperimentConfig:
        drawn["batch_size"] = drawn["grad_shards"] * draw(st.integers(2, 1000))
        drawn["best_by"] = draw(st.sampled_from(["loss", *(metric.name for metric in drawn["metrics"])]))
    return cls(**drawn)


def experiment_with(part: Any) -> ExperimentConfig:
    if isinstance(part, ExperimentConfig):
        return part
    if isinstance(part, Schedule):
        return ExperimentConfig(optimizer=Adam(schedule=part))
    if isinstance(part, Metric):
        return ExperimentConfig(metrics=part, best_by=part.name)
    return ExperimentConfig(**{part.path: part})


def program(part: Any) -> Any:
    """What compiled programs are found by: the tree of the config, and the types of its leaves."""
    leaves, tree = jax.tree.flatten(experiment_with(part).on_data(10, 5))
    return tree, tuple(map(jax.typeof, leaves))


def plain_with(cls: PartType) -> tuple[dict[str, Any], dict[str, Any]]:
    """An experiment of this part as JSON types, and the part within it."""
    plain = part = experiment_with(cls()).to_dict()
    for step in cls.path.split(".") if cls.path else ():
        part = part[step]
    return plain, part[0] if isinstance(part, list) else part


def refusal(plain: dict[str, Any]) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        ExperimentConfig.from_dict(plain)
    return caught.value


@given(parts(ExperimentConfig))
def test_json_gives_back_an_equal_config_with_an_equal_hash_and_every_bit(config: ExperimentConfig) -> None:
    text = config.to_json()
    again = ExperimentConfig.from_json(text)
    assert (again, hash(again), again.to_json()) == (config, hash(config), text)


@given(parts(ExperimentConfig))
def test_json_holds_only_what_the_standard_knows(config: ExperimentConfig) -> None:
    json.loads(config.to_json(), parse_constant=lambda constant: pytest.fail(constant))


@pytest.mark.parametrize(("cls", "name", "interval"), NUMBERS)
def test_a_number_may_be_at_the_edges_of_its_interval_and_not_beyond(cls: PartType, name: str, interval: str) -> None:
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    taken: list[float]
    refused: list[float]
    if number_type(cls, name) is int:
        taken, refused = [int(low), int(high)], [int(low) - 1, int(high) + 1]
    else:
        taken, refused = [*float32_ends(interval)], [math.nan]
        # An end that is not in it, and what is so near that float32 takes it for that end, are refused.
        refused += [math.nextafter(low, -math.inf)] if interval[0] == "[" else [low, math.nextafter(low, math.inf)]
        refused += (
            [math.nextafter(high, math.inf)] if interval[-1] == "]" else [high, min(math.nextafter(high, 0), 1e300)]
        )

    def made_with(number: float) -> Any:
        default = getattr(cls(), name)
        value = (number,) * len(default) if isinstance(default, tuple) else number
        return getattr(cls(**({"batch_size": 131072} if name == "grad_shards" else {}) | {name: value}), name), value

    for number in taken:
        made, given_value = made_with(number)
        assert made == given_value
    for number in refused:
        with pytest.raises(ConfigError) as caught:
            made_with(number)
        assert caught.value.field == dotted(cls, name)
        assert caught.value.problem.startswith(f"must be in {interval}, got ")


@pytest.mark.parametrize("cls", PARTS)
def test_every_number_has_an_interval(cls: PartType) -> None:
    assert {item.name for item in stored_fields(cls) if number_type(cls, item.name)} == set(INTERVALS[cls])


@pytest.mark.parametrize(("cls", "name"), FIELDS)
def test_a_missing_field_is_refused_by_name(cls: PartType, name: str) -> None:
    plain, part = plain_with(cls)
    del part[name]
    assert str(refusal(plain)) == f"{in_json(cls, name)} is missing"


@pytest.mark.parametrize(("cls", "name"), FIELDS)
def test_a_misspelt_field_is_refused_and_the_nearest_named(cls: PartType, name: str) -> None:
    plain, part = plain_with(cls)
    part[f"{name}_"] = part.pop(name)
    assert str(refusal(plain)) == f"{in_json(cls, name)}_ is not a field. Did you mean {name}?"


@pytest.mark.parametrize(("cls", "name"), FIELDS)
def test_a_value_of_another_type_is_refused_by_name(cls: PartType, name: str) -> None:
    fitting: dict[Any, list[Any]] = {bool: [bool], int: [int], float: [int, float], str: [str], NoneType: [NoneType]}
    fits = [found for choice in types_of(cls, name) for found in fitting.get(choice, [])]
    wrong_values: list[Any] = [{"no": "field"}, ["no number"], True, 0.5, -1, "no word", None]
    for wrong in (value for value in wrong_values if type(value) not in fits):
        plain, part = plain_with(cls)
        part[name] = wrong
        assert refusal(plain).field.startswith((dotted(cls, name), in_json(cls, name))), wrong


@pytest.mark.parametrize(
    ("field", "wrong", "message"),
    [
        ("model.dropout_rate", 50, "must be in [0, 1), got 50. Did you mean 0.5?"),
        ("model.hidden_sizes", [512, 0], "must be in [1, 1000000], got 0"),
        ("model.hidden_sizes", 512, "must be a list of integers, got 512"),
        ("epochs", 2.0, "must be an integer, got 2.0"),
        ("seed", True, "must be an integer, got True"),
        ("data.pixel_scale", "1/255", "must be a number, got '1/255'"),
        ("precision", "float16", "must be one of float32, bfloat16, got 'float16'. Did you mean bfloat16?"),
        ("optimizer.kind", "adamx", "must be one of sgd, rmsprop, adam, adamw, got 'adamx'. Did you mean adam?"),
        ("loss", None, "must be a JSON object, got None"),
        ("name", "../up", "must be letters, digits, '.', '_' and '-', got '../up'"),
        ("name", "", "must be letters, digits, '.', '_' and '-', got ''"),
        (
            "grad_shards",
            7,
            "must divide batch_size 128 into shards of 2 rows or more, got 7. The nearest that do: 4 and 8",
        ),
        (
            "grad_shards",
            128,
            "must divide batch_size 128 into shards of 2 rows or more, got 128. The nearest that do: 32 and 64",
        ),
    ],
)
def test_a_wrong_value_is_answered_with_the_rule_and_the_remedy(field: str, wrong: Any, message: str) -> None:
    plain = part = ExperimentConfig().to_dict()
    *path, name = field.split(".")
    for step in path:
        part = part[step]
    part[name] = wrong
    assert str(refusal(plain)) == f"{field} {message}"


@pytest.mark.parametrize(
    ("boundaries", "factors", "message"),
    [
        ((5, 5), (1, 1, 1), "optimizer.schedule.boundaries must rise, got (5, 5)"),
        ((5, 6), (1, 1), "optimizer.schedule.factors must hold one more than boundaries (3), got 2"),
    ],
)
def test_a_piecewise_schedule_rises_and_has_a_factor_for_each_piece(
    boundaries: tuple[int, ...], factors: tuple[float, ...], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        Piecewise(boundaries=boundaries, factors=factors)
    assert str(caught.value) == message


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "[]", "3", '"text"'])
def test_a_text_that_is_no_json_object_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^config must be (a JSON object, got|JSON: )"):
        ExperimentConfig.from_json(text)


@pytest.mark.parametrize("cls", PARTS)
def test_a_part_is_frozen_hashable_and_made_by_keywords_only(cls: PartType) -> None:
    assert {cls(): "found"}[cls()] == "found"
    with pytest.raises(TypeError):
        cls(1)
    for item in dataclasses.fields(cls):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(cls(), item.name, getattr(cls(), item.name))


def test_numpy_numbers_and_lists_become_plain_values() -> None:
    config = ExperimentConfig(seed=np.uint32(3), model=MLP(hidden_sizes=[np.int64(4)], l1=np.float32(0.5)))
    plain = ExperimentConfig(seed=3, model=MLP(hidden_sizes=(4,), l1=0.5))
    assert (config, config.to_json()) == (plain, plain.to_json())


@settings(max_examples=10)
@given(data=st.data())
@pytest.mark.parametrize(("cls", "name"), PLAIN_FIELDS)
def test_a_program_depends_on_a_field_unless_it_is_traced_or_free(
    cls: PartType, name: str, data: st.DataObject
) -> None:
    whole = {"batch_size": 131072, "grad_shards": 1} if cls is ExperimentConfig else {}
    one = cls(**whole)
    value = data.draw(st.sampled_from([2, 4, 65536]) if name in whole else values(cls, name))
    assume(value != getattr(one, name))
    changes = {"boundaries": (7,), "factors": (0.5, 0.25)} if cls is Piecewise else {name: value}
    same = program(one) == program(dataclasses.replace(one, **changes))
    assert same == (is_traced(cls, name) or (cls, name) in FREE)


@pytest.mark.parametrize("role", [Model, Optimizer, Schedule, Loss, Metric])
def test_every_kind_is_another_program(role: PartType) -> None:
    shipped = kinds(role).values()
    assert len({program(kind()) for kind in shipped}) == len(shipped)


@given(parts(ExperimentConfig))
def test_the_leaves_are_every_traced_value_and_nothing_else(config: ExperimentConfig) -> None:
    def traced(part: Any, prefix: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {}
        for item in stored_fields(part):
            value = getattr(part, item.name)
            if isinstance(value, Part):
                found |= traced(value, f"{prefix}.{item.name}")
            elif is_traced(type(part), item.name):
                elements = enumerate(value) if isinstance(value, tuple) else [(None, value)]
                found |= {f"{prefix}.{item.name}" + (f"[{i}]" if i is not None else ""): each for i, each in elements}
        return found

    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(config)}
    assert leaves == traced(config)
