"""How are exp, log, tanh, sin and others made from `Arithmetic`?

Each function reduces its argument exactly or in two parts, evaluates a polynomial, and inserts the exponent as an
integer. The coefficients are minimax fits, weighted for the relative error of the result (Lawson's iteration on 4,000
Chebyshev points, in float64). docs/portable.md states the largest errors, and
tests/test_portable_functions.py holds them.
"""

from __future__ import annotations

import numpy as np

from jaxmlp.portable.arithmetic import (
    FRACTION,
    INFINITY,
    MAGNITUDE,
    NAN,
    ONE,
    SIGN,
    Arithmetic,
    Array,
    Value,
    bits,
    bits_of,
    exponent,
    floats,
    full,
    is_nan,
    power_of_two,
    round_int,
    select,
    significand,
)

LOG2_E = np.float32(1.4426950408889634)
LN2 = np.float32(0.6931471805599453)
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(-2.1219444005e-4)
"""LN2_HIGH has 9 bits, so that its products with exponents are exact."""

EXP = (0.0013950489228591323, 0.008368889801204205, 0.04166620597243309, 0.166665181517601, 0.5)
"""(exp(r) - 1 - r) / r^2 for |r| <= ln(2) / 2."""
LOG = (
    *(0.06746601313352585, -0.11675640940666199, 0.11888174712657928, -0.12405591458082199, 0.14219550788402557),
    *(-0.1666799634695053, 0.2000211924314499, -0.25000008940696716, 0.3333331346511841),
)
"""(log(1 + f) - f + f^2 / 2) / f^3 for 1 + f in [sqrt(1/2), sqrt(2)]."""
ATANH = (0.11709415167570114, 0.14273561537265778, 0.20000076293945312)
"""(atanh(s) - s - s^3 / 3) / s^5 in z = s^2, for the same numbers, s = f / (2 + f)."""
TANH = (
    *(0.002064662054181099, -0.00809196475893259, 0.02166634425520897, -0.05394056439399719, 0.13333158195018768),
    -0.333333283662796,
)
"""(tanh(x) - x) / x^3 in z = x^2, for x <= 0.65."""
ERF = (
    *(-0.0005976893589831889, 0.00499098002910614, -0.02676556631922722, 0.11281802505254745, -0.37612494826316833),
    0.12837915122509003,
)
"""erf(x) / x - 1 in z = x^2, for x <= 0.93."""
ERF_LARGE = (
    *(-1.1231465578021016e-05, 0.000322805397445336, -0.0036424649879336357, 0.02376207523047924),
    *(-0.10623688995838165, -0.6351513266563416, -0.12864848971366882),
)
"""log(erfc(x)) / x + 1, for x in [0.92, 4]."""
ERFC = (
    *(-0.0005409869481809437, -0.0009154505678452551, 0.0051497905515134335, -0.01609582081437111),
    *(0.037160132080316544, -0.06634996086359024, 0.09373174607753754, -0.10103752464056015, 0.06809716671705246),
    *(0.015379607677459717, -0.13962112367153168, 1.2329951524734497),
)
"""exp(x^2) erfc(x) (1 + 2 x) in q = (x - 4) / (x + 4), for x in [0.4, 10.2]."""
SIN = (2.7183041311218403e-06, -0.0001983933470910415, 0.008333329111337662, -0.1666666716337204)
"""(sin(r) - r) / r^3 in z = r^2, for |r| <= pi / 4."""
COS = (-2.7210168696001347e-07, 2.4799519451335073e-05, -0.0013888883404433727, 0.0416666679084301)
"""(cos(r) - 1 + r^2 / 2) / r^4, likewise."""
ERF_INV_CENTRE = (
    *(2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087, -0.00125372503),
    *(-0.00417768164, 0.246640727, 1.50140941),
)
ERF_INV_TAIL = (
    *(-0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773, -0.0076224613),
    *(0.00943887047, 1.00167406, 2.83297682),
)
"""Source: Giles, Approximating the erfinv function, 2010; the polynomials that XLA has."""

TWO_OVER_PI = (0x00000000, 0xA2F9836E, 0x4E441529, 0xFC2757D1, 0xF534DDC0, 0xDB629599, 0x3C439041, 0xFE5163AB)
"""Bits of 2 / pi after the binary point, preceded by 32 zeros."""


def _reduced_by_ln2(a: Arithmetic, x: Array) -> tuple[Array, Array, Array]:
    """The integer k, r and rest, with x = k ln(2) + r + rest and |r| <= ln(2) / 2, for |x| <= 200."""
    k = round_int(a.guard(x * LOG2_E))
    whole = k.astype(np.float32)
    high = a.guard(x - whole * LN2_HIGH)  # Exact, with or without contraction.
    low = a.guard(whole * LN2_LOW)
    r = a.guard(high - low)
    return k, r, a.guard(a.guard(high - r) - low)


def _clamped(x: Array, limit: float) -> Array:
    """The value x, clamped to magnitude `limit`; NaN too."""
    b = bits(x)
    return floats(select((b & MAGNITUDE) > bits_of(limit), (b & SIGN) | bits_of(limit), b))


def _nan_kept(x: Array, result: Array) -> Array:
    """The result, or NaN where x is NaN."""
    return floats(select(is_nan(bits(x)), NAN, bits(result)))


def _exp_of(a: Arithmetic, r: Array, rest: Value, k: Array) -> Array:
    """exp(r + rest) 2^k: 1 + r in two parts, then all smaller terms."""
    top, lost = a.two_sum(full(r, 1.0), r)
    small = a.guard(a.guard(a.guard(r * r) * a.horner(r, EXP)) + rest)
    return a.scale(a.guard(top + a.guard(small + lost)), k)


def exp(a: Arithmetic, x: Array, halvings: int = 0) -> Array:
    """The exponential divided by 2^halvings; 0 if the result is below 2^-126."""
    k, r, rest = _reduced_by_ln2(a, _clamped(x, 110))
    return _nan_kept(x, _exp_of(a, r, rest, k - halvings))


def exp2(a: Arithmetic, x: Array) -> Array:
    """The power 2^x."""
    clamped = _clamped(x, 200)
    k = round_int(clamped)
    r, rest = a.two_product(a.guard(clamped - k.astype(np.float32)), full(x, LN2))
    return _nan_kept(x, _exp_of(a, r, rest, k))


def expm1(a: Arithmetic, x: Array) -> Array:
    """exp(x) - 1."""
    clamped = _clamped(x, 110)
    k, r, rest = _reduced_by_ln2(a, clamped)
    part = a.guard(r + a.guard(a.guard(a.guard(r * r) * a.horner(r, EXP)) + rest))
    few = clip_int(k, -30, 30)
    power = power_of_two(few)
    near = a.guard(a.guard(part * power) + a.guard(power - np.float32(1)))
    near = select(k == 0, part, near)
    far = a.scale(a.guard(part + np.float32(1)), k)
    result = select(k > 30, far, select(k < -30, np.float32(-1), near))
    return _nan_kept(x, select(exponent(bits(x)) == 0, np.float32(0), result))


def clip_int(x: Array, low: int, high: int) -> Array:
    """Integers, clamped to [low, high]."""
    x = select(x < low, np.int32(low), x)
    return select(x > high, np.int32(high), x)


def _log_parts(a: Arithmetic, b: Array) -> tuple[Array, Array]:
    """The exponent k and f, for the number 2^k (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)].

    f is exact, but still needs the fence: XLA turns 2 + (y - 1) into y + 1.
    """
    fraction = b & FRACTION
    large = fraction > (bits_of(2**0.5) & FRACTION)
    k = exponent(b) - 127 + large.astype(np.int32)
    return k, a.guard(floats(fraction | select(large, np.int32(ONE - 2**23), ONE)) - np.float32(1))


def _log_of(a: Arithmetic, k: Array, f: Array, more: Array | None = None) -> Array:
    """The sum k ln(2) + log(1 + f) + more."""
    square = a.guard(f * f)
    whole = k.astype(np.float32)
    low = a.guard(a.guard(square * f) * a.horner(f, LOG))
    low = a.guard(low + a.guard(whole * LN2_LOW))
    if more is not None:
        low = a.guard(low + more)
    high, rest = a.two_sum(f, a.guard(square * np.float32(-0.5)))
    low = a.guard(low + rest)
    top, rest = a.two_sum(a.guard(whole * LN2_HIGH), high)
    return a.guard(top + a.guard(low + rest))


def _log_specials(b: Array, result: Array) -> Array:
    """The logarithm's special values, from the bits of its argument."""
    r = select(b == INFINITY, INFINITY, bits(result))
    r = select((b < 0) | is_nan(b), NAN, r)
    return floats(select(exponent(b) == 0, INFINITY | SIGN, r))


def log(a: Arithmetic, x: Array) -> Array:
    """The natural logarithm."""
    b = bits(x)
    return _log_specials(b, _log_of(a, *_log_parts(a, b)))


def log1p(a: Arithmetic, x: Array) -> Array:
    """log(1 + x)."""
    total = a.guard(x + np.float32(1))
    b = bits(total)
    # What 1 + x lost, relative to its fraction: f' = f + lost / 2^k. The logarithm changes by that over 1 + f.
    large = (bits(x) & MAGNITUDE) >= ONE
    lost = select(large, a.guard(np.float32(1) - a.guard(total - x)), a.guard(x - a.guard(total - np.float32(1))))
    k, f = _log_parts(a, b)
    near = k == 0
    lost = a.scale(lost, -k)
    # 1 / (1 + f) to within 1/50 is enough for a correction of half a unit in the last place.
    more = a.guard(lost * a.guard(a.guard(a.guard(f * f) + np.float32(1)) - f))
    result = _log_of(a, k, select(near, x, f), select(near, np.float32(0), more))
    result = _log_specials(b, result)
    return select(exponent(bits(x)) == 0, np.float32(0), result)


def _log2_parts(a: Arithmetic, b: Array) -> tuple[Array, Array]:
    """log2 of a positive number as a sum of two floats, to about 33 bits."""
    k, f = _log_parts(a, b)
    below, lost = a.two_sum(full(f, 2.0), f)
    s = a.div(f, below)
    product, error = a.two_product(s, below)
    rest = a.guard(a.guard(a.guard(f - product) - error) - a.guard(s * lost))
    # 1 / (2 + f) to within a tenth would be enough for 3 more bits; a division's seed gives 13.
    rest = a.guard(a.guard(rest * np.float32(0.5)) * _seed(a, below))
    rest = a.guard(rest + a.guard(rest * a.guard(s * s)))  # By atanh's slope.
    # atanh(s) = s + s^3 / 3 + ...: the second term is computed in two parts too.
    z, z_low = a.two_product(s, s)
    cube, cube_low = a.two_product(s, z)
    cube_low = a.guard(cube_low + a.guard(s * z_low))
    third, part = np.float32(1 / 3), np.float32(1 / 3 - float(np.float32(1 / 3)))
    second, second_low = a.two_product(cube, full(cube, third))
    second_low = a.guard(second_low + a.guard(a.guard(cube * part) + a.guard(cube_low * third)))
    later = a.guard(a.guard(cube * z) * a.horner(z, ATANH))
    s, lost = a.two_sum(s, second)
    tail = a.guard(a.guard(lost + rest) + a.guard(later + second_low))
    twice, part = np.float32(2.885390081777927), np.float32(2.885390081777927 - float(np.float32(2.885390081777927)))
    high, low = a.two_product(s, full(s, twice))
    low = a.guard(low + a.guard(a.guard(s * part) + a.guard(tail * twice)))
    top, rest = a.two_sum(k.astype(np.float32), high)
    return a.two_sum(top, a.guard(rest + low))


def _seed(a: Arithmetic, below: Array) -> Array:
    """2 / below, for below in [1.7, 2.5]."""
    large = bits(below) >= bits_of(2)
    seed = a.reciprocal_seed(select(large, below * np.float32(0.5), below))
    return select(large, seed, seed * np.float32(2))


def log2(a: Arithmetic, x: Array) -> Array:
    """The logarithm to base 2, exact for powers of two."""
    b = bits(x)
    return _log_specials(b, _log2_parts(a, b)[0])


def pow(a: Arithmetic, x: Array, y: Array) -> Array:  # noqa: A001, the primitive's name
    """The power x^y, with C's special cases: 1^y = x^0 = 1 for every x and y."""
    bx, by = bits(x), bits(y)
    size = bx & MAGNITUDE
    high, low = _log2_parts(a, size)
    bounded = _clamped(y, 2.0**36)  # For larger |y|, every x but 1 overflows or underflows.
    power, error = a.two_product(bounded, high)
    error = a.guard(error + a.guard(bounded * low))
    power = _clamped(power, 400)
    error = _clamped(error, 1)
    k = round_int(power)
    r = a.guard(a.guard(a.guard(power - k.astype(np.float32)) + error) * LN2)
    result = bits(_exp_of(a, r, np.float32(0), k))
    size_y = by & MAGNITUDE
    zero_y = exponent(by) == 0
    whole_y = bits(a.floor(y)) == by
    even = (size_y >= bits_of(2.0**24)) | (_clamped(y, 2.0**24).astype(np.int32) & 1 == 0)
    rising = (size > ONE) == (by > 0)
    extreme = (exponent(bx) == 0) | (size == INFINITY) | (size_y == INFINITY)
    result = select(extreme, select(rising, INFINITY, np.int32(0)), result)
    result = select(size == ONE, ONE, result)
    negative = (bx < 0) & (exponent(bx) != 0)
    result = select(negative & whole_y & ~even & (result != 0), result | SIGN, result)
    result = select(negative & ~whole_y & (size != INFINITY) & (size_y != INFINITY), NAN, result)
    result = select(is_nan(bx) | is_nan(by), NAN, result)
    return floats(select(zero_y | (bx == ONE), ONE, result))


def tanh(a: Arithmetic, x: Array) -> Array:
    """The hyperbolic tangent."""
    b = bits(x)
    size = _clamped(a.abs(x), 10)
    z = a.guard(size * size)
    near = a.guard(size + a.guard(a.guard(size * z) * a.horner(z, TANH)))
    # 1 - 2 / (exp(2 x) + 1)
    above = a.guard(exp(a, a.guard(size + size)) + np.float32(1))
    far = a.guard(np.float32(1) - a.div(full(above, 2.0), above))
    result = select(bits(size) < bits_of(0.65), near, far)
    return _nan_kept(x, floats(bits(result) | (b & SIGN)))


def logistic(a: Arithmetic, x: Array) -> Array:
    """1 / (1 + exp(-x)), computed from exp(-|x|)."""
    power = exp(a, a.neg(a.abs(x)))
    above = select(bits(x) < 0, power, np.float32(1))
    below, lost = a.two_sum(full(power, 1.0), power)
    result = a.div(above, below)
    # The sum's rounding error, relative to the sum. 1 / sum is the result, or 1 minus the result.
    lost = a.guard(lost * select(bits(x) < 0, a.guard(np.float32(1) - result), result))
    return _nan_kept(x, a.guard(result - a.guard(result * lost)))


def erf(a: Arithmetic, x: Array) -> Array:
    """The error function. Source of the two forms: Juffa."""
    b = bits(x)
    size = _clamped(a.abs(x), 4)
    z = a.guard(size * size)
    # If a term would be subnormal, compute with a larger x: erf is linear there.
    tiny = select(exponent(b) < 64, np.int32(60), np.int32(0))
    larger = floats(bits(size) + (tiny << 23))
    near = a.scale(a.guard(larger + a.guard(larger * a.horner(z, ERF))), -tiny)
    power = a.guard(a.guard(size * a.horner(size, ERF_LARGE)) - size)
    far = a.guard(np.float32(1) - exp(a, power))
    result = select(bits(size) < bits_of(0.925), near, far)
    return _nan_kept(x, floats(bits(result) | (b & SIGN)))


def erfc(a: Arithmetic, x: Array) -> Array:
    """1 - erf(x), with a small relative error also near 0."""
    size = _clamped(a.abs(x), 10.2)
    q = a.div(a.guard(size - np.float32(4)), a.guard(size + np.float32(4)))
    square, lost = a.two_product(size, size)
    power = exp(a, a.neg(square))
    power = a.mul(power, a.guard(np.float32(1) - lost))
    below = a.guard(a.guard(size * np.float32(2)) + np.float32(1))
    tail = a.mul(power, a.div(a.horner(q, ERFC), below))
    far = select(bits(x) < 0, a.guard(np.float32(2) - tail), tail)
    near = a.guard(np.float32(1) - erf(a, x))
    return _nan_kept(x, select(bits(size) < bits_of(0.45), near, far))


def erf_inv(a: Arithmetic, x: Array) -> Array:
    """The inverse of the error function, as XLA approximates it. It makes random normals."""
    w = a.neg(log1p(a, a.neg(a.mul(x, x))))
    small = bits(w) < bits_of(5)
    centre = a.horner(a.guard(w - np.float32(2.5)), ERF_INV_CENTRE)
    tail = a.horner(a.guard(a.sqrt(w) - np.float32(3)), ERF_INV_TAIL)
    result = a.mul(select(small, centre, tail), x)
    b = bits(x)
    result = floats(select((b & MAGNITUDE) == ONE, (b & SIGN) | INFINITY, bits(result)))
    return floats(select((b & MAGNITUDE) > ONE, NAN, bits(result)))


def _quarters(a: Arithmetic, x: Array) -> tuple[Array, Array, Array]:
    """The number of quarter turns q, r and rest, with x = q pi / 2 + r + rest and |r| <= pi / 4.

    Source: Payne, Hanek, 1983.

    The 24-bit fraction is multiplied by 96 bits of 2 / pi, starting where whole turns end, in 16-bit limbs.
    """
    b = bits(x)
    near = (b & MAGNITUDE) < bits_of(0.75)
    power = clip_int(exponent(b) - 127, -1, 127)
    place = (power + 7).astype(np.uint32)
    word, shift = (place >> 5).astype(np.int32), place & 31
    words = [_pick(word, TWO_OVER_PI[i : i + 5]) for i in range(4)]
    window = [
        select(shift == 0, words[i], (words[i] << shift) | (words[i + 1] >> ((32 - shift) & 31))) for i in range(3)
    ]
    limbs = [limb for part in reversed(window) for limb in (part & 0xFFFF, part >> 16)]
    whole = significand(b).astype(np.uint32)
    low, high = whole & 0xFFFF, whole >> 16
    columns = [limbs[0] * 0] * 8
    for i, limb in enumerate(limbs):
        for product, column in ((limb * low, i), (limb * high, i + 1)):
            columns[column] = columns[column] + (product & 0xFFFF)
            columns[column + 1] = columns[column + 1] + (product >> 16)
    for i in range(6):
        columns[i + 1] = columns[i + 1] + (columns[i] >> 16)
        columns[i] = columns[i] & 0xFFFF
    top, middle, bottom = (columns[i] << 16 | columns[i - 1] for i in (5, 3, 1))
    first, second = (top << 2) | (middle >> 30), (middle << 2) | (bottom >> 30)
    turned = (first >> 31) == 1  # At least half a quarter: count back from the next quarter.
    quarter = ((top >> 30) + (first >> 31)).astype(np.int32)
    first, second = select(turned, ~first, first), select(turned, ~second, second)
    zeros = _leading_zeros(first)
    first = (first << zeros) | select(zeros == 0, second * 0, second >> ((32 - zeros) & 31))
    large = (first >> 8).astype(np.int32).astype(np.float32)
    small = (first & 0xFF).astype(np.int32).astype(np.float32)
    unit, part = np.float32(np.pi / 2), np.float32(np.pi / 2 - float(np.float32(np.pi / 2)))
    r, rest = a.two_product(large, full(large, unit))
    rest = a.guard(rest + a.guard(a.guard(large * part) + a.guard(small * np.float32(unit / 256))))
    factor = power_of_two(-24 - zeros.astype(np.int32))
    sign = select(turned, SIGN, np.int32(0)) ^ (b & SIGN)
    r, rest = (floats(bits(value * factor) ^ sign) for value in (r, rest))
    quarter = select(b < 0, -quarter, quarter)
    return select(near, np.int32(0), quarter), select(near, x, r), select(near, np.float32(0), rest)


def _pick(index: Array, values: tuple[int, ...]) -> Array:
    """The value at each index, by selection."""
    result = select(index == 0, np.uint32(values[0]), np.uint32(values[-1]))
    for i, value in enumerate(values[1:-1], 1):
        result = select(index == i, np.uint32(value), result)
    return result


def _leading_zeros(x: Array) -> Array:
    """Number of leading zeros of a uint32, at most 31."""
    count = x * 0
    for width in (16, 8, 4, 2, 1):
        empty = (x >> (32 - width)) == 0
        count = count + select(empty, np.uint32(width), np.uint32(0))
        x = select(empty, x << width, x)
    return count


def _wave(a: Arithmetic, x: Array, ahead: int) -> Array:
    """sin(x + ahead pi / 2)."""
    quarter, r, rest = _quarters(a, x)
    quarter = quarter + ahead
    z = a.guard(r * r)
    half = a.guard(z * np.float32(0.5))
    odd = a.guard(rest * a.guard(np.float32(1) - half))
    odd = a.guard(r + a.guard(odd + a.guard(a.guard(r * z) * a.horner(z, SIN))))
    top, lost = a.two_sum(full(half, 1.0), a.neg(half))
    even = a.guard(a.guard(a.guard(z * z) * a.horner(z, COS)) - a.guard(r * rest))
    even = a.guard(top + a.guard(even + lost))
    result = bits(select(quarter & 1 == 1, even, odd))
    result = select(quarter & 2 == 2, result ^ SIGN, result)
    return floats(select((bits(x) & MAGNITUDE) >= INFINITY, NAN, result))


def sin(a: Arithmetic, x: Array) -> Array:
    """The sine, for every float."""
    return _wave(a, x, 0)


def cos(a: Arithmetic, x: Array) -> Array:
    """The cosine, for every float."""
    return _wave(a, x, 1)


def tan(a: Arithmetic, x: Array) -> Array:
    """sin(x) / cos(x)."""
    return a.div(sin(a, x), cos(a, x))


def sinh(a: Arithmetic, x: Array) -> Array:
    """The hyperbolic sine: (e + e / (e + 1)) / 2 with e = expm1(|x|); above 10, exp(|x|) / 2."""
    b = bits(x)
    size = a.abs(x)
    part = expm1(a, size)
    near = a.scale(a.add(part, a.div(part, a.add(part, np.float32(1)))), np.int32(-1))
    result = select(bits(size) < bits_of(10), near, exp(a, size, 1))
    result = select(exponent(b) < 64, size, result)
    return _nan_kept(x, floats(bits(result) | (b & SIGN)))


def cosh(a: Arithmetic, x: Array) -> Array:
    """The hyperbolic cosine: e + 1 / (4 e) with e = exp(|x|) / 2."""
    half = exp(a, a.abs(x), 1)
    return _nan_kept(x, a.add(half, a.div(full(half, 0.25), half)))


def integer_pow(a: Arithmetic, x: Array, n: int) -> Array:
    """The power x^n, by squaring from the last bit of n on, with one division at the end if n < 0."""
    if n == 0:
        return full(x, 1.0)
    total: Array | None = None
    power, left = x, abs(n)
    while left:
        if left & 1:
            total = power if total is None else a.mul(total, power)
        left >>= 1
        if left:
            power = a.mul(power, power)
    assert total is not None
    return total if n > 0 else a.div(full(total, 1.0), total)


def cbrt(a: Arithmetic, x: Array) -> Array:
    """The cube root: a power of m, for x = m 8^n with m in [1, 8), then one step of Newton's."""
    b = bits(x)
    ordinary = (exponent(b) != 0) & (exponent(b) != 255)
    power = exponent(b) + 2  # 127 is a multiple of 3, plus 1.
    n = ((power * 21846) >> 16) - 43
    m = floats(select(ordinary, (b & MAGNITUDE) - 3 * (n << 23), ONE))
    root = pow(a, m, full(m, 1 / 3))
    square = a.mul(root, root)
    root = a.add(root, a.div(a.sub(m, a.mul(square, root)), a.mul(square, np.float32(3))))
    root = select(ordinary, floats(bits(root) + (n << 23)), a.abs(x))
    return _nan_kept(x, floats(bits(root) | (b & SIGN)))
