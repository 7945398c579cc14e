"""Which program is it? A jaxpr as a canonical text, which is the same wherever the same operations are traced.

Calls are written out in place. Of the branches for platforms, only the default is written, because portable takes it.
The text leaves out equations whose results are unused, and everything that changes no bit of a portable program: names,
source positions, meshes, layouts.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core

from jaxmlp.portable.evaluation import STRUCTURE, call, called, literal, parts_of_scan
from jaxmlp.portable.rules import default_platform

LEFT_OUT = {
    "accuracy", "algorithm", "precision", "sharding", "out_sharding", "unroll", "linear", "name", "layout",
    "_split_transpose", "ft_in", "ft_out", "jaxpr", "num_consts", "num_carry", "weak_type",
}  # fmt: skip
"""Parameters that change no bit, or that the text states in its own way."""
THE_SAME = (
    "copy", "device_put", "layout_constraint", "name", "optimization_barrier", "pvary", "reshard",
    "sharding_constraint", "stop_gradient",
)  # fmt: skip
"""Primitives that return their arguments unchanged."""


def text(function: Callable[..., Any], *arguments: Any) -> str:
    """The program that a function of arrays, or of their shapes, traces to, with one equation per line.

    Args:
        function: As for `jax.make_jaxpr`.
        arguments: Arrays, or `jax.ShapeDtypeStruct`.
    """
    closed = jax.make_jaxpr(function)(*arguments)
    return "\n".join(_lines(closed.jaxpr, closed.consts, ""))


def _lines(jaxpr: Any, consts: Sequence[Any], indent: str) -> Iterator[str]:
    """The lines of a function: its arguments, the equations that its results need, its results."""
    equations: list[tuple[Any, list[Any]]] = []

    def read(env: dict[Any, Any], atom: Any) -> Any:
        return _constant(literal(atom)) if isinstance(atom, core.Literal) else env[atom]

    def written_out(jaxpr: Any, consts: Sequence[Any], operands: Sequence[Any]) -> list[Any]:
        env: dict[Any, Any] = dict(zip(jaxpr.invars, operands, strict=True))
        env |= {var: _constant(value) for var, value in zip(jaxpr.constvars, consts, strict=True)}
        for eqn in jaxpr.eqns:
            operands = [read(env, atom) for atom in eqn.invars]
            if STRUCTURE.get(eqn.primitive.name) is call:
                results = written_out(*called(eqn), operands)
            elif eqn.primitive.name == "platform_index":
                results = [int(default_platform(eqn))]
            elif eqn.primitive.name == "cond" and isinstance(operands[0], int):
                branch = eqn.params["branches"][operands[0]]
                results = written_out(branch.jaxpr, branch.consts, operands[1:])
            elif eqn.primitive.name in THE_SAME:
                results = operands
            else:
                equations.append((eqn, operands))
                results = [(len(equations), i) for i in range(len(eqn.outvars))]
            env.update(zip(eqn.outvars, results, strict=True))
        return [read(env, atom) for atom in jaxpr.outvars]

    # A value is its text, or the pair (number of its equation, number of the result). Equation 0 is the arguments.
    results = written_out(jaxpr, consts, [(0, i) for i in range(len(jaxpr.invars))])
    needed = {result[0] for result in results if isinstance(result, tuple)}
    for number in range(len(equations), 0, -1):
        if number in needed:
            needed |= {operand[0] for operand in equations[number - 1][1] if isinstance(operand, tuple)}
    numbers = {old: new for new, old in enumerate(sorted(needed | {0}))}

    def shown(value: Any) -> str:
        return f"%{numbers[value[0]]}.{value[1]}" if isinstance(value, tuple) else value

    yield f"{indent}of {' '.join(type_of(var.aval) for var in jaxpr.invars)}"
    for number in sorted(needed - {0}):
        eqn, operands = equations[number - 1]
        types = " ".join(type_of(var.aval) for var in eqn.outvars)
        said = [f"{name}={value}" for name, value in sorted(_parameters(eqn).items())]
        line = " ".join([f"%{numbers[number]} {types} = {_name(eqn)}", *map(shown, operands), *said])
        yield indent + line
        for inner in _inner(eqn):
            yield from _lines(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), indent + "  ")
    yield f"{indent}gives {' '.join(map(shown, results))}"


def _name(eqn: Any) -> str:
    """The primitive's name, with `_` for the `-` in names such as `scatter-add`."""
    return str(eqn.primitive.name).replace("scatter-", "scatter_")


def _inner(eqn: Any) -> list[Any]:
    """The functions of a loop or branch."""
    values = [eqn.params[name] for name in ("cond_jaxpr", "body_jaxpr", "jaxpr") if name in eqn.params]
    return values + list(eqn.params.get("branches", ()))


def _parameters(eqn: Any) -> dict[str, str]:
    found = {name: _plain(value) for name, value in eqn.params.items() if name not in LEFT_OUT}
    if eqn.primitive.name == "scan":
        found["parts"] = _plain(tuple(len(part) for part in parts_of_scan(eqn, eqn.invars)))
    return {name: value for name, value in found.items() if value is not None}


def _plain(value: Any) -> Any:
    """A parameter as text. None if it is not a plain value."""
    if isinstance(value, bool | int | str):
        return str(value)
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, np.dtype) or (isinstance(value, type) and issubclass(value, np.generic)):
        return np.dtype(value).name
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = tuple(getattr(value, item.name) for item in dataclasses.fields(value))
    if isinstance(value, tuple | list):
        parts = [_plain(each) for each in value]
        return None if None in parts else f"({','.join(parts)})"
    if isinstance(value, core.Primitive):
        return value.name
    return None


def _constant(value: Any) -> str:
    """A small constant by its bits, a large constant by their SHA-256."""
    array = np.asarray(value)
    whole = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"))).tobytes()
    said = whole.hex() if len(whole) <= 16 else hashlib.sha256(whole).hexdigest()
    return f"{array.dtype.name}[{','.join(map(str, array.shape))}]:{said}"


def type_of(aval: Any) -> str:
    """Type and shape as in jaxprs: float32[3,4]."""
    return f"{aval.dtype}[{','.join(map(str, aval.shape))}]"
