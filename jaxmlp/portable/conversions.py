"""Which types may values have, and how is one converted to another?

Floats have 32 or 16 bits. Rules compute in float32: `to_float32` and `from_float32` go to and from the 16-bit types.
`entering` and `leaving` make the values canonical that a portable function takes and returns.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmlp.portable import products
from jaxmlp.portable.arithmetic import (
    INFINITY,
    MAGNITUDE,
    NAN,
    Arithmetic,
    Array,
    bits,
    bits_of,
    canonical,
    exponent,
    floats,
    is_nan,
    select,
)


class Refused(NotImplementedError):
    """A function cannot be made portable: it has a primitive, a type or an option without a rule."""


def is_float(x: Any) -> bool:
    """Whether the array's elements are floats of any size."""
    return bool(jnp.issubdtype(x.dtype, jnp.floating))


def check_type(x: Any, primitive: str = "") -> None:
    """Check that the values have a type that rules know.

    Raises:
        Refused: They are float64 or complex numbers, or of another such type.
    """
    if jnp.issubdtype(x.dtype, jnp.inexact) and x.dtype not in (np.float32, np.float16, jnp.bfloat16):
        raise Refused(f"portable has no {x.dtype}{f' ({primitive})' if primitive else ''}: cast it to float32")


def entering(x: Array) -> Array:
    """A value that enters the program, with subnormal numbers of float32 and bfloat16 set to 0.

    Raises:
        Refused: The type has no rules.
    """
    check_type(x)
    if x.dtype == np.float32:
        b = bits(x)
        return floats(select(exponent(b) == 0, np.int32(0), b))
    if x.dtype == jnp.bfloat16:
        b = lax.bitcast_convert_type(x, np.uint16)
        return lax.bitcast_convert_type(select((b & 0x7F80) == 0, np.uint16(0), b), jnp.bfloat16)
    return x


def leaving(x: Array) -> Array:
    """A value that leaves the program, with canonical bits."""
    if not is_float(x):
        return x
    if x.dtype == np.float32:
        return floats(canonical(bits(x)))
    whole = lax.bitcast_convert_type(x, np.uint16)
    size, infinity = whole & 0x7FFF, (0x7F80 if x.dtype == jnp.bfloat16 else 0x7C00)
    is_zero = size < 0x80 if x.dtype == jnp.bfloat16 else size == 0
    whole = select(is_zero, np.uint16(0), whole)
    nan = np.uint16(0x7FC0 if x.dtype == jnp.bfloat16 else 0x7E00)
    return lax.bitcast_convert_type(select(size > infinity, nan, whole), x.dtype)


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
    """Round a float32 to the nearest float of this type, ties to even."""
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


def from_integers(a: Arithmetic, x: Array, dtype: Any) -> Array:
    """Convert integers or booleans to floats of any size. Products skip the empty slices of booleans."""
    if x.dtype.itemsize > 4:
        raise Refused(f"portable has no {x.dtype}")
    result = from_float32(a.from_integers(x), dtype)
    return products.known_whole(a, result) if x.dtype == np.bool_ else result


def convert(a: Arithmetic, eqn: Any, x: Array) -> Array:
    """Convert between types. It is defined for every value, out of range and NaN included."""
    dtype = np.dtype(eqn.params["new_dtype"])
    to_floats = jnp.issubdtype(dtype, jnp.floating)
    if not is_float(x):
        return from_integers(a, x, dtype) if to_floats else x.astype(dtype)  # Between integers: modulo the type's size.
    x = to_float32(x)
    if to_floats:
        return from_float32(x, dtype)
    if dtype == np.bool_:
        return exponent(bits(x)) != 0
    if dtype.itemsize > 4 or not jnp.issubdtype(dtype, jnp.integer):
        raise Refused(f"portable has no {dtype}")
    return a.to_integers(x, dtype)


def bitcast(a: Arithmetic, eqn: Any, x: Array) -> Array:
    """A bitcast. A float shows its canonical bits, and bits become a canonical float."""
    if x.dtype == np.float32:
        x = floats(canonical(bits(x)))
    elif is_float(x):
        x = from_float32(to_float32(x), x.dtype)
    return entering(eqn.primitive.bind(x, **eqn.params))


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
