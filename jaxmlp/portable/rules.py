"""What does each primitive become? One table has a rule for each: `RULES`, at the end.

A rule receives the arithmetic, the equation and its values. It returns the equation's result, or a list of results if
the primitive has several. A primitive that is not in the table is refused.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmlp.portable import functions, products, sums
from jaxmlp.portable.arithmetic import (
    INFINITY,
    LEAST_NORMAL,
    MAGNITUDE,
    NAN,
    SIGN,
    Arithmetic,
    Array,
    bits,
    canonical,
    exponent,
    floats,
    from_order,
    full,
    is_nan,
    order,
    select,
    significand,
)
from jaxmlp.portable.conversions import (
    Refused,
    bitcast,
    convert,
    from_float32,
    from_integers,
    is_float,
    reduce_precision,
    to_float32,
)

Rule = Callable[..., Any]
"""rule(arithmetic, equation, *values)"""
ValueRule = Callable[..., Array]
"""rule(arithmetic, *values), for a primitive whose parameters do not matter."""


def unchanged(a: Arithmetic, eqn: Any, *values: Array) -> Any:
    """The primitive itself, because it only moves bits or computes with integers."""
    return eqn.primitive.bind(*values, **eqn.params)


def identity(a: Arithmetic, eqn: Any, *values: Array) -> Any:
    """The values, because the primitive is the identity."""
    return list(values) if eqn.primitive.multiple_results else values[0]


def on_floats(rule: Rule, on_integers: Rule = unchanged) -> Rule:
    """The rule if any value is a float, else `on_integers`.

    The rule sees float32 only: 16-bit floats are widened, and its results are rounded to the primitive's types.
    """

    def chosen(a: Arithmetic, eqn: Any, *values: Array) -> Any:
        if not any(map(is_float, values)):
            return on_integers(a, eqn, *values)
        results = rule(a, eqn, *(to_float32(value) if is_float(value) else value for value in values))
        has_many = eqn.primitive.multiple_results
        rounded = [
            from_float32(result, var.aval.dtype) if is_float(result) else result
            for result, var in zip(results if has_many else [results], eqn.outvars, strict=True)
        ]
        return rounded if has_many else rounded[0]

    return chosen


def of_values(rule: ValueRule) -> Rule:
    """The same rule, called with the equation too."""
    return lambda a, eqn, *values: rule(a, *values)


def in_one_shape(rule: Rule) -> Rule:
    """The rule with all values broadcast to the result's shape: a jaxpr may have a scalar beside an array."""

    def shaped(a: Arithmetic, eqn: Any, *values: Array) -> Any:
        shape = eqn.outvars[0].aval.shape
        return rule(a, eqn, *(value if value.shape == shape else jnp.broadcast_to(value, shape) for value in values))

    return shaped


def compared(holds: Callable[[Array, Array], Array], with_nan: bool = False) -> ValueRule:
    """A comparison of floats by their order as integers. If a value is NaN, the result is `with_nan`."""

    def rule(a: Arithmetic, x: Array, y: Array) -> Array:
        kx, ky = order(x), order(y)
        nan = (kx == NAN) | (ky == NAN)
        return holds(kx, ky) | nan if with_nan else holds(kx, ky) & ~nan

    return rule


def in_total_order(holds: Callable[[Array, Array], Array]) -> ValueRule:
    """A comparison of floats by their order as integers, where NaN equals NaN and is above everything."""
    return lambda a, x, y: holds(order(x), order(y))


def shift(a: Arithmetic, eqn: Any, x: Array, by: Array) -> Any:
    """A shift of integers. By the type's width or more, it gives 0; an arithmetic shift gives copies of the sign."""
    width = x.dtype.itemsize * 8
    outside = by.astype(np.uint32) >= np.uint32(width)
    shifted = eqn.primitive.bind(x, select(outside, np.asarray(width - 1, by.dtype), by), **eqn.params)
    if eqn.primitive.name == "shift_right_arithmetic":
        return shifted
    return select(outside, np.asarray(0, x.dtype), shifted)


def integer_quotient(a: Arithmetic, eqn: Any, x: Array, y: Array) -> Array:
    """The quotient or remainder of integers x and y, defined everywhere.

    If y is 0, the quotient has all bits set, and the remainder is x. The least integer divided by -1 is itself, and the
    remainder is 0.
    """
    info, is_zero = np.iinfo(x.dtype), y == 0
    is_signed = info.min < 0
    overflows = (x == np.asarray(info.min, x.dtype)) & (y == np.asarray(-1, x.dtype)) if is_signed else is_zero
    result = eqn.primitive.bind(x, select(is_zero | overflows, np.asarray(1, y.dtype), y), **eqn.params)
    if eqn.primitive.name == "rem":
        return select(is_zero, x, result)
    return select(is_zero, np.asarray(-1 if is_signed else info.max, x.dtype), result)


def remainder(a: Arithmetic, x: Array, y: Array) -> Array:
    """The remainder x - y trunc(x / y), exact: a long division in integers, one bit at a time."""
    bx, by = canonical(bits(x)), canonical(bits(y))
    whole_x, whole_y = significand(bx), significand(by)
    ahead = exponent(bx) - exponent(by)

    def step(i: Array, left: Array) -> Array:
        left = select(i <= ahead, left << select(i == 0, np.int32(0), np.int32(1)), left)
        return select((i <= ahead) & (left >= whole_y), left - whole_y, left)

    steps = jnp.arange(255, dtype=np.int32)
    left, _ = lax.scan(lambda left, i: (step(jnp.broadcast_to(i, left.shape), left), None), whole_x, steps)
    result = a.scale(left.astype(np.float32), exponent(by) - 150)
    result = select(ahead < 0, a.abs(x), result)
    result = select((exponent(bx) == 0) & (exponent(by) != 0), np.float32(0), result)
    result = select((by & MAGNITUDE) == INFINITY, a.abs(x), result)
    bad = is_nan(bx) | is_nan(by) | ((bx & MAGNITUDE) == INFINITY) | (exponent(by) == 0)
    return floats(select(bad, NAN, bits(result) | (bx & SIGN)))


def power(a: Arithmetic, x: Array, y: Array) -> Array:
    """The power x^y, for y of floats or integers."""
    return functions.pow(a, x, y if is_float(y) else a.from_integers(y))


def next_after(a: Arithmetic, x: Array, y: Array) -> Array:
    """The next float from x towards y. Next to 0 lies 2^-126."""
    kx, ky = order(x), order(y)
    moved = kx + (ky > kx).astype(np.int32) - (ky < kx).astype(np.int32)
    moved = select((kx == 0) & (ky != 0), select(ky > 0, LEAST_NORMAL, -LEAST_NORMAL), moved)
    moved = select((jnp.abs(moved) < LEAST_NORMAL) & (kx != 0), np.int32(0), moved)
    return from_order(select((kx == NAN) | (ky == NAN), NAN, moved))


def clamp(a: Arithmetic, least: Array, x: Array, most: Array) -> Array:
    """min(max(x, least), most). Either end may be a scalar."""
    least, most = (jnp.broadcast_to(end, x.shape) for end in (least, most))
    return a.min(a.max(x, least), most)


def cumulated_logsumexp(a: Arithmetic, eqn: Any, x: Array) -> Array:
    """Running log(sum(exp(x)))."""

    def combine(x: Array, y: Array) -> Array:
        top = a.max(x, y)
        finite = select((bits(top) & MAGNITUDE) == INFINITY, np.float32(0), top)
        total = a.add(functions.exp(a, a.sub(x, finite)), functions.exp(a, a.sub(y, finite)))
        return a.add(functions.log(a, total), finite)

    return sums.cumulative(combine, x, eqn.params)


def place_of_extreme(a: Arithmetic, eqn: Any, x: Array) -> Any:
    """The first index of the largest or smallest element; of a NaN, if there is one."""
    return unchanged(a, eqn, sums.extreme_key(x, eqn.primitive))


def sort(a: Arithmetic, eqn: Any, *values: Array) -> list[Array]:
    """Floats sorted as integers in their order, NaN last."""
    out = unchanged(a, eqn, *(order(value) if is_float(value) else value for value in values))
    return [from_order(key) if is_float(value) else key for key, value in zip(out, values, strict=True)]


def top_k(a: Arithmetic, eqn: Any, x: Array) -> list[Array]:
    """The largest elements and their indices."""
    keys, places = unchanged(a, eqn, order(x))
    return [from_order(keys), places]


def dot_general(a: Arithmetic, eqn: Any, x: Array, y: Array) -> Array:
    """Exact products of slices. Integers beside floats become floats."""
    x, y = (value if is_float(value) else from_integers(a, value, np.float32) for value in (x, y))
    return products.dot_general(a, x, y, eqn.params["dimension_numbers"])


def scatter(a: Arithmetic, eqn: Any, operand: Array, indices: Array, updates: Array) -> Any:
    """Values into positions. Of several values for one position, the last stays."""
    if eqn.params.get("unique_indices") or operand.dtype.itemsize > 4:
        return unchanged(a, eqn, operand, indices, updates)
    return sums.scatter(operand, indices, updates, eqn.params)


def transposed(a: Arithmetic, eqn: Any, x: Array) -> Array:
    """Axes in another order. A product of the result takes the original array instead."""
    return products.known_transposed(a, unchanged(a, eqn, x), x, eqn.params["permutation"])


def collective_sum(a: Arithmetic, eqn: Any, *values: Array) -> Any:
    """Sums of integers over devices. Floats are refused, because nobody defines the order of their additions."""
    if any(map(is_float, values)):
        raise Refused(
            f"portable refuses {eqn.primitive.name} of floats: the devices decide the order of its additions. "
            "Gather the parts (lax.all_gather) and add them in an order of your own"
        )
    return unchanged(a, eqn, *values)


def random_bits(a: Arithmetic, eqn: Any, *values: Array) -> Any:
    """Random bits, from generators that are the same everywhere."""
    generators = [getattr(value.dtype, "_impl", "") for value in values] + [eqn.params.get("impl", "")]
    if any("rbg" in str(generator) for generator in generators):
        raise Refused("portable refuses rbg keys: their bits depend on the device. Use impl='threefry2x32'")
    return unchanged(a, eqn, *values)


def default_platform(eqn: Any) -> int:
    """Index of the branch that `lax.platform_dependent` takes by default, which portable takes on every platform."""
    platforms = eqn.params["platforms"]
    if None not in platforms:
        raise Refused("portable refuses lax.platform_dependent without a default: it needs a branch for every platform")
    index: int = platforms.index(None)
    return index


UNCHANGED = (
    "all_gather", "all_gather_invariant", "all_to_all", "and", "axis_index", "broadcast_in_dim", "clz", "concatenate",
    "copy", "debug_callback", "debug_print", "dynamic_slice", "dynamic_update_slice", "empty", "gather", "iota",
    "layout_constraint", "mulhi", "not", "optimization_barrier", "or", "pad", "pbroadcast", "population_count",
    "ppermute", "pvary", "random_clone", "reduce_and", "reduce_or", "reduce_xor", "reshape", "reshard", "rev",
    "select_n", "sharding_constraint", "slice", "split", "squeeze", "stack", "tile", "unstack", "xor",
)  # fmt: skip
"""Primitives that only move bits or compute with integers."""
RANDOM = (
    "random_bits", "random_fold_in", "random_seed", "random_split", "random_unwrap", "random_wrap", "threefry2x32",
)  # fmt: skip

OF_ONE: dict[str, ValueRule] = {
    "abs": Arithmetic.abs,
    "neg": Arithmetic.neg,
    "sign": Arithmetic.sign,
    "ceil": Arithmetic.ceil,
    "floor": Arithmetic.floor,
    "sqrt": Arithmetic.sqrt,
    "rsqrt": Arithmetic.rsqrt,
    "cbrt": functions.cbrt,
    "exp": functions.exp,
    "exp2": functions.exp2,
    "expm1": functions.expm1,
    "log": functions.log,
    "log2": functions.log2,
    "log1p": functions.log1p,
    "logistic": functions.logistic,
    "sin": functions.sin,
    "cos": functions.cos,
    "tan": functions.tan,
    "sinh": functions.sinh,
    "cosh": functions.cosh,
    "tanh": functions.tanh,
    "erf": functions.erf,
    "erfc": functions.erfc,
    "erf_inv": functions.erf_inv,
    "square": lambda a, x: a.mul(x, x),
    "one_minus_square": lambda a, x: a.mul(a.add(full(x, 1.0), x), a.sub(full(x, 1.0), x)),
    "is_finite": lambda a, x: (bits(x) & MAGNITUDE) < INFINITY,
}
"""Functions of each element."""
OF_TWO: dict[str, ValueRule] = {
    "add": Arithmetic.add,
    "add_any": Arithmetic.add,
    "sub": Arithmetic.sub,
    "mul": Arithmetic.mul,
    "max": Arithmetic.max,
    "min": Arithmetic.min,
    "pow": power,
    "nextafter": next_after,
    "eq": compared(operator.eq),
    "ne": compared(operator.ne, with_nan=True),
    "lt": compared(operator.lt),
    "le": compared(operator.le),
    "gt": compared(operator.gt),
    "ge": compared(operator.ge),
    "eq_to": in_total_order(operator.eq),
    "lt_to": in_total_order(operator.lt),
    "le_to": in_total_order(operator.le),
}
"""Functions of two elements, with arrays or scalars on either side."""
OF_ARRAYS: dict[str, Rule] = {
    "integer_pow": lambda a, eqn, x: functions.integer_pow(a, x, eqn.params["y"]),
    "round": lambda a, eqn, x: a.round(x, eqn.params["rounding_method"] == lax.RoundingMethod.TO_NEAREST_EVEN),
    "reduce_precision": reduce_precision,
    "clamp": of_values(clamp),
    "reduce_sum": lambda a, eqn, x: sums.reduce(a.add, x, eqn.params["axes"], 0.0),
    "reduce_prod": lambda a, eqn, x: sums.reduce(a.mul, x, eqn.params["axes"], 1.0),
    "cumsum": lambda a, eqn, x: sums.cumulative(a.add, x, eqn.params),
    "cumprod": lambda a, eqn, x: sums.cumulative(a.mul, x, eqn.params),
    "cumlogsumexp": cumulated_logsumexp,
    "dot_general": dot_general,
    "conv_general_dilated": lambda a, eqn, x, y: products.convolution(a, x, y, eqn.params),
    "reduce_window_sum": lambda a, eqn, x: sums.window_sum(a, x, eqn.params),
    "select_and_scatter_add": lambda a, eqn, source, x: sums.select_and_scatter_add(a, source, x, eqn.params),
    "select_and_gather_add": lambda a, eqn, tangents, x: sums.select_and_gather_add(tangents, x, eqn.params),
    "scatter-add": lambda a, eqn, x, indices, updates: sums.scatter_add(a, x, indices, updates, eqn.params),
    **dict.fromkeys(
        ("scatter-min", "scatter-max"),
        lambda a, eqn, x, indices, updates: sums.scatter_extreme(eqn.primitive, x, indices, updates, eqn.params),
    ),
    **dict.fromkeys(
        ("reduce_max", "reduce_min", "reduce_window_max", "reduce_window_min", "cummax", "cummin", "pmax", "pmin"),
        lambda a, eqn, x: sums.extreme(eqn.primitive, x, eqn.params),
    ),
    "argmax": place_of_extreme,
    "argmin": place_of_extreme,
    "sort": sort,
    "top_k": top_k,
}
"""Functions of whole arrays, or with parameters."""

RULES: dict[str, Rule] = {
    **dict.fromkeys(UNCHANGED, unchanged),
    **dict.fromkeys(RANDOM, random_bits),
    **dict.fromkeys(("device_put", "name", "stop_gradient"), identity),
    **{name: on_floats(of_values(rule)) for name, rule in OF_ONE.items()},
    **{name: in_one_shape(on_floats(of_values(rule))) for name, rule in OF_TWO.items()},
    "div": in_one_shape(on_floats(of_values(Arithmetic.div), integer_quotient)),
    "rem": in_one_shape(on_floats(of_values(remainder), integer_quotient)),
    **dict.fromkeys(("shift_left", "shift_right_arithmetic", "shift_right_logical"), in_one_shape(shift)),
    **{name: on_floats(rule) for name, rule in OF_ARRAYS.items()},
    "scatter": on_floats(scatter, scatter),
    "transpose": transposed,
    "convert_element_type": convert,
    "bitcast_convert_type": bitcast,
    **dict.fromkeys(("psum", "psum_invariant", "reduce_scatter", "unreduced_psum"), collective_sum),
    "platform_index": lambda a, eqn: np.int32(default_platform(eqn)),
}
"""The rule of each primitive, by its name."""
