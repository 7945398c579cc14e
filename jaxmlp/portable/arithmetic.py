"""Which operations on floats have one right answer on every machine, and how is each made?

Everything here is float32. It is made of a device's +, -, * and conversions, and of integers. Between rules no value is
subnormal. A zero may have a sign and a NaN any bits, so code that reads bits takes them from `canonical`.

Integers called b, bx or by are the bits of a float. Integers are compared with a float's bits because floats of one
sign are in the order of their bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Array: TypeAlias = jax.Array
Value: TypeAlias = jax.Array | np.ndarray | np.number

# Masks of a float's bits.
SIGN = np.int32(-(2**31))
EXPONENT = np.int32(0x7F800000)
FRACTION = np.int32(0x7FFFFF)
MAGNITUDE = np.int32(2**31 - 1)  # EXPONENT | FRACTION: all but the sign.

HIDDEN = np.int32(0x800000)
"""The leading bit of a significand, which a float does not store."""

# The bits of some floats.
LEAST_NORMAL = np.int32(0x800000)  # 2^-126, the least positive float that is not subnormal.
ONE = np.int32(0x3F800000)
INFINITY = np.int32(0x7F800000)
NAN = np.int32(0x7FC00000)  # The only NaN that readers see.

ROUNDER = np.float32(1.5 * 2**23)
"""For |x| <= 2^22, the last bits of x + ROUNDER hold x rounded to the nearest integer."""


def bits(x: Array) -> Array:
    """The float's 32 bits, int32."""
    return lax.bitcast_convert_type(x, np.int32)


def bits_of(number: float) -> np.int32:
    """The bits of a number that is known now."""
    return np.float32(number).view(np.int32)


def floats(b: Array) -> Array:
    """The float32 with these bits."""
    return lax.bitcast_convert_type(b, np.float32)


def select(condition: Array, x: Value, y: Value) -> Array:
    """`x` where the condition holds, else `y`. Either may be a scalar."""
    return lax.select(condition, *(jnp.broadcast_to(jnp.asarray(value), condition.shape) for value in (x, y)))


def full(like: Array, value: float | np.floating) -> Array:
    """A float32 value in an array's shape."""
    return jnp.full(like.shape, value, np.float32)


def exponent(b: Array) -> Array:
    """The exponent's eight bits as an integer: 0 for zero and subnormals, 255 for infinities and NaN."""
    return (b >> 23) & 0xFF


def significand(b: Array) -> Array:
    """The 24 bits of the significand as an integer in [2^23, 2^24)."""
    return (b & FRACTION) | HIDDEN


def is_nan(b: Array) -> Array:
    """Whether the bits are a NaN. A compiler that assumes there are no NaNs deletes x != x."""
    return (b & MAGNITUDE) > INFINITY


def canonical(b: Array) -> Array:
    """The bits in the form that rules and readers see: +0 for magnitudes below 2^-126, and a single NaN."""
    b = select(exponent(b) == 0, np.int32(0), b)
    return select(is_nan(b), NAN, b)


def order(x: Array) -> Array:
    """Integers in the order of the floats. Both zeros become 0, and NaN is above everything."""
    b = canonical(bits(x))
    return select(b < 0, -(b & MAGNITUDE), b)


def from_order(key: Array) -> Array:
    """The inverse of `order`."""
    return floats(select(key < 0, -key | SIGN, key))


def power_of_two(n: Array) -> Array:
    """2^n, for n in [-126, 127]."""
    return floats((n + 127) << 23)


def head(x: Array) -> Array:
    """The first 12 bits of the significand. The difference to x has the other 12, so products of halves are exact."""
    return floats(bits(x) & np.int32(-4096))


def round_int(x: Array) -> Array:
    """The nearest integer, int32, ties to even, for |x| <= 2^22.

    x may be a product that is not fenced, if it is exact: a fused multiply-add then changes nothing.
    """
    return bits(x + ROUNDER) - ROUNDER.view(np.int32)


class Arithmetic:
    """Float32 arithmetic whose results pass a fence that no compiler sees through.

    A result's bits are combined by exclusive or with a zero that the compiled program receives as an argument. So the
    compiler must round the result. It can neither contract it with the next operation (to a fused multiply-add) nor
    reorder the two.

    Args:
        zero: int32 0, unknown at compile time.
        slices: Number of 8-bit pieces into which the factors of products are cut.
        factors: Type in which the pieces are multiplied. The bits do not depend on it.
    """

    def __init__(self, zero: Array, slices: int = 2, factors: str = "int8") -> None:
        self.zero, self.slices, self.factors = zero, slices, factors
        self.memory: dict[tuple[int, object], tuple[Any, Array]] = {}
        """What was computed from a value: (id(value), what) -> (result, value). An entry holds its value, so that no
        other value gets the same id."""

    def guard(self, x: Array) -> Array:
        """The fence alone, for results that are not subnormal, or whose subnormal values do not matter."""
        return floats(bits(x) ^ self.zero)

    def add(self, x: Array, y: Value) -> Array:
        """The sum x + y, rounded to nearest even. Sums below 2^-126 are exact and become 0."""
        b = bits(x + y) ^ self.zero
        return floats(select((b & EXPONENT) == 0, np.int32(0), b))

    def sub(self, x: Array, y: Value) -> Array:
        """The difference x - y, as in `add`."""
        b = bits(x - y) ^ self.zero
        return floats(select((b & EXPONENT) == 0, np.int32(0), b))

    def mul(self, x: Array, y: Value) -> Array:
        """The product x * y, rounded to nearest even; 0 if it is at most 2^-126.

        Devices without subnormals differ on products that round up to 2^-126, so those are 0 too.
        """
        b = bits(x * y) ^ self.zero
        return floats(select((b & MAGNITUDE) <= LEAST_NORMAL, np.int32(0), b))

    def horner(self, x: Array, coefficients: Sequence[float]) -> Array:
        """The polynomial with these coefficients, the highest first."""
        total = self.guard(x * np.float32(coefficients[0])) + np.float32(coefficients[1])
        for coefficient in coefficients[2:]:
            total = self.guard(self.guard(total) * x) + np.float32(coefficient)
        return self.guard(total)

    def two_sum(self, large: Array, small: Array) -> tuple[Array, Array]:
        """The rounded sum and its exact error, if |large| >= |small| or `large` is 0. Source: Dekker, 1971."""
        total = self.guard(large + small)
        return total, self.guard(small - self.guard(total - large))

    def two_product(self, x: Array, y: Array) -> tuple[Array, Array]:
        """The rounded product and its exact error. Source: Dekker, 1971."""
        x0, y0 = head(x), head(y)
        x1, y1 = self.guard(x - x0), self.guard(y - y0)
        product = self.guard(x * y)
        error = self.guard(self.guard(x0 * y0) - product)
        error = self.guard(error + self.guard(x0 * y1))
        error = self.guard(error + self.guard(x1 * y0))
        return product, self.guard(error + self.guard(x1 * y1))

    def scale(self, x: Array, n: Array | np.int32) -> Array:
        """The value x * 2^n: exact, or 0 below 2^-126, or infinite.

        x must be finite, or a caller replaces the result: with n < 0, an infinity or a NaN becomes some finite number.
        """
        b = bits(x)
        power = exponent(b)
        moved = power + n
        b = select((power == 0) | (moved <= 0), np.int32(0), b + (n << 23))
        return floats(select((power != 0) & (moved >= 255), (bits(x) & SIGN) | INFINITY, b))

    def reciprocal_seed(self, x: Array) -> Array:
        """1 / x for x in [1, 2), within 2^-13 of it, relatively: Chebyshev's parabola and one step of Newton's."""
        seed = self.guard(self.guard(x * np.float32(32 / 99)) - np.float32(144 / 99))
        seed = self.guard(self.guard(seed * x) + np.float32(210 / 99))
        error = self.guard(np.float32(1) - self.guard(x * seed))
        return self.guard(seed + self.guard(seed * error))

    def div(self, x: Array, y: Array) -> Array:
        """The quotient x / y, correctly rounded; 0 below 2^-126.

        A long division of the significands, in two digits of 12 bits. The remainders are small, so
        integers hold them exactly. The last remainder decides the rounding. Ties cannot occur.
        """
        bx, by = bits(x), bits(y)
        power_x, power_y = exponent(bx), exponent(by)
        whole_x, whole_y = significand(bx), significand(by)
        less = whole_x < whole_y
        whole_x = select(less, whole_x << 1, whole_x)
        seed = self.reciprocal_seed(floats((by & FRACTION) | ONE))
        # Scaling by a power of two is exact, so the last products need no fence.
        first = round_int(self.guard(whole_x.astype(np.float32) * seed) * np.float32(2.0**-12))
        rest = (whole_x << 11) - first * whole_y
        second = round_int(self.guard(rest.astype(np.float32) * seed) * np.float32(2.0**-11))
        rest = (rest << 12) - second * whole_y
        last = (rest + rest > whole_y).astype(np.int32) - (rest + rest < -whole_y).astype(np.int32)
        quotient = (first << 12) + second + last - HIDDEN
        power = power_x - power_y + 127 - less.astype(np.int32)
        b = quotient + (power << 23)
        power = power + (quotient >> 23)
        huge = (power >= 255) | (power_y == 0) | (power_x == 255)
        tiny = (power <= 0) | (power_x == 0) | (power_y == 255)
        # A zero has no sign.
        sign = (bx & SIGN) ^ select(power_y == 0, np.int32(0), by & SIGN)
        b = select(huge, INFINITY, select(tiny, np.int32(0), b)) | select(tiny, np.int32(0), sign)
        return floats(select((huge & tiny) | is_nan(bx) | is_nan(by), NAN, b))

    def _root_parts(self, b: Array) -> tuple[Array, Array, Array]:
        """For a positive number m * 4^n, m in [1, 4): the integer m * 2^23, about m^-1/2, and n."""
        power = exponent(b) - 127
        odd = power & 1
        whole = significand(b) << odd
        fraction = whole.astype(np.float32) * np.float32(2.0**-23)
        seed = floats(np.int32(0x5F3759DF) - (bits(fraction) >> 1))
        half = fraction * np.float32(0.5)
        for _ in range(2):
            square = self.guard(seed * seed)
            seed = self.guard(seed * self.guard(np.float32(1.5) - self.guard(half * square)))
        return whole, seed, (power - odd) >> 1

    def sqrt(self, x: Array) -> Array:
        """The square root, correctly rounded, in two digits of 12 bits, as in `div`. Ties cannot occur."""
        b = bits(x)
        whole, seed, power = self._root_parts(b)
        first = round_int(self.guard(whole.astype(np.float32) * seed) * np.float32(2.0**-12))
        rest = whole - 2 * first * first
        second = round_int(self.guard(rest.astype(np.float32) * seed) * np.float32(0.5))
        rest = (rest << 23) - ((first * second) << 13) - second * second
        root = (first << 12) + second
        root = root + (rest > root).astype(np.int32) - (rest <= -root).astype(np.int32)
        result = root - HIDDEN + ((power + 127) << 23)
        result = select(b == INFINITY, INFINITY, result)
        result = select((b < 0) | is_nan(b), NAN, result)
        return floats(select(exponent(b) == 0, np.int32(0), result))

    def rsqrt(self, x: Array) -> Array:
        """The reciprocal square root x^-1/2 by Newton's steps. Only the last addition rounds at the result's size."""
        b = bits(x)
        whole, seed, power = self._root_parts(b)
        fraction = whole.astype(np.float32) * np.float32(2.0**-23)
        high, low = self.two_product(seed, seed)
        product, error = self.two_product(high, fraction)
        error = self.guard(error + self.guard(low * fraction))
        missing = self.guard(self.guard(np.float32(1) - product) - error)
        step = self.guard(self.guard(seed * np.float32(0.5)) * missing)
        result = bits(self.guard(seed + step)) - (power << 23)
        result = select(b == INFINITY, np.int32(0), result)
        result = select((b < 0) | is_nan(b), NAN, result)
        return floats(select(exponent(b) == 0, INFINITY, result))

    def max(self, x: Array, y: Array) -> Array:
        """The larger value; NaN if either is NaN."""
        kx, ky = order(x), order(y)
        return from_order(select(kx >= ky, kx, ky))

    def min(self, x: Array, y: Array) -> Array:
        """The smaller value; NaN if either is NaN."""
        kx, ky = order(x), order(y)
        least = select(kx <= ky, kx, ky)
        return from_order(select((kx == NAN) | (ky == NAN), NAN, least))

    def neg(self, x: Array) -> Array:
        """-x."""
        return floats(bits(x) ^ SIGN)

    def abs(self, x: Array) -> Array:
        """|x|."""
        return floats(bits(x) & MAGNITUDE)

    def sign(self, x: Array) -> Array:
        """-1, 0 or 1; NaN for NaN."""
        b = canonical(bits(x))
        one = floats(select(b == 0, np.int32(0), (b & SIGN) | ONE))
        return select(is_nan(b), floats(b), one)

    def floor(self, x: Array) -> Array:
        """The largest integer up to x."""
        toward_zero = _if_below(2.0**23, x).astype(np.int32).astype(np.float32)
        return _large_kept(x, select(toward_zero > x, toward_zero - np.float32(1), toward_zero))

    def ceil(self, x: Array) -> Array:
        """The smallest integer from x on."""
        return self.neg(self.floor(self.neg(x)))

    def round(self, x: Array, ties_to_even: bool) -> Array:
        """The nearest integer, ties to even or away from 0."""
        whole = _if_below(2.0**23, x).astype(np.int32)
        rest = _if_below(2.0**23, x) - whole.astype(np.float32)  # Exact.
        size = bits(rest) & MAGNITUDE
        half = bits_of(0.5)
        up = (size > half) | ((size == half) & ((whole & 1 == 1) if ties_to_even else (size == half)))
        away = select(bits(x) < 0, np.int32(-1), np.int32(1))
        return _large_kept(x, (whole + select(up, away, np.int32(0))).astype(np.float32))

    def to_integers(self, x: Array, dtype: np.dtype) -> Array:
        """Truncate to integers. NaN becomes 0. Values out of range become the nearest integer of the type."""
        info = np.iinfo(dtype)
        b = canonical(bits(x))
        size = b & MAGNITUDE
        if info.max > 2**31 - 1:
            # From 2^31 on, x is its significand times 2^8. Below, the device converts x.
            large = significand(b).astype(np.uint32) << 8
            small = _if_below(2.0**31, x).astype(np.int32).astype(np.uint32)
            value = select(size >= bits_of(2.0**31), large, small)
            value = select(size >= bits_of(2.0**32), np.uint32(2**32 - 1), value)
            return select((b < 0) | is_nan(b), np.uint32(0), value)
        value = _if_below(2.0**31, x).astype(np.int32)
        value = select(size >= bits_of(2.0**31), MAGNITUDE ^ (b >> 31), value)
        value = jnp.clip(value, np.int32(info.min), np.int32(info.max))
        return select(is_nan(b), np.int32(0), value).astype(dtype)

    def from_integers(self, x: Array) -> Array:
        """Convert integers to the nearest float, ties to even."""
        if x.dtype != np.uint32:
            return x.astype(np.int32).astype(np.float32)
        high, low = ((part.astype(np.int32).astype(np.float32)) for part in (x >> 16, x & np.uint32(0xFFFF)))
        return self.guard(high * np.float32(2.0**16) + low)  # One rounding, because the product is exact.


def _if_below(limit: float, x: Array) -> Array:
    """x, or 0 where |x| is not below the limit, so that x can be converted to int32."""
    b = bits(x)
    return floats(select((b & MAGNITUDE) < bits_of(limit), b, np.int32(0)))


def _large_kept(x: Array, rounded: Array) -> Array:
    """`rounded`, or x itself where |x| >= 2^23: such floats are integers, infinities and NaN."""
    b = bits(x)
    return select((b & MAGNITUDE) >= bits_of(2.0**23), x, rounded)
