"""How does a function become portable? It is traced, and its jaxpr is evaluated in portable arithmetic.

The *fence* makes a compiler round every result: a zero that it does not know is combined with the result's bits (see
`arithmetic`). Here that zero is passed to the compiled program, or made inside a program that somebody else compiles.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmlp.portable import products
from jaxmlp.portable.arithmetic import Arithmetic, Array
from jaxmlp.portable.conversions import entering, is_float, leaving
from jaxmlp.portable.evaluation import PROGRAM, evaluate

FACTORS = ("int8", "bfloat16", "float32")


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

    made: dict[Any, _OfArrays] = {}

    def of_arrays(args: Any, kwargs: Any) -> tuple[_OfArrays, list[Any]]:
        """The function for arguments of this structure, of these shapes and types; and the arguments as arrays."""
        leaves, tree = jax.tree.flatten((args, kwargs))
        values = [value if hasattr(value, "dtype") else jnp.asarray(value) for value in leaves]
        key = tree, tuple((value.shape, value.dtype) for value in values)
        if key not in made:
            out_tree: list[Any] = []

            def flat(*values: Any) -> list[Any]:
                args, kwargs = jax.tree.unflatten(tree, values)
                out, structure = jax.tree.flatten(function(*args, **kwargs))
                out_tree[:] = [structure]
                return out

            program = _compiled(flat, slices, factors)
            again = functools.partial(portable, slices=slices, factors=factors, zero=zero)
            made[key] = _OfArrays(program, _inside_programs(flat, program, again, zero), out_tree)
        return made[key], values

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        found, values = of_arrays(args, kwargs)
        is_known = not any(isinstance(value, jax.core.Tracer) for value in values)
        if is_known and not _is_tracing():
            out = found.program(np.int32(0) if zero is None else zero, *values)
        elif is_known and zero is None:
            # A program of its own computes the result now, while JAX traces another.
            with jax.ensure_compile_time_eval():
                out = found.program(np.int32(0), *values)
        else:
            out = found.inside_programs(*values)
        return jax.tree.unflatten(found.out_tree[0], out)

    def lower(*args: Any, **kwargs: Any) -> Any:
        """Lower the program for these arguments, like `lower` of a function from `jax.jit`."""
        found, values = of_arrays(args, kwargs)
        return found.program.lower(np.int32(0), *values)

    wrapped.lower = lower  # type: ignore[attr-defined]
    return wrapped  # type: ignore[return-value]


class _OfArrays(NamedTuple):
    """A portable function for arguments of one structure, of given shapes and types."""

    program: Any
    """program(zero, *values) -> the leaves of the result, compiled."""
    inside_programs: Callable[..., list[Any]]
    """The same without the zero, for programs that are being traced. It has a gradient."""
    out_tree: list[Any]
    """The structure of the result, once the function has been traced."""


def _compiled(flat: Callable[..., Any], slices: int, factors: str) -> Any:
    """program(zero, *values): the results of a function of arrays in portable arithmetic."""

    def program(zero: Array, *values: Any) -> list[Any]:
        with jax.disable_jit(False):
            jaxpr = jax.make_jaxpr(flat)(*values)
        a = Arithmetic(zero, slices, factors)
        return list(map(leaving, evaluate(a, jaxpr.jaxpr, jaxpr.consts, map(entering, values))))

    program.__name__ = program.__qualname__ = PROGRAM
    return jax.jit(program)


def _inside_programs(
    flat: Callable[..., Any], program: Any, again: Callable[..., Any], zero: Array | None
) -> Callable[..., list[Any]]:
    """A call of the compiled program inside another program, with a portable gradient.

    Args:
        flat: The function of arrays.
        program: From `_compiled`.
        again: Makes a function portable with the same options.
        zero: The fence's zero. None makes a zero of the arguments.
    """

    @jax.custom_vjp
    def run(*values: Any) -> list[Any]:
        return list(program(zero_from(values) if zero is None else zero, *values))

    def forward(*values: Any) -> tuple[list[Any], Any]:
        def both(*values: Any) -> Any:
            """The results, and the function from their cotangents to those of the floats among the values."""
            places = [i for i, value in enumerate(values) if is_float(value)]

            def of_floats(*some: Any) -> Any:
                whole = list(values)
                for i, value in zip(places, some, strict=True):
                    whole[i] = value
                return flat(*whole)

            return jax.vjp(of_floats, *(values[i] for i in places))

        out, pull = again(both)(*values)
        return out, (pull, values)

    def backward(saved: Any, cotangents: Any) -> tuple[Any, ...]:
        pull, values = saved
        of_floats = iter(again(lambda pull, cotangents: pull(cotangents))(pull, cotangents))
        return tuple(next(of_floats) if is_float(value) else None for value in values)

    run.defvjp(forward, backward)
    return run


def _is_tracing() -> bool:
    """Whether JAX is tracing a program now, so that constants are part of it too."""
    return isinstance(lax.add(np.int32(0), np.int32(0)), jax.core.Tracer)


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
