"""Which primitive is wrong? An update from right values, rule by rule: on the device, and by NumPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from jax.extend import core

from jaxmlp import train
from jaxmlp.config import ExperimentConfig
from jaxmlp.portable.arithmetic import Arithmetic
from jaxmlp.portable.right import is_key, right, right_of, walk
from jaxmlp.portable.text import type_of
from jaxmlp.portable.transform import STRUCTURE, call, evaluate_equation, literal
from jaxmlp.prng import key_of, root_key

Arrays: TypeAlias = list[np.ndarray]
Machine: TypeAlias = Callable[[Any, Callable[..., Any], Arrays], Arrays]
"""machine(equation, function, values): the function's results, as the machine computes them."""


class WrongPrimitive(NamedTuple):
    """A primitive whose result here is not the right one, for the same operands."""

    primitive: str
    shapes: tuple[str, ...]
    """Types of its operands, such as float32[128,784]."""
    at: tuple[int, ...]
    """Where the first wrong value is."""
    right: str
    """The right value, and its bits."""
    here: str
    operation: str | None
    """The operation of the rule that is wrong by itself; None where only the rule as a whole is."""

    def __str__(self) -> str:
        inside = f", in its {self.operation}" if self.operation else ""
        said = f"{self.primitive} of {', '.join(self.shapes)}{inside}"
        return f"{said}: at {list(self.at)} {self.here}, right is {self.right}"


def program_of(config: ExperimentConfig, state: train.TrainState | None, batch: train.Batch) -> tuple[Any, Arrays]:
    """The jaxpr, closed, of an update, or of the first state where there is none before it; and what it takes."""
    arguments = jax.tree.map(np.asarray, (config.without_precision(), state, batch))

    def program(config: ExperimentConfig, state: train.TrainState | None, batch: train.Batch) -> train.TrainState:
        made: train.TrainState
        if state is None:
            made = train.init_state(config, batch.inputs)
        else:
            made, _ = train.train_step(config, state, batch, root_key(config.seed))
        return made

    return jax.make_jaxpr(program)(*arguments), jax.tree.leaves(arguments)


def right_state(config: ExperimentConfig, state: train.TrainState | None, batch: train.Batch) -> Arrays:
    """The leaves of the state after an update, or of the first state, by NumPy."""
    closed, values = program_of(config, state, batch)
    return walk(closed.jaxpr, closed.consts, values, by_numpy)


def wrong_primitive(
    config: ExperimentConfig, state: train.TrainState | None, batch: train.Batch, machine: Machine | None = None
) -> WrongPrimitive | None:
    """The first primitive of an update that this machine computes wrongly; None where it computes each alone rightly.

    Args:
        config: In portable precision, from `ExperimentConfig.on_data`.
        state: The right state before the update, on the host; None for the making of the first state.
        batch: The update's, on the host; to make the first state, one example.
        machine: What computes; by default the first device.
    """
    closed, values = program_of(config, state, batch)
    computed = machine or Device()

    class Found(Exception):
        """The walk is over."""

    def visit(eqn: Any, values: Arrays) -> Arrays:
        wanted = by_numpy(eqn, values)
        got = computed(eqn, lambda zero, *values: evaluate_equation(Arithmetic(zero), eqn, values), values)
        if wrong := _first_wrong(wanted, got):
            raise Found(_named(eqn, values, *wrong, computed))
        return wanted

    try:
        walk(closed.jaxpr, closed.consts, values, visit)
    except Found as found:
        wrong_one: WrongPrimitive = found.args[0]
        return wrong_one
    return None


def by_numpy(eqn: Any, values: Sequence[np.ndarray]) -> Arrays:
    """The right results of an equation: its rule's operations, by NumPy."""
    closed = _rule(eqn)
    return right(closed.jaxpr, closed.consts, [np.zeros((), np.int32), *values])


def _rule(eqn: Any) -> Any:
    """The operations that an equation's rule makes of it."""
    shapes = [jax.ShapeDtypeStruct(atom.aval.shape, atom.aval.dtype) for atom in eqn.invars]
    return jax.make_jaxpr(lambda zero, *values: evaluate_equation(Arithmetic(zero), eqn, values))(np.int32(0), *shapes)


class Device:
    """The first device; a function is compiled once for each equation that is like another."""

    def __init__(self) -> None:
        self.compiled: dict[str, Any] = {}

    def __call__(self, eqn: Any, function: Callable[..., Any], values: Arrays) -> Arrays:
        """The function's results. Keys are their words on the host."""

        def on_words(zero: Any, *values: Any) -> Any:
            wrapped = [
                key_of(value) if is_key(atom.aval) else value for value, atom in zip(values, eqn.invars, strict=True)
            ]
            results = function(zero, *wrapped)
            return [
                jax.random.key_data(x) if is_key(var.aval) else x for x, var in zip(results, eqn.outvars, strict=True)
            ]

        types = " ".join(type_of(atom.aval) for atom in eqn.invars)
        like = f"{function.__qualname__} {eqn.primitive.name} {types} {sorted(map(str, eqn.params.items()))}"
        compiled = self.compiled.setdefault(like, jax.jit(on_words))
        return [np.asarray(result) for result in compiled(np.int32(0), *values)]


def _first_wrong(wanted: Arrays, got: Arrays) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]] | None:
    """The first result that is wrong, and where. Zeros of any sign are alike within a rule's results, and so is NaN."""
    for right_one, one in zip(wanted, got, strict=True):
        same = right_one.view(np.uint8) == one.view(np.uint8) if right_one.dtype == bool else _same(right_one, one)
        if not same.all():
            return right_one, one, tuple(int(i) for i in np.argwhere(~same)[0])
    return None


def _same(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if a.dtype != np.float32:
        return np.asarray(a == b)
    x, y = (np.ascontiguousarray(each).view(np.uint32).reshape(a.shape) for each in (a, b))
    size_x, size_y = x & 0x7FFFFFFF, y & 0x7FFFFFFF
    return np.asarray((x == y) | ((size_x == 0) & (size_y == 0)) | ((size_x > 0x7F800000) & (size_y > 0x7F800000)))


def _named(
    eqn: Any, values: Arrays, wanted: np.ndarray, got: np.ndarray, index: tuple[int, ...], machine: Machine
) -> WrongPrimitive:
    """The wrong primitive, and the operation of its rule that is wrong by itself."""
    closed, operation = _rule(eqn), None
    env: dict[Any, np.ndarray] = dict(zip(closed.jaxpr.constvars, map(np.asarray, closed.consts), strict=True))
    env.update(zip(closed.jaxpr.invars, [np.zeros((), np.int32), *values], strict=True))
    for inner in closed.jaxpr.eqns:
        operands = [literal(atom) if isinstance(atom, core.Literal) else env[atom] for atom in inner.invars]
        results = right_of(inner, operands)
        env.update(zip(inner.outvars, results, strict=True))

        def alone(zero: Any, *values: Any, inner: Any = inner) -> Any:
            found = inner.primitive.bind(*values, **inner.params)
            return found if inner.primitive.multiple_results else [found]

        if STRUCTURE.get(inner.primitive.name) is not call and _first_wrong(results, machine(inner, alone, operands)):
            operation = f"{inner.primitive.name} of {', '.join(type_of(atom.aval) for atom in inner.invars)}"
            break
    shapes = tuple(type_of(atom.aval) for atom in eqn.invars)
    return WrongPrimitive(eqn.primitive.name, shapes, index, shown(wanted[index]), shown(got[index]), operation)


def shown(value: np.generic) -> str:
    """A number and its bits."""
    size = value.dtype.itemsize
    return f"{value!s} (0x{int.from_bytes(value.tobytes(), 'little'):0{2 * size}x})"
