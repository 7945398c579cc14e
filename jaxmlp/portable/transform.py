"""How does a function become portable? Its jaxpr is evaluated again, each primitive by its rule.

The *fence* makes a compiler round every result: a zero that it does not know is combined with the result's bits (see
`arithmetic`). Much of this file brings that zero to where it is needed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core, source_info_util

from jaxmlp.portable import composed, products
from jaxmlp.portable.arithmetic import Arithmetic, Array
from jaxmlp.portable.rules import RULES, Refused, check, flushed, is_float, shape_of, shown

FACTORS = ("int8", "bfloat16", "float32")
MARK = "portable_program"
"""Name of the compiled program of a portable function, by which `call` knows it inside another portable function. Its
first argument is the fence's zero."""


def evaluate(a: Arithmetic, jaxpr: Any, consts: Sequence[Any], values: Sequence[Any]) -> list[Any]:
    """The results of a jaxpr in portable arithmetic."""
    env: dict[Any, Any] = {}

    def read(atom: Any) -> Any:
        if not isinstance(atom, core.Literal):
            return env[atom]
        return constant(literal(atom))

    env.update(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, values, strict=True))
    for eqn in jaxpr.eqns:
        results = evaluate_equation(a, eqn, [read(atom) for atom in eqn.invars])
        env.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def evaluate_equation(a: Arithmetic, eqn: Any, operands: Sequence[Any]) -> list[Any]:
    """The results of one equation, by its rule."""
    name = eqn.primitive.name
    rule = STRUCTURE.get(name) or RULES.get(name)
    with _named(eqn):
        if rule is None:
            raise Refused(f"portable has no rule for {name} of {', '.join(map(shape_of, operands)) or 'nothing'}")
        check(name, [operand for operand in operands if hasattr(operand, "dtype")])
        results = rule(a, eqn, *operands)
    return list(results) if eqn.primitive.multiple_results else [results]


@contextmanager
def _named(eqn: Any) -> Iterator[None]:
    """Add the line of the user's code to a refusal."""
    try:
        yield
    except Refused as error:
        if "\n  at " in str(error):
            raise
        # For JAX's own functions, the line is the caller's, in an outer equation.
        place = source_info_util.summarize(eqn.source_info)
        if not place or place == "<unknown>":
            raise
        raise Refused(f"{error}\n  at {place}") from None


def literal(atom: Any) -> np.ndarray:
    """The number that a jaxpr holds in place of a variable."""
    return np.asarray(atom.val, atom.aval.dtype)


def constant(x: np.ndarray) -> Any:
    """A number in the program. Subnormal numbers become 0."""
    if x.dtype == np.float32:
        x = np.where(np.abs(x) < np.float32(2.0**-126), np.float32(0), x)
    return jnp.asarray(x)


def _inner(jaxpr: Any) -> tuple[Any, Sequence[Any]]:
    """A jaxpr and its constants, closed or not."""
    return getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ())


def _run(a: Arithmetic, jaxpr: Any, values: Sequence[Any]) -> list[Any]:
    inner, consts = _inner(jaxpr)
    return evaluate(a, inner, [_entering_constant(x) for x in consts], values)


def _entering_constant(x: Any) -> Any:
    return flushed(jnp.asarray(x)) if isinstance(x, (np.ndarray, np.generic, jax.Array)) else x


def apart(a: Arithmetic) -> Arithmetic:
    """The same arithmetic without its memory, for the body of a loop or branch: its values are unknown outside."""
    return Arithmetic(a.zero, a.slices, a.factors)


def call(a: Arithmetic, eqn: Any, *values: Any) -> list[Any]:
    """A function call: its equations, in place."""
    if eqn.params.get("name") == MARK:  # It is portable already, and gets the outer function's zero.
        values = (a.zero, *values[1:])
        return list(eqn.primitive.bind(*values, **eqn.params))
    jaxpr, consts = called(eqn)
    return evaluate(a, jaxpr, [_entering_constant(x) for x in consts], values)


def called(eqn: Any) -> tuple[Any, Sequence[Any]]:
    """The function that an equation calls, and its constants."""
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        if name in eqn.params:
            return _inner(eqn.params[name])
    raise Refused(f"portable does not know where {eqn.primitive.name} keeps its function")


def parts_of_scan(eqn: Any, values: Sequence[Any]) -> tuple[list[Any], list[Any], list[Any]]:
    """A scan's constants, its carried values, and the values that it iterates over."""
    params = eqn.params
    if "ft_in" in params:
        consts, init, xs = (list(part) for part in params["ft_in"].update(values).unpack())
        return consts, init, xs
    first, last = params["num_consts"], params["num_consts"] + params["num_carry"]
    return list(values[:first]), list(values[first:last]), list(values[last:])


def scan(a: Arithmetic, eqn: Any, *values: Any) -> list[Any]:
    """A loop over a leading axis."""
    params = eqn.params
    consts, init, xs = parts_of_scan(eqn, values)

    def body(carry: Any, x: Any) -> Any:
        out = _run(apart(a), params["jaxpr"], [*consts, *carry, *x])
        return tuple(out[: len(init)]), tuple(out[len(init) :])

    start = tuple(_as_carry(value) for value in init)
    carry, ys = lax.scan(body, start, tuple(xs), length=params["length"], reverse=params["reverse"])
    return [*carry, *ys]


def _as_carry(value: Any) -> Any:
    """The value without a weak type, which the rules' results do not have."""
    return lax.convert_element_type(value, value.dtype) if hasattr(value, "weak_type") and value.weak_type else value


def while_loop(a: Arithmetic, eqn: Any, *values: Any) -> list[Any]:
    """A loop with a condition."""
    params = eqn.params
    first, last = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    for_condition, for_body, init = values[:first], values[first:last], values[last:]

    def condition(carry: Any) -> Any:
        return _run(apart(a), params["cond_jaxpr"], [*for_condition, *carry])[0]

    def body(carry: Any) -> Any:
        return tuple(_run(apart(a), params["body_jaxpr"], [*for_body, *carry]))

    return list(lax.while_loop(condition, body, tuple(map(_as_carry, init))))


def cond(a: Arithmetic, eqn: Any, index: Any, *values: Any) -> list[Any]:
    """Branches. A known index, as from `lax.platform_dependent`, selects its branch now."""
    if isinstance(index, (np.ndarray, np.generic)):
        return _run(a, branch_of(eqn, index), values)
    functions = [
        functools.partial(lambda branch, *values: tuple(_run(apart(a), branch, values)), branch)
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
    full = eqn.params["full_matrices"]
    return _run(a, composed.jaxpr_of(lambda x: composed.qr(x, full_matrices=full), x), [x])


def shard_map(a: Arithmetic, eqn: Any, *values: Any) -> list[Any]:
    """A function on every device. Each device gets the fence's zero."""
    params = eqn.params
    jaxpr, consts = _inner(params["jaxpr"])

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
        [
            "pjit",
            "jit",
            "closed_call",
            "core_call",
            "remat",
            "remat2",
            "checkpoint",
            "custom_jvp_call",
            "custom_vjp_call",
            "custom_vjp_call_jaxpr",
            "custom_lin",
            "custom_vmap_call",
            "eval_jaxpr",
        ],
        call,
    ),
    "scan": scan,
    "while": while_loop,
    "cond": cond,
    "shard_map": shard_map,
    "qr": qr,
}
"""The primitives that hold functions, or become functions."""


def zero_from(values: Sequence[Any]) -> Array:
    """An int32 0 that no compiler is known to see through: whether x^2 + 1 = 7 y^2 modulo 2^32.

    That never holds: squares are 0, 1 or 4 modulo 8, so x^2 + 1 is 1, 2 or 5, and 7 y^2 is 0, 7 or 4. x and y are made
    from the bits of up to 64 elements of each value, so they are unknown unless all values are known.
    """
    x = y = jnp.zeros((), np.uint32)
    for i, value in enumerate(values):
        if not isinstance(value, jax.core.Tracer) or not value.size:
            continue
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            value = jax.random.key_data(value)
        flat = value.reshape(-1)
        flat = lax.slice(flat, (0,), flat.shape, (-(-flat.size // 64),))
        if flat.dtype == np.bool_:
            flat = flat.astype(np.uint32)
        elif flat.dtype.itemsize == 4:
            flat = lax.bitcast_convert_type(flat, np.uint32)
        else:
            unsigned = {1: np.uint8, 2: np.uint16, 8: np.uint32}[flat.dtype.itemsize]
            flat = lax.bitcast_convert_type(flat, unsigned).astype(np.uint32)
        word = jnp.sum(flat, dtype=np.uint32)
        x, y = x + word, y ^ (word * np.uint32(2 * i + 3))
    return (x * x + np.uint32(1) == np.uint32(7) * y * y).astype(np.int32)


def _staged() -> bool:
    """Whether JAX is tracing a program now, so that constants are part of it too."""
    return isinstance(lax.add(np.int32(0), np.int32(0)), jax.core.Tracer)


def portable[F: Callable[..., Any]](
    function: F, *, slices: int = 2, factors: str = "int8", zero: Array | None = None
) -> F:
    """The function, with bits that depend on no processor, compiler, flag, thread or device.

    Put it outside `jax.grad`: `portable(jax.value_and_grad(loss))`. The gradient of a portable function is right too,
    and computed in portable arithmetic. `jax.jvp` of it is refused.

    Args:
        function: A function of arrays with up to 32 bits. float64 and primitives without a rule are refused, by name
            and line.
        slices: Number of 8-bit pieces into which the factors of products are cut: 1, 2 or 3. With 2, a factor is
            rounded to 2^-15 of the largest in its row; with 3, to 2^-23.
        factors: Type in which slices are multiplied: int8, bfloat16 or float32. It affects speed, but no bit.
        zero: An int32 0 that is an argument of your own compiled program, if this function is part of one. By default,
            a call inside a program makes a zero from its arguments' bits, which no compiler is known to see through.

    Returns:
        A function with the same signature. Differs from `jax.jit`: there are no static arguments (bind them with
        `functools.partial`); zeros have no sign, subnormal numbers of float32 and bfloat16 are 0, and NaN is
        0x7fc00000.

    Raises:
        ValueError: `slices` or `factors` is none of these.
        Refused: At a call, if a primitive has no rule, or can have none.
    """
    if slices not in products.SLICES:
        raise ValueError(f"slices must be 1, 2 or 3, got {slices!r}")
    if factors not in FACTORS:
        raise ValueError(f"factors must be one of {', '.join(FACTORS)}, got {factors!r}")

    def evaluated(zero: Array, function: Any, *values: Any) -> list[Any]:
        """The flat function in portable arithmetic."""
        with jax.disable_jit(False):
            jaxpr = jax.make_jaxpr(function)(*values)
        a = Arithmetic(zero, slices, factors)
        results = evaluate(
            a, jaxpr.jaxpr, [flushed(jnp.asarray(x)) for x in jaxpr.consts], [_entering(x) for x in values]
        )
        return [shown(jnp.asarray(x)) if is_float(x) else x for x in results]

    def of_flat(flat: Callable[..., Any]) -> Callable[..., Any]:
        """A flat function made portable, with its gradient."""

        def program(zero: Array, *values: Any) -> list[Any]:
            return evaluated(zero, flat, *values)

        program.__name__ = program.__qualname__ = MARK
        compiled = jax.jit(program)

        def run(*values: Any) -> list[Any]:
            if zero is not None:
                return list(compiled(zero, *values))
            return list(compiled(zero_from(values), *values))

        with_gradient = jax.custom_vjp(run)

        def forward(*values: Any) -> tuple[list[Any], Any]:
            moving = [i for i, value in enumerate(values) if is_float(value)]

            def both(*values: Any) -> Any:
                def of_moving(*some: Any) -> Any:
                    whole = list(values)
                    for i, value in zip(moving, some, strict=True):
                        whole[i] = value
                    return flat(*whole)

                return jax.vjp(of_moving, *(values[i] for i in moving))

            out, pull = again(both)(*values)
            return out, (pull, values)

        def backward(saved: Any, cotangents: Any) -> tuple[Any, ...]:
            pull, values = saved
            moving = iter(again(lambda pull, cotangents: pull(cotangents))(pull, cotangents))
            return tuple(next(moving) if is_float(value) else None for value in values)

        with_gradient.defvjp(forward, backward)

        def called(*values: Any) -> list[Any]:
            if not any(isinstance(value, jax.core.Tracer) for value in values):
                if not _staged():
                    return list(compiled(np.int32(0) if zero is None else zero, *values))
                if zero is None:
                    # All values are known: a separate program computes the result now.
                    with jax.ensure_compile_time_eval():
                        return list(compiled(np.int32(0), *values))
            return list(with_gradient(*values))

        called.lower = lambda *values: compiled.lower(np.int32(0), *values)  # type: ignore[attr-defined]
        return called

    again = functools.partial(portable, slices=slices, factors=factors, zero=zero)
    made: dict[Any, tuple[Callable[..., Any], list[Any]]] = {}

    def flattened(args: Any, kwargs: Any) -> tuple[Callable[..., Any], list[Any], list[Any]]:
        values, tree = jax.tree.flatten((args, kwargs))
        values = [_array(value) for value in values]
        # The function may return another structure for other shapes or types.
        key = tree, tuple((value.shape, value.dtype) for value in values)
        if key not in made:
            out_tree: list[Any] = []

            def flat(*values: Any) -> list[Any]:
                args, kwargs = jax.tree.unflatten(tree, values)
                out, structure = jax.tree.flatten(function(*args, **kwargs))
                out_tree[:] = [structure]
                return out

            made[key] = of_flat(flat), out_tree
        return *made[key], values

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        called, out_tree, values = flattened(args, kwargs)
        out = called(*values)
        return jax.tree.unflatten(out_tree[0], out)

    def lower(*args: Any, **kwargs: Any) -> Any:
        """Lower the program for these arguments, like `lower` of a function from `jax.jit`."""
        called, _, values = flattened(args, kwargs)
        return called.lower(*values)  # type: ignore[attr-defined]

    wrapped.lower = lower  # type: ignore[attr-defined]
    return wrapped  # type: ignore[return-value]


def _array(value: Any) -> Any:
    """An argument as `jax.jit` would take it."""
    return value if hasattr(value, "dtype") else jnp.asarray(value)


def _entering(value: Any) -> Any:
    return flushed(value) if jnp.issubdtype(value.dtype, jnp.inexact) else value
