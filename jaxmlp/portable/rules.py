"""What does each primitive become? One table has a rule for each.

A rule receives the arithmetic, the equation and its values, whose bits it reads with `canonical` (see `arithmetic`). It
returns the equation's results. A primitive that is not in the table is refused.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmlp.portable import functions, products, sums
from jaxmlp.portable.arithmetic import (
    INFINITY,
    MAGNITUDE,
    NAN,
    SIGN,
    Arithmetic,
    Array,
    bits,
    bits_of,
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

Rule = Callable[..., Any]
"""rule(arithmetic, equation, *values) -> the result, or a sequence of results if the primitive has several."""

RULES: dict[str, Rule] = {}
"""The rule of each primitive, by its name."""


class Refused(NotImplementedError):
    """A function cannot be made portable: it has a primitive, a type or an option without a rule."""


def is_float(x: Any) -> bool:
    """Whether the array's elements are floats of any size."""
    return bool(jnp.issubdtype(x.dtype, jnp.floating))


def unchanged(a: Arithmetic, eqn: Any, *values: Array) -> Any:
    """The primitive itself, because it only moves bits or computes with integers."""
    return eqn.primitive.bind(*values, **eqn.params)


def for_floats(rule: Rule, otherwise: Rule = unchanged) -> Rule:
    """The rule if any value is a float. Otherwise `otherwise`, by default the primitive itself."""

    def chosen(a: Arithmetic, eqn: Any, *values: Array) -> Any:
        return (rule if any(map(is_float, values)) else otherwise)(a, eqn, *values)

    return chosen


def alike(rule: Rule) -> Rule:
    """The rule with all values broadcast to one shape, because jaxprs have scalars beside arrays."""

    def shaped(a: Arithmetic, eqn: Any, *values: Array) -> Any:
        shape = eqn.outvars[0].aval.shape
        return rule(a, eqn, *(value if value.shape == shape else jnp.broadcast_to(value, shape) for value in values))

    return shaped


def wide(rule: Rule) -> Rule:
    """The rule in float32 for 16-bit floats. Its result is rounded to their type."""

    def widened(a: Arithmetic, eqn: Any, *values: Array) -> Any:
        short = [value.dtype for value in values if is_float(value) and value.dtype.itemsize == 2]
        if not short:
            return rule(a, eqn, *values)
        result = rule(a, eqn, *(to_float32(value) if is_float(value) else value for value in values))
        out = eqn.outvars[0].aval.dtype
        return from_float32(result, out) if is_float(result) else result

    return widened


def floating(rule: Callable[..., Array]) -> Rule:
    """A rule that needs only the values."""
    return wide(lambda a, eqn, *values: rule(a, *values))


def to_float32(x: Array) -> Array:
    """Convert any float of up to 32 bits exactly. Subnormal bfloat16 becomes 0; subnormal float16 becomes a float32."""
    if x.dtype == np.float32:
        return x
    whole = lax.bitcast_convert_type(x, np.uint16).astype(np.int32)
    if x.dtype == jnp.bfloat16:
        return floats(canonical(whole << 16))
    if x.dtype != np.float16:
        raise Refused(f"portable has no {x.dtype}")
    sign, power, fraction = (whole & 0x8000) << 16, (whole >> 10) & 31, whole & 1023
    small = bits(fraction.astype(np.float32) * np.float32(2.0**-24))
    ordinary = ((power + 112) << 23) | (fraction << 13)
    ordinary = select(power == 31, INFINITY | (fraction << 13), ordinary)
    return floats(canonical(sign | select(power == 0, small, ordinary)))


def from_float32(x: Array, dtype: Any) -> Array:
    """Round to the nearest 16-bit float, ties to even, using integers."""
    dtype = np.dtype(dtype)
    if dtype == np.float32:
        return x
    b = canonical(bits(x))
    if dtype == jnp.bfloat16:
        rounded = (b + 0x7FFF + ((b >> 16) & 1)) >> 16
        return lax.bitcast_convert_type((select(is_nan(b), NAN >> 16, rounded) & 0xFFFF).astype(np.uint16), dtype)
    if dtype != np.float16:
        raise Refused(f"portable has no {dtype}")
    size = b & MAGNITUDE
    normal = (size - (112 << 23) + 0xFFF + ((size >> 13) & 1)) >> 13
    # Below 2^-14 the step is 2^-24, and the sum has the last bits of the float16.
    sub = bits(floats(size) + np.float32(0.5)) - bits_of(0.5)
    half = select(size < bits_of(2.0**-14), sub, normal)
    half = select(size >= bits_of(65520), np.int32(0x7C00), half)
    half = select(is_nan(b), np.int32(0x7E00), half | ((b >> 16) & 0x8000))
    return lax.bitcast_convert_type(half.astype(np.uint16), dtype)


def convert(a: Arithmetic, eqn: Any, x: Array) -> Array:
    """Convert between types. It is defined for every value, out of range and NaN included."""
    dtype = np.dtype(eqn.params["new_dtype"])
    if not is_float(x):
        if not jnp.issubdtype(dtype, jnp.floating):
            return _between_integers(x, dtype)
        if x.dtype.itemsize > 4:
            raise Refused(f"portable has no {x.dtype}")
        result = from_float32(a.from_integers(x), dtype)
        return products.known_whole(a, result) if x.dtype == np.bool_ else result
    x = to_float32(x)
    if jnp.issubdtype(dtype, jnp.floating):
        return from_float32(x, dtype)
    if dtype == np.bool_:
        return exponent(bits(x)) != 0
    if dtype.itemsize > 4 or not jnp.issubdtype(dtype, jnp.integer):
        raise Refused(f"portable has no {dtype}")
    return a.to_integers(x, dtype)


def _between_integers(x: Array, dtype: np.dtype) -> Array:
    """Convert between integers, modulo the type's size."""
    return x.astype(dtype)


def compared(holds: Callable[[Array, Array], Array], unordered: bool) -> Rule:
    """A comparison of the floats' order as integers. If a value is NaN, the result is `unordered`."""

    def rule(a: Arithmetic, eqn: Any, x: Array, y: Array) -> Array:
        kx, ky = order(x), order(y)
        nan = (kx == NAN) | (ky == NAN)
        return holds(kx, ky) | nan if unordered else holds(kx, ky) & ~nan

    return for_floats(wide(rule))


def in_total_order(holds: Callable[[Array, Array], Array]) -> Rule:
    """A comparison of the floats' order as integers, where NaN equals NaN and is above everything."""
    return for_floats(wide(lambda a, eqn, x, y: holds(order(x), order(y))))


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
    rest = eqn.primitive.name == "rem"
    zero = y == 0
    over = zero
    if jnp.issubdtype(x.dtype, jnp.signedinteger):
        over = (x == np.asarray(np.iinfo(x.dtype).min, x.dtype)) & (y == np.asarray(-1, x.dtype))
    result = eqn.primitive.bind(x, select(zero | over, np.asarray(1, y.dtype), y), **eqn.params)
    if rest:
        return select(zero, x, result)
    ones = -1 if jnp.issubdtype(x.dtype, jnp.signedinteger) else np.iinfo(x.dtype).max
    return select(zero, np.asarray(ones, x.dtype), result)


def power(a: Arithmetic, eqn: Any, x: Array, y: Array) -> Array:
    """The power x^y, for y of floats or integers."""
    return functions.pow(a, x, y if is_float(y) else a.from_integers(y))


def clamp(a: Arithmetic, least: Array, x: Array, most: Array) -> Array:
    """min(max(x, least), most). Either end may be a scalar."""
    least, most = (jnp.broadcast_to(end, x.shape) for end in (least, most))
    return a.min(a.max(x, least), most)


def summed(a: Arithmetic, eqn: Any, x: Array) -> Array:
    """The sum along axes, as a tree."""
    return sums.reduce(a.add, x, eqn.params["axes"], 0.0)


def multiplied(a: Arithmetic, eqn: Any, x: Array) -> Array:
    """The product along axes, as a tree."""
    return sums.reduce(a.mul, x, eqn.params["axes"], 1.0)


def cumulated(name: str) -> Rule:
    """Running sums and products."""
    return wide(lambda a, eqn, x: sums.cumulative(getattr(a, name), x, eqn.params["axis"], eqn.params["reverse"]))


def cumulated_logsumexp(a: Arithmetic, eqn: Any, x: Array) -> Array:
    """Running log(sum(exp(x)))."""

    def combine(x: Array, y: Array) -> Array:
        top = a.max(x, y)
        finite = select((bits(top) & MAGNITUDE) == INFINITY, np.float32(0), top)
        total = a.add(functions.exp(a, a.sub(x, finite)), functions.exp(a, a.sub(y, finite)))
        return a.add(functions.log(a, total), finite)

    return sums.cumulative(combine, x, eqn.params["axis"], eqn.params["reverse"])


def extreme(a: Arithmetic, eqn: Any, x: Array) -> Array:
    """The largest or smallest element, in windows or along axes, compared as integers in the floats' order."""
    return sums.extreme(eqn.primitive, x, eqn.params)


def place_of_extreme(a: Arithmetic, eqn: Any, x: Array) -> Any:
    """The first index of the largest or smallest element; of a NaN, if there is one."""
    return eqn.primitive.bind(_least_nan(order(x), eqn.primitive.name == "argmin"), **eqn.params)


def _least_nan(key: Array, below: bool) -> Array:
    return select(key == NAN, np.int32(-(2**31)), key) if below else key


def sort(a: Arithmetic, eqn: Any, *values: Array) -> list[Array]:
    """Floats sorted as integers in their order, NaN last."""
    keys = [order(to_float32(value)) if is_float(value) else value for value in values]
    out = eqn.primitive.bind(*keys, **eqn.params)
    return [
        from_float32(from_order(key), value.dtype) if is_float(value) else key
        for key, value in zip(out, values, strict=True)
    ]


def top(a: Arithmetic, eqn: Any, x: Array) -> list[Array]:
    """The largest elements and their indices."""
    keys, places = eqn.primitive.bind(order(to_float32(x)), **eqn.params)
    return [from_float32(from_order(keys), x.dtype), places]


def bitcast(a: Arithmetic, eqn: Any, x: Array) -> Array:
    """A bitcast. A float shows its canonical bits, and bits become a canonical float."""
    if x.dtype == np.float32:
        x = floats(canonical(bits(x)))
    elif is_float(x):
        x = from_float32(to_float32(x), x.dtype)
    result = eqn.primitive.bind(x, **eqn.params)
    return flushed(result)


def flushed(x: Array) -> Array:
    """A value that enters, with subnormal float32 and bfloat16 set to 0. Refuses types without rules."""
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        return x
    if x.dtype == np.float32:
        b = bits(x)
        return floats(select(exponent(b) == 0, np.int32(0), b))
    if x.dtype == jnp.bfloat16:
        b = lax.bitcast_convert_type(x, np.uint16)
        return lax.bitcast_convert_type(select((b & 0x7F80) == 0, np.uint16(0), b), jnp.bfloat16)
    if x.dtype == np.float16:
        return x
    raise Refused(f"portable has no {x.dtype}: cast it to float32")


def shown(x: Array) -> Array:
    """A value that leaves, with canonical bits."""
    if not is_float(x):
        return x
    if x.dtype == np.float32:
        return floats(canonical(bits(x)))
    whole = lax.bitcast_convert_type(x, np.uint16)
    size, top = whole & 0x7FFF, (0x7F80 if x.dtype == jnp.bfloat16 else 0x7C00)
    nothing = size < 0x80 if x.dtype == jnp.bfloat16 else size == 0
    whole = select(nothing, np.uint16(0), whole)
    nan = np.uint16(0x7FC0 if x.dtype == jnp.bfloat16 else 0x7E00)
    return lax.bitcast_convert_type(select(size > top, nan, whole), x.dtype)


def reduce_precision(a: Arithmetic, eqn: Any, x: Array) -> Array:
    """Round to fewer bits of fraction, or to float16; ties to even."""
    powers, fraction = eqn.params["exponent_bits"], eqn.params["mantissa_bits"]
    if powers == 8 and fraction <= 23:
        b, cut = canonical(bits(x)), 23 - fraction
        rounded = b if not cut else (b + (2 ** (cut - 1) - 1) + ((b >> cut) & 1)) & np.int32(-(2**cut))
        return floats(select(is_nan(b), NAN, rounded))
    if (powers, fraction) == (5, 10):
        return to_float32(from_float32(x, np.float16))
    raise Refused(f"portable has no reduce_precision to {powers} bits of exponent and {fraction} bits of fraction")


def rounded(a: Arithmetic, eqn: Any, x: Array) -> Array:
    """Round to the nearest integer."""
    return a.round(x, eqn.params["rounding_method"] == lax.RoundingMethod.TO_NEAREST_EVEN)


def remainder(a: Arithmetic, eqn: Any, x: Array, y: Array) -> Array:
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


def next_after(a: Arithmetic, x: Array, y: Array) -> Array:
    """The next float from x towards y. Next to 0 lies 2^-126."""
    kx, ky = order(x), order(y)
    moved = kx + (ky > kx).astype(np.int32) - (ky < kx).astype(np.int32)
    least = np.int32(2**23)
    moved = select((kx == 0) & (ky != 0), select(ky > 0, least, -least), moved)
    moved = select((jnp.abs(moved) < least) & (kx != 0), np.int32(0), moved)
    return from_order(select((kx == NAN) | (ky == NAN), NAN, moved))


def logistic_slope(a: Arithmetic, x: Array) -> Array:
    """The product x (1 - x)."""
    return a.mul(x, a.sub(full(x, 1.0), x))


def tanh_slope(a: Arithmetic, x: Array) -> Array:
    """(1 - x) (1 + x)."""
    return a.mul(a.add(full(x, 1.0), x), a.sub(full(x, 1.0), x))


def convert_to_factor(a: Arithmetic, x: Array) -> Array:
    """Integers as float32, a factor of a product. A product skips the empty slices of booleans."""
    result = a.from_integers(x)
    return products.known_whole(a, result) if x.dtype == np.bool_ else result


def transposed(a: Arithmetic, eqn: Any, x: Array) -> Array:
    """Axes in another order. A product of the result takes the original array instead."""
    result: Array = eqn.primitive.bind(x, **eqn.params)
    return products.known_transposed(a, result, x, eqn.params["permutation"])


def dot_general(a: Arithmetic, eqn: Any, x: Array, y: Array) -> Array:
    """Exact products of slices. Integers beside floats become floats."""
    x, y = (value if is_float(value) else convert_to_factor(a, value) for value in (x, y))
    return products.dot_general(a, x, y, eqn.params["dimension_numbers"])


def convolution(a: Arithmetic, eqn: Any, x: Array, y: Array) -> Array:
    """A convolution, also by products of slices."""
    return products.convolution(a, x, y, eqn.params)


def window_sum(a: Arithmetic, eqn: Any, x: Array) -> Array:
    """Sums of windows, as in average pooling."""
    return sums.window_sum(a, x, eqn.params)


def _least(eqn: Any) -> bool:
    return bool(eqn.params["select_prim"].name in ("le", "le_to", "lt"))


def to_chosen(a: Arithmetic, eqn: Any, source: Array, operand: Array) -> Array:
    """The gradient of max pooling."""
    return sums.select_and_scatter_add(a, source, operand, _least(eqn), eqn.params)


def of_chosen(a: Arithmetic, eqn: Any, tangents: Array, operand: Array) -> Array:
    """The tangents of max pooling."""
    return sums.select_and_gather_add(tangents, operand, _least(eqn), eqn.params)


def scatter_add(a: Arithmetic, eqn: Any, operand: Array, indices: Array, updates: Array) -> Array:
    """Sums into positions, in a fixed order."""
    return sums.scatter_add(a, operand, indices, updates, eqn.params)


def scatter(a: Arithmetic, eqn: Any, operand: Array, indices: Array, updates: Array) -> Any:
    """Values into positions. Of several values for one position, the last stays."""
    if eqn.params.get("unique_indices") or operand.dtype.itemsize > 4:
        return unchanged(a, eqn, operand, indices, updates)
    if operand.dtype.itemsize == 2 and is_float(operand):
        narrow = operand.dtype
        result = sums.scatter(to_float32(operand), indices, to_float32(updates), eqn.params)
        return from_float32(result, narrow)
    return sums.scatter(operand, indices, updates, eqn.params)


def scatter_extreme(a: Arithmetic, eqn: Any, operand: Array, indices: Array, updates: Array) -> Array:
    """The largest or smallest values into positions, which is the same in any order."""
    return sums.scatter_extreme(operand, indices, updates, eqn.primitive, eqn.params)


def collective_sum(a: Arithmetic, eqn: Any, *values: Array) -> Any:
    """Sums of integers over devices. Floats are refused, because nobody defines the order of their additions."""
    if any(map(is_float, values)):
        raise Refused(
            f"portable refuses {eqn.primitive.name} of floats: the devices decide the order of its additions. "
            "Gather the parts (lax.all_gather) and add them in an order of your own"
        )
    return unchanged(a, eqn, *values)


def across_devices_extreme(a: Arithmetic, eqn: Any, *values: Array) -> Any:
    """The largest or smallest value over devices, compared as integers in the floats' order."""
    least = "min" in eqn.primitive.name
    keys = [_least_nan(order(to_float32(value)), least) if is_float(value) else value for value in values]
    out = eqn.primitive.bind(*keys, **eqn.params)
    has_many = eqn.primitive.multiple_results
    nan = np.int32(-(2**31))
    found = [
        from_float32(from_order(select(key == nan, NAN, key)), value.dtype) if is_float(value) else key
        for key, value in zip(out if has_many else [out], values, strict=True)
    ]
    return found if has_many else found[0]


def random_bits(a: Arithmetic, eqn: Any, *values: Array) -> Any:
    """Random bits, from generators that are the same everywhere."""
    kinds = [str(getattr(value.dtype, "_impl", "")) for value in values] + [str(eqn.params.get("impl", ""))]
    for kind in kinds:
        if "rbg" in kind:
            raise Refused("portable refuses rbg keys: their bits depend on the device. Use impl='threefry2x32'")
    return unchanged(a, eqn, *values)


def identity(a: Arithmetic, eqn: Any, *values: Array) -> Any:
    """The values unchanged, because the primitive is the identity."""
    return list(values) if eqn.primitive.multiple_results else values[0]


def default_platform(eqn: Any) -> int:
    """Index of the branch that `lax.platform_dependent` takes by default, which portable takes on every platform."""
    platforms = eqn.params["platforms"]
    if None not in platforms:
        raise Refused("portable refuses lax.platform_dependent without a default: it needs a branch for every platform")
    index: int = platforms.index(None)
    return index


def _fill() -> None:
    for name in [
        "all_gather",
        "all_gather_invariant",
        "all_to_all",
        "and",
        "axis_index",
        "broadcast_in_dim",
        "broadcast",
        "clz",
        "collapse",
        "concatenate",
        "copy",
        "copy_p",
        "debug_callback",
        "debug_print",
        "dynamic_slice",
        "dynamic_update_slice",
        "empty",
        "expand_dims",
        "gather",
        "iota",
        "layout_constraint",
        "mesh_cast",
        "mulhi",
        "not",
        "optimization_barrier",
        "or",
        "pad",
        "pbroadcast",
        "pcast",
        "population_count",
        "ppermute",
        "pvary",
        "random_clone",
        "reduce_and",
        "reduce_or",
        "reduce_xor",
        "reshape",
        "reshard",
        "rev",
        "select_n",
        "sharding_constraint",
        "slice",
        "split",
        "squeeze",
        "stack",
        "tile",
        "unstack",
        "xor",
    ]:
        RULES[name] = unchanged
    for name in [
        "random_bits",
        "random_fold_in",
        "random_seed",
        "random_split",
        "random_unwrap",
        "random_wrap",
        "threefry2x32",
    ]:
        RULES[name] = random_bits
    RULES["transpose"] = transposed
    for name in ["device_put", "name", "stop_gradient", "copy_start"]:
        RULES[name] = identity
    binary: dict[str, Callable[..., Array]] = {
        "add": Arithmetic.add,
        "add_any": Arithmetic.add,
        "sub": Arithmetic.sub,
        "mul": Arithmetic.mul,
        "max": Arithmetic.max,
        "min": Arithmetic.min,
    }
    for name, of_two in binary.items():
        RULES[name] = for_floats(floating(of_two))
    unary: dict[str, Callable[..., Array]] = {
        "abs": Arithmetic.abs,
        "neg": Arithmetic.neg,
        "sign": Arithmetic.sign,
        "square": lambda a, x: a.mul(x, x),
        "mul_one_minus": logistic_slope,
        "one_minus_square": tanh_slope,
        "clamp": clamp,
    }
    for name, of_one in unary.items():
        RULES[name] = for_floats(floating(of_one))
    for name in [
        "cbrt",
        "cos",
        "cosh",
        "erf",
        "erf_inv",
        "erfc",
        "exp",
        "exp2",
        "expm1",
        "log",
        "log1p",
        "log2",
        "logistic",
        "sin",
        "sinh",
        "tan",
        "tanh",
    ]:
        RULES[name] = floating(getattr(functions, name))
    for name in ["ceil", "floor", "rsqrt", "sqrt"]:
        RULES[name] = floating(getattr(Arithmetic, name))
    RULES["nextafter"] = floating(next_after)
    RULES["is_finite"] = floating(lambda a, x: (bits(x) & MAGNITUDE) < INFINITY)
    RULES["integer_pow"] = for_floats(wide(lambda a, eqn, x: functions.integer_pow(a, x, eqn.params["y"])))
    RULES["div"] = for_floats(floating(Arithmetic.div), integer_quotient)
    RULES["rem"] = for_floats(wide(remainder), integer_quotient)
    RULES["pow"] = wide(power)
    RULES["round"] = wide(rounded)
    RULES["reduce_precision"] = wide(reduce_precision)
    for name, holds, unordered in (
        ("eq", operator.eq, False),
        ("ne", operator.ne, True),
        ("lt", operator.lt, False),
        ("le", operator.le, False),
        ("gt", operator.gt, False),
        ("ge", operator.ge, False),
    ):
        RULES[name] = compared(holds, unordered)
    for name, holds in (("eq_to", operator.eq), ("lt_to", operator.lt), ("le_to", operator.le)):
        RULES[name] = in_total_order(holds)
    for name in ["shift_left", "shift_right_arithmetic", "shift_right_logical"]:
        RULES[name] = shift
    RULES["convert_element_type"] = convert
    RULES["bitcast_convert_type"] = bitcast
    for name, rule in (
        ("reduce_sum", summed),
        ("reduce_prod", multiplied),
        ("cumsum", cumulated("add")),
        ("cumprod", cumulated("mul")),
        ("cumlogsumexp", cumulated_logsumexp),
        ("dot_general", dot_general),
        ("conv_general_dilated", convolution),
        ("reduce_window_sum", window_sum),
        ("select_and_scatter_add", to_chosen),
        ("select_and_gather_add", of_chosen),
        ("scatter_add", scatter_add),
        ("scatter_min", scatter_extreme),
        ("scatter_max", scatter_extreme),
    ):
        RULES[name] = for_floats(wide(rule))
    for name in ["reduce_max", "reduce_min", "reduce_window_max", "reduce_window_min", "cummax", "cummin"]:
        RULES[name] = for_floats(wide(extreme))
    for name in ["argmax", "argmin"]:
        RULES[name] = for_floats(wide(place_of_extreme))
    for name in ["scatter-add", "scatter-min", "scatter-max"]:
        RULES[name] = RULES[name.replace("-", "_")]
    RULES["scatter"] = scatter
    RULES["sort"] = sort
    RULES["top_k"] = for_floats(top)
    for name in ["psum", "psum2", "psum_invariant", "reduce_scatter", "unreduced_psum"]:
        RULES[name] = collective_sum
    for name in ["pmax", "pmin"]:
        RULES[name] = across_devices_extreme
    RULES["platform_index"] = lambda a, eqn: np.int32(default_platform(eqn))

    for name in [
        "add",
        "add_any",
        "sub",
        "mul",
        "max",
        "min",
        "div",
        "rem",
        "pow",
        "nextafter",
        "eq",
        "ne",
        "lt",
        "le",
        "gt",
        "ge",
        "eq_to",
        "lt_to",
        "le_to",
        "shift_left",
        "shift_right_arithmetic",
        "shift_right_logical",
    ]:
        RULES[name] = alike(RULES[name])


_fill()


def shape_of(x: Any) -> str:
    """Type and shape as in jaxprs: float32[3,4]."""
    return f"{x.dtype}[{','.join(map(str, jax.typeof(x).shape))}]"


def check(name: str, values: Sequence[Array]) -> None:
    """Refuse types without rules: float64 and complex numbers."""
    for value in values:
        if jnp.issubdtype(value.dtype, jnp.inexact) and not (
            value.dtype in (np.float32, np.float16) or value.dtype == jnp.bfloat16
        ):
            raise Refused(f"portable has no {value.dtype} ({name}): cast it to float32")
