"""The config's promises: checked where it is made, the same after JSON, and the argument of compiled functions."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
import typing
from types import NoneType, UnionType
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from refusals import refused

import jaxmlp
from jaxmlp import MLP, DataConfig, ExperimentConfig, TopK
from jaxmlp.errors import ConfigError
from jaxmlp.experiment.parts import Augmentation, Controller, Loss, Metric, Model, Optimizer, Part, Schedule
from jaxmlp.experiment.plain import kinds, stored_fields

PartType: TypeAlias = Any
"""A subclass of `Part` that is a dataclass."""

INTERVALS: dict[PartType, dict[str, str]] = {
    ExperimentConfig: {
        "batch_size": "[1, 2147483647]",
        "eval_rows": "[1, 2147483647]",
        "epochs": "[1, 1000000]",
        "seed": "[0, 4294967295]",
        "grad_shards": "[1, 65536]",
        "accumulate": "[1, 65536]",
        "clip_norm": "(0, inf)",
        "clip_value": "(0, inf)",
    },
    MLP: {"hidden_sizes": "[1, 1000000]", "dropout_rate": "[0, 1)", "l1": "[0, inf)", "l2": "[0, inf)"},
    DataConfig: {"validation": "(0, 1)", "pixel_scale": "(0, inf)", "class_weights": "[0, inf)"},
    jaxmlp.SGD: {"learning_rate": "[0, inf)", "momentum": "[0, 1)"},
    jaxmlp.RMSprop: {"learning_rate": "[0, inf)", "rho": "[0, 1)", "epsilon": "(0, inf)"},
    jaxmlp.Adam: {"learning_rate": "[0, inf)", "b1": "[0, 1)", "b2": "[0, 1)", "epsilon": "(0, inf)"},
    jaxmlp.AdamW: {
        "learning_rate": "[0, inf)",
        "b1": "[0, 1)",
        "b2": "[0, 1)",
        "epsilon": "(0, inf)",
        "weight_decay": "[0, inf)",
    },
    jaxmlp.LayerRates: {"factors": "[0, inf)"},
    jaxmlp.Constant: {},
    jaxmlp.InverseTime: {"decay": "[0, inf)"},
    jaxmlp.Exponential: {"decay_rate": "(0, inf)", "decay_steps": "(0, inf)"},
    jaxmlp.Piecewise: {"boundaries": "[1, 2147483647]", "factors": "[0, inf)"},
    jaxmlp.CosineRestarts: {
        "first_steps": "[1, 2147483647]",
        "length_factor": "[1, 1000]",
        "height_factor": "(0, 1]",
        "end_factor": "[0, 1]",
    },
    jaxmlp.Cosine: {"warmup_fraction": "[0, 1)", "end_factor": "[0, 1]"},
    jaxmlp.ClippedCrossEntropy: {"epsilon": "(0, 0.5)", "label_smoothing": "[0, 1)"},
    jaxmlp.CrossEntropy: {"label_smoothing": "[0, 1)"},
    jaxmlp.MeanSquaredError: {},
    jaxmlp.Accuracy: {},
    jaxmlp.TopK: {"k": "[1, 1000000]"},
    jaxmlp.MeanAbsoluteError: {},
    jaxmlp.EarlyStopping: {"patience": "[0, 1000000]", "min_delta": "[0, inf)"},
    jaxmlp.ReduceOnPlateau: {
        "factor": "(0, 1)",
        "patience": "[0, 1000000]",
        "min_delta": "[0, inf)",
        "cooldown": "[0, 1000000]",
        "min_factor": "[0, 1]",
    },
    jaxmlp.Budget: {"seconds": "(0, inf)", "steps": "[1, 2147483647]"},
    jaxmlp.EMA: {"decay": "[0, 1)"},
    jaxmlp.Mixup: {"alpha": "(0, 1]"},
    **{figure: {"label": "[0, 2147483647]"} for figure in (jaxmlp.Precision, jaxmlp.Recall, jaxmlp.F1)},
    jaxmlp.CalibrationError: {"bins": "[1, 10000]"},
    jaxmlp.BrierScore: {},
    jaxmlp.Shift: {"pixels": "[0, 1024]"},
    jaxmlp.Rotate: {"degrees": "[0, 180]"},
    jaxmlp.Scale: {"part": "[0, 1)"},
    jaxmlp.Elastic: {"pixels": "[0, inf)", "smoothness": "(0, inf)"},
    jaxmlp.Noise: {"size": "[0, inf)"},
    jaxmlp.CutOut: {"size": "[0, 1024]"},
}
"""The interval of every number, written down independently of the fields."""

FREE = {(ExperimentConfig, name) for name in ("name", "epochs", "best_by")} | {
    (cls, name)
    for cls, names in ((DataConfig, ("name", "validation")), (jaxmlp.Budget, ("seconds", "steps")))
    for name in names
}
"""Fields that no compiled program sees."""
OTHERS_TRACED = {(ExperimentConfig, name) for name in ("seed", "clip_norm", "clip_value")} | {
    (DataConfig, "class_weights")
}
STATIC = FREE | {(jaxmlp.Elastic, "smoothness")}
SEVERAL = ("metrics", "augmentation", "controllers")
OF_ONE_SHAPE: dict[str, tuple[Any, Any]] = {
    "clip_norm": (1.0, 2.0),
    "clip_value": (1.0, 2.0),
    "class_weights": ((1.0,), (2.0,)),
}
"""Two values each of the fields whose programs depend on whether there is a value, or on how many there are."""
ROLES = (Model, Optimizer, Schedule, Loss, Metric)

PARTS = [pytest.param(cls, id=cls.__name__) for cls in INTERVALS]
FIELDS, PLAIN_FIELDS = (
    [
        pytest.param(cls, item.name, id=f"{cls.__name__}.{item.name}")
        for cls in INTERVALS
        for item in stored_fields(cls)
        if not isinstance(getattr(cls(), item.name), without) and item.name not in SEVERAL
    ]
    for without in ((), Part)
)
NUMBERS = [
    pytest.param(cls, name, interval, id=f"{cls.__name__}.{name}")
    for cls, intervals in INTERVALS.items()
    for name, interval in intervals.items()
]


def is_traced(cls: PartType, name: str) -> bool:
    """Whether a field is traced: every number of optimizers, schedules, controllers, augmentations, and few others."""
    is_of_role = cls.path.startswith(("optimizer", "controllers", "augmentation")) and (cls, name) not in STATIC
    return (is_of_role and name in INTERVALS[cls]) or (cls, name) in OTHERS_TRACED


def dotted(cls: PartType, name: str) -> str:
    return f"{cls.path}.{name}" if cls.path else name


def in_json(cls: PartType, name: str) -> str:
    """The same path, with the part's place in its list."""
    return re.sub(rf"^({'|'.join(SEVERAL)})\.", r"\1.0.", dotted(cls, name))


def is_optional(cls: PartType, name: str) -> bool:
    return any(item.name == name and item.metadata.get("optional") for item in dataclasses.fields(cls))


@functools.cache
def types_of(cls: PartType, name: str) -> tuple[Any, ...]:
    hint = typing.get_type_hints(cls)[name]
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
    found: list[st.SearchStrategy[Any]] = []
    for choice in types_of(cls, name):
        if choice in ROLES:
            found += [parts(kind) for kind in kinds(choice).values() if kind is not cls]
        elif name == "patterns":
            found.append(st.tuples(st.text()))
        elif name in ("activation", "kernel_init"):
            known = next(item for item in dataclasses.fields(cls) if item.name == name).metadata["known"]
            found.append(st.sampled_from(sorted(known)))
        elif typing.get_origin(choice) is Literal:
            found.append(st.sampled_from(typing.get_args(choice)))
        elif typing.get_origin(choice) is tuple:
            element = numbers(cls, name) if number_type(cls, name) else st.text()
            found.append(st.lists(element, max_size=4).map(tuple))
        elif choice in (int, float):
            found.append(numbers(cls, name))
        elif choice in INTERVALS:
            found.append(parts(choice))
        else:
            found.append({bool: st.booleans(), str: st.text(), NoneType: st.none()}[choice])
    return st.one_of(found)


@st.composite
def parts(draw: st.DrawFn, cls: PartType) -> Any:
    """Any part of this type."""
    names = [item.name for item in stored_fields(cls) if item.name not in (*SEVERAL, "best_by")]
    drawn = {name: draw(values(cls, name)) for name in names}
    if cls is jaxmlp.Piecewise:
        drawn["boundaries"] = sorted(set(drawn["boundaries"]))
        drawn["factors"] = [draw(numbers(cls, "factors")) for _ in range(len(drawn["boundaries"]) + 1)]
    if cls is jaxmlp.LayerRates:
        drawn["factors"] = [draw(numbers(cls, "factors"))]
    if cls is ExperimentConfig:
        drawn["batch_size"] = drawn["grad_shards"] * draw(st.integers(2, 1000))
        metrics = draw(st.lists(st.one_of(*map(parts, kinds(Metric).values())), unique_by=lambda metric: metric.name))
        drawn |= {"metrics": metrics, "best_by": draw(st.sampled_from(["loss", *(each.name for each in metrics)]))}
    return cls(**drawn)


def experiment_with(part: Any) -> ExperimentConfig:
    if isinstance(part, ExperimentConfig):
        return part
    if part.path in SEVERAL:
        return ExperimentConfig(**{part.path: [part]})
    if isinstance(part, Schedule):
        return ExperimentConfig(optimizer=jaxmlp.Adam(schedule=part))
    return ExperimentConfig(**{part.path: part})


def plain_with(cls: PartType) -> tuple[dict[str, Any], dict[str, Any]]:
    """An experiment of this part as JSON types, and the part within it."""
    plain = part = experiment_with(cls()).to_dict()
    for step in cls.path.split(".") if cls.path else ():
        part = part[step]
    return plain, part[0] if isinstance(part, list) else part


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
    beyond: list[float]
    if number_type(cls, name) is int:
        taken, beyond = [int(low), int(high)], [int(low) - 1, int(high) + 1]
    else:
        taken, beyond = [*float32_ends(interval)], [math.nan]
        # An open end is refused, and so is a number that float32 rounds to it.
        beyond += [math.nextafter(low, -math.inf)] if interval[0] == "[" else [low, math.nextafter(low, math.inf)]
        beyond += (
            [math.nextafter(high, math.inf)] if interval[-1] == "]" else [high, min(math.nextafter(high, 0), 1e300)]
        )

    def made_with(number: float) -> Any:
        default = getattr(cls(), name)
        value = (number,) * (len(default) or 1) if isinstance(default, tuple) else number
        return getattr(cls(**({"batch_size": 131072} if name == "grad_shards" else {}) | {name: value}), name), value

    for number in taken:
        made, given_value = made_with(number)
        assert made == given_value
    for number in beyond:
        with refused(ConfigError, dotted(cls, name), interval):
            made_with(number)


def test_every_part_that_ships_is_public_and_has_its_intervals_here() -> None:
    shipped = {cls.__name__: cls for role in (*ROLES, Augmentation, Controller) for cls in kinds(role).values()}
    assert shipped == {cls.__name__: cls for cls in INTERVALS if cls not in (ExperimentConfig, DataConfig)}
    assert shipped == {name: getattr(jaxmlp, name, None) for name in shipped}


@pytest.mark.parametrize("cls", PARTS)
def test_every_number_has_an_interval(cls: PartType) -> None:
    assert {item.name for item in stored_fields(cls) if number_type(cls, item.name)} == set(INTERVALS[cls])


@pytest.mark.parametrize(("cls", "name"), FIELDS)
def test_a_missing_field_is_refused_by_name(cls: PartType, name: str) -> None:
    plain, part = plain_with(cls)
    if is_optional(cls, name):
        assert name not in part
        return
    del part[name]
    with refused(ConfigError, in_json(cls, name)):
        ExperimentConfig.from_dict(plain)


@pytest.mark.parametrize(("cls", "name"), FIELDS)
def test_a_misspelt_field_is_refused_and_the_nearest_named(cls: PartType, name: str) -> None:
    plain, part = plain_with(cls)
    part[f"{name}_"] = part.pop(name, None)
    with refused(ConfigError, f"{in_json(cls, name)}_", name):
        ExperimentConfig.from_dict(plain)


@pytest.mark.parametrize(("cls", "name"), FIELDS)
def test_a_value_of_another_type_is_refused_by_name(cls: PartType, name: str) -> None:
    fitting: dict[Any, list[Any]] = {bool: [bool], int: [int], float: [int, float], str: [str], NoneType: [NoneType]}
    fits = [found for choice in types_of(cls, name) for found in fitting.get(choice, [])]
    wrong_values: list[Any] = [{"no": "field"}, ["no number"], True, 0.5, -1, "no word", None]
    wrong_values = [value for value in wrong_values if name not in ("patterns", "also") or not isinstance(value, list)]
    for wrong in (value for value in wrong_values if type(value) not in fits):
        plain, part = plain_with(cls)
        part[name] = wrong
        with pytest.raises(ConfigError) as caught:
            ExperimentConfig.from_dict(plain)
        assert caught.value.field.startswith((dotted(cls, name), in_json(cls, name))), wrong


@pytest.mark.parametrize(
    ("field", "wrong", "named"),
    [
        ("model.dropout_rate", 50, ["[0, 1)", 0.5]),
        ("model.hidden_sizes", [512, 0], ["[1, 1000000]", 0]),
        ("model.hidden_sizes", 512, []),
        ("epochs", 2.0, []),
        ("seed", True, []),
        ("data.pixel_scale", "1/255", []),
        ("optimizer.learning_rate", 1e300, ["[0, inf)", "float32", "inf"]),
        ("precision", "float16", ["float32, tensorfloat32, bfloat16, portable", "bfloat16?"]),
        ("optimizer.kind", "adamx", ["sgd, rmsprop, adam, adamw, layer_rates", "adam?"]),
        ("loss", None, []),
        ("name", "../up", []),
        ("name", "", []),
        ("grad_shards", 7, ["batch_size 128", 4, 8]),
        ("grad_shards", 128, ["batch_size 128", 32, 64]),
    ],
)
def test_a_wrong_value_is_answered_with_the_rule_and_the_remedy(field: str, wrong: Any, named: list[Any]) -> None:
    plain = part = ExperimentConfig().to_dict()
    *path, name = field.split(".")
    for step in path:
        part = part[step]
    part[name] = wrong
    with refused(ConfigError, field, *named) as error:
        ExperimentConfig.from_dict(plain)
    assert isinstance(wrong, list) or repr(wrong) in str(error.value)


@pytest.mark.parametrize(
    ("boundaries", "factors", "named"),
    [
        ((5, 5), (1, 1, 1), ["optimizer.schedule.boundaries", (5, 5)]),
        ((5, 6), (1, 1), ["optimizer.schedule.factors", 3, 2]),
    ],
)
def test_a_piecewise_schedule_rises_and_has_a_factor_for_each_piece(
    boundaries: tuple[int, ...], factors: tuple[float, ...], named: list[Any]
) -> None:
    with refused(ConfigError, *named):
        jaxmlp.Piecewise(boundaries=boundaries, factors=factors)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "[]", "3", '"text"'])
def test_a_text_that_is_no_json_object_is_refused(text: str) -> None:
    with refused(ConfigError, "config"):
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
    config = ExperimentConfig(
        seed=np.uint32(3), shuffle=np.bool_(True), model=MLP(hidden_sizes=[np.int64(4)], l1=np.float32(0.5))
    )
    plain = ExperimentConfig(seed=3, model=MLP(hidden_sizes=(4,), l1=0.5))
    assert (config, config.to_json()) == (plain, plain.to_json())


@settings(max_examples=20)
@given(data=st.data())
@pytest.mark.parametrize(("cls", "name"), PLAIN_FIELDS)
def test_a_program_depends_on_a_field_unless_it_is_traced_or_free(
    cls: PartType, name: str, data: st.DataObject
) -> None:
    whole = {"batch_size": 131072, "grad_shards": 1} if cls is ExperimentConfig else {}
    one = cls(**({"metrics": [TopK()]} if name == "best_by" else {}), **whole)
    choice = st.just("top_3") if name == "best_by" else values(cls, name)
    value = data.draw(st.sampled_from([2, 4, 65536]) if name in whole else choice)
    if name in OF_ONE_SHAPE:
        before, value = OF_ONE_SHAPE[name]
        one = cls(**{name: before})
    assume(value != getattr(one, name))
    changes: dict[str, Any] = {"boundaries": (7,), "factors": (0.5, 0.25)} if cls is jaxmlp.Piecewise else {name: value}
    changes = {"factors": (0.5,)} if (cls, name) == (jaxmlp.LayerRates, "factors") else changes
    pair = one, dataclasses.replace(one, **changes)
    same = len({jax.tree.structure(experiment_with(each)) for each in pair}) == 1
    assert same == (is_traced(cls, name) or (cls, name) in FREE)


@pytest.mark.parametrize("role", [Optimizer, Schedule, Loss, Metric, Augmentation])
def test_every_kind_is_another_program(role: Any) -> None:
    found = kinds(role).values()
    assert len({jax.tree.structure(experiment_with(kind())) for kind in found}) == len(found) > 2


@given(parts(ExperimentConfig))
def test_the_leaves_are_the_traced_values_in_strong_types(config: ExperimentConfig) -> None:
    def traced(part: Any) -> list[Any]:
        names = [name for name in INTERVALS[type(part)] if is_traced(type(part), name)]
        given = {name: value for name in names if (value := getattr(part, name)) is not None}
        mine = [(each, name) for name, value in given.items() for each in np.atleast_1d(value)]
        return mine + [each for item in dataclasses.fields(part) if isinstance(p := getattr(part, item.name), Part)
                       for each in traced(p)]  # fmt: skip

    leaves = jax.tree.leaves(config.on_data(10, 7))
    # Two leaves are no fields: the number of updates of the whole run, and the zero of portable precision.
    assert len(leaves) == len(traced(config)) + 1 + (config.precision == "portable")
    assert {(leaf.dtype.name, leaf.weak_type) for leaf in leaves} <= {
        ("float32", False), ("int32", False), ("uint32", False),
    }  # fmt: skip
    assert config.on_data(10, 7).total_steps == config.epochs * 7


def test_a_tree_map_passes_whatever_stands_in_a_leaf() -> None:
    config = ExperimentConfig(optimizer=jaxmlp.SGD(schedule=jaxmlp.Piecewise()))
    sentinel = object()
    marked = jax.tree.map(lambda _: sentinel, config)
    assert {id(leaf) for leaf in jax.tree.leaves(marked)} == {id(sentinel)}
    shapes = jax.eval_shape(lambda config: config, config.on_data(10, 7))
    assert len({jax.tree.structure(each) for each in (shapes, config.on_data(10, 7))}) == 1


def test_configs_can_be_mapped_over() -> None:
    rates = [0.1, 0.2, 0.3]
    lanes = [ExperimentConfig(optimizer=jaxmlp.SGD(learning_rate=rate)).on_data(10, 7) for rate in rates]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *lanes)
    found = jax.vmap(lambda config: config.optimizer.rate(config.total_steps)(0))(stacked)
    np.testing.assert_array_equal(found, np.float32(rates))


def test_a_field_without_a_hash_is_refused() -> None:
    with refused(ConfigError, "optimizer.table"):
        type("Listed", (jaxmlp.SGD,), {
            "__module__": __name__, "__annotations__": {"table": Any}, "table": None,
            "transformation": jaxmlp.SGD.transformation,
        })(table={})  # fmt: skip
