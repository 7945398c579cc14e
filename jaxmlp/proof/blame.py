"""Which primitive is wrong? An update from right values is computed rule by rule, on the device and by NumPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from jax.extend import core

from jaxmlp import train
from jaxmlp.experiment.config import ExperimentConfig
from jaxmlp.portable.arithmetic import Arithmetic
from jaxmlp.portable.evaluation import STRUCTURE, call, evaluate_equation, literal
from jaxmlp.portable.right import is_key, right, right_of, walk
from jaxmlp.portable.text import type_of
from jaxmlp.prng import key_of, root_key

Arrays: TypeAlias = list[np.ndarray]
Machine: TypeAlias = Callable[[Any, Callable[..., Any], Arrays], Arrays]
"""machine(equation, function, values): the function's results, as the machine computes them."""


class WrongPrimitive(NamedTuple):
    """A primitive whose result on this machine is wrong for right operands."""

    primitive: str
    shapes: tuple[str, ...]
    """Types of its operands, such as float32[128,784]."""
    at: tuple[int, ...]
    """Index of the first wrong value."""
    right: str
    """The right value and its bits."""
    here: str
    operation: str | None
    """The operation of the primitive's rule that is wrong on its own. None if only the rule as a whole is wrong."""

    def __str__(self) -> str:
        inside = f", in its {self.operation}" if self.operation else ""
        said = f"{self.primitive} of {', '.join(self.shapes)}{inside}"
        return f"{said}: {self.here} at {list(self.at)}, right is {self.right}"


def program_of(config: ExperimentConfig, state: train.TrainState | None, batch: train.Batch) -> tuple[Any, Arrays]:
    """The closed jaxpr of an update, or of the first state if `state` is None, and its arguments."""
    arguments = jax.tree.map(np.asarray, (config.without_precision(), state, batch))

    def program(config: ExperimentConfig, state: train.TrainState | None, batch: train.Batch) -> Any:
        if state is None:
            return train.init_state(config, batch.inputs)
        return train.train_step(config, state, batch, root_key(config.seed))[0]

    return jax.make_jaxpr(program)(*arguments), jax.tree.leaves(arguments)


def right_state(config: ExperimentConfig, state: train.TrainState | None, batch: train.Batch) -> Arrays:
    """The leaves of the state after an update, or of the first state, computed by NumPy."""
    closed, values = program_of(config, state, batch)
    return walk(closed.jaxpr, closed.consts, values, by_numpy)


def wrong_primitive(
    config: ExperimentConfig, state: train.TrainState | None, batch: train.Batch, machine: Machine | None = None
) -> WrongPrimitive | None:
    """The first primitive of an update that this machine computes wrongly. None if each is right on its own.

    Args:
        config: Config in portable precision, from `ExperimentConfig.on_data`.
        state: The right state before the update, on the host. None to check how the first state is made.
        batch: The update's batch, on the host; for the first state, one example.
        machine: The machine that computes. Default: the first device.
    """
    closed, values = program_of(config, state, batch)
    computed = machine or Device()

    class Found(Exception):
        """Ends the walk."""

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
    """The right results of an equation: its rule's operations, computed by NumPy."""
    closed = _rule(eqn)
    return right(closed.jaxpr, closed.consts, [np.zeros((), np.int32), *values])


def _rule(eqn: Any) -> Any:
    """The operations of an equation's rule."""
    shapes = [jax.ShapeDtypeStruct(atom.aval.shape, atom.aval.dtype) for atom in eqn.invars]
    return jax.make_jaxpr(lambda zero, *values: evaluate_equation(Arithmetic(zero), eqn, values))(np.int32(0), *shapes)


class Device:
    """The first device. A function is compiled once for all equations of the same form."""

    def __init__(self) -> None:
        self.compiled: dict[str, Any] = {}

    def __call__(self, eqn: Any, function: Callable[..., Any], values: Arrays) -> Arrays:
        """The function's results. Keys are returned as their words, on the host."""

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
    """The first wrong result, and its index.

    Zeros of either sign are equal within a rule's results, and so are NaNs.
    """
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
    """The wrong primitive, and the operation of its rule that is wrong on its own."""
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
    return f"{value!s} (0x{int.from_bytes(value.tobytes(), 'little'):0{2 * value.dtype.itemsize}x})"
