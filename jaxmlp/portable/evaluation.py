"""How is a jaxpr evaluated in portable arithmetic? Equation by equation, each primitive by its rule.

Most rules are in `rules`. The rules here are for primitives that hold functions, such as calls, loops and branches.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core, source_info_util

from jaxmlp.portable import composed
from jaxmlp.portable.arithmetic import Arithmetic, Array
from jaxmlp.portable.conversions import Refused, check_type, entering
from jaxmlp.portable.rules import RULES

PROGRAM = "portable_program"
"""Name of the compiled program of a portable function, by which `call` knows it inside another portable function. Its
first argument is the fence's zero."""


def evaluate(a: Arithmetic, jaxpr: Any, consts: Sequence[Any], values: Iterable[Any]) -> list[Any]:
    """The results of a jaxpr in portable arithmetic."""
    env: dict[Any, Any] = {}

    def read(atom: Any) -> Any:
        return entering_literal(atom) if isinstance(atom, core.Literal) else env[atom]

    env.update(zip(jaxpr.constvars, (entering(jnp.asarray(x)) for x in consts), strict=True))
    env.update(zip(jaxpr.invars, values, strict=True))
    for eqn in jaxpr.eqns:
        results = evaluate_equation(a, eqn, [read(atom) for atom in eqn.invars])
        env.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def evaluate_equation(a: Arithmetic, eqn: Any, operands: Sequence[Any]) -> list[Any]:
    """The results of one equation, by its rule.

    Raises:
        Refused: There is no rule. The message has the line of the user's code.
    """
    name = eqn.primitive.name
    try:
        rule = STRUCTURE.get(name) or RULES.get(name)
        if rule is None:
            types = ", ".join(str(jax.typeof(operand)) for operand in operands)
            raise Refused(f"portable has no rule for {name} of {types or 'nothing'}")
        for operand in operands:
            if hasattr(operand, "dtype"):
                check_type(operand, name)
        results = rule(a, eqn, *operands)
    except Refused as error:
        # Inside a function of JAX's own there is no line of the user's: it is the line of an outer equation.
        line = source_info_util.summarize(eqn.source_info)
        if "\n  at " in str(error) or line in ("", "<unknown>"):
            raise
        raise Refused(f"{error}\n  at {line}") from None
    return list(results) if eqn.primitive.multiple_results else [results]


def literal(atom: Any) -> np.ndarray:
    """The number that a jaxpr holds in place of a variable."""
    return np.asarray(atom.val, atom.aval.dtype)


def entering_literal(atom: Any) -> Array:
    """The same number in the program. A subnormal float32 becomes 0 before the program has it."""
    x = literal(atom)
    return jnp.asarray(np.where(np.abs(x) < np.float32(2.0**-126), np.float32(0), x) if x.dtype == np.float32 else x)


def opened(jaxpr: Any) -> tuple[Any, Sequence[Any]]:
    """A jaxpr, closed or not, as an open jaxpr and its constants."""
    return getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ())


def without_memory(a: Arithmetic) -> Arithmetic:
    """The same arithmetic for the body of a loop or branch, whose values are unknown outside."""
    return Arithmetic(a.zero, a.slices, a.factors)


def call(a: Arithmetic, eqn: Any, *values: Any) -> list[Any]:
    """A function call: its equations, in place."""
    if eqn.params.get("name") == PROGRAM:  # It is portable already, and gets the outer function's zero.
        return list(eqn.primitive.bind(a.zero, *values[1:], **eqn.params))
    return evaluate(a, *called(eqn), values)


def called(eqn: Any) -> tuple[Any, Sequence[Any]]:
    """The function that an equation calls, and its constants."""
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        if name in eqn.params:
            return opened(eqn.params[name])
    raise Refused(f"portable does not know where {eqn.primitive.name} keeps its function")


def scan(a: Arithmetic, eqn: Any, *values: Any) -> list[Any]:
    """A loop over a leading axis."""
    params = eqn.params
    consts, init, xs = parts_of_scan(eqn, values)

    def body(carry: Any, x: Any) -> Any:
        out = evaluate(without_memory(a), *opened(params["jaxpr"]), [*consts, *carry, *x])
        return tuple(out[: len(init)]), tuple(out[len(init) :])

    carry = tuple(map(_as_carry, init))
    carry, ys = lax.scan(body, carry, tuple(xs), length=params["length"], reverse=params["reverse"])
    return [*carry, *ys]


def parts_of_scan(eqn: Any, values: Sequence[Any]) -> tuple[list[Any], list[Any], list[Any]]:
    """A scan's constants, its carried values, and the values that it iterates over."""
    params = eqn.params
    if "ft_in" in params:
        consts, init, xs = (list(part) for part in params["ft_in"].update(values).unpack())
        return consts, init, xs
    first, last = params["num_consts"], params["num_consts"] + params["num_carry"]
    return list(values[:first]), list(values[first:last]), list(values[last:])


def _as_carry(value: Any) -> Any:
    """The value without a weak type, which the rules' results do not have."""
    return lax.convert_element_type(value, value.dtype) if hasattr(value, "weak_type") and value.weak_type else value


def while_loop(a: Arithmetic, eqn: Any, *values: Any) -> list[Any]:
    """A loop with a condition."""
    params = eqn.params
    first, last = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    for_condition, for_body, init = values[:first], values[first:last], values[last:]

    def condition(carry: Any) -> Any:
        return evaluate(without_memory(a), *opened(params["cond_jaxpr"]), [*for_condition, *carry])[0]

    def body(carry: Any) -> Any:
        return tuple(evaluate(without_memory(a), *opened(params["body_jaxpr"]), [*for_body, *carry]))

    return list(lax.while_loop(condition, body, tuple(map(_as_carry, init))))


def cond(a: Arithmetic, eqn: Any, index: Any, *values: Any) -> list[Any]:
    """Branches. A known index, as from `lax.platform_dependent`, selects its branch now."""
    if isinstance(index, (np.ndarray, np.generic)):
        return evaluate(a, *opened(branch_of(eqn, index)), values)
    functions = [
        functools.partial(lambda branch, *values: tuple(evaluate(without_memory(a), *opened(branch), values)), branch)
        for branch in eqn.params["branches"]
    ]
    return list(lax.switch(index, functions, *values))


def branch_of(eqn: Any, index: Any) -> Any:
    """The branch that a known index selects."""
    branches = eqn.params["branches"]
    return branches[int(np.clip(index, 0, len(branches) - 1))]


def qr(a: Arithmetic, eqn: Any, x: Array) -> list[Any]:
    """Q and R, as orthogonal initialisers need them."""
    if eqn.params.get("pivoting"):
        raise Refused("portable has no rule for qr with pivoting")
    function = functools.partial(composed.qr, full_matrices=eqn.params["full_matrices"])
    return evaluate(a, *opened(jax.make_jaxpr(function)(x)), [x])


def shard_map(a: Arithmetic, eqn: Any, *values: Any) -> list[Any]:
    """A function on every device. Each device gets the fence's zero."""
    params = eqn.params
    jaxpr, consts = opened(params["jaxpr"])

    def body(zero: Array, *values: Any) -> tuple[Any, ...]:
        return tuple(evaluate(Arithmetic(zero, a.slices, a.factors), jaxpr, consts, values))

    mapped = jax.shard_map(
        body,
        mesh=params["mesh"],
        in_specs=(jax.sharding.PartitionSpec(), *params["in_specs"]),
        out_specs=tuple(params["out_specs"]),
        axis_names=set(params.get("newly_manual_axes") or params["manual_axes"]),
        check_vma=params["check_vma"],
    )
    return list(mapped(a.zero, *values))


STRUCTURE: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(
        ("jit", "remat2", "custom_jvp_call", "custom_vjp_call", "custom_lin", "custom_vmap_call", "eval_jaxpr"), call
    ),
    "scan": scan,
    "while": while_loop,
    "cond": cond,
    "shard_map": shard_map,
    "qr": qr,
}
"""The rules of primitives that hold functions, or become functions."""
