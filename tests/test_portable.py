"""`portable` is a transformation like jit: its answers are JAX's, its bits are its own, wherever it is called."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import portable_cases as cases
import portable_everywhere as everywhere
import pytest
from jax import lax
from jax.sharding import AxisType, Mesh, PartitionSpec
from refusals import refused

from jaxmlp.portable import Refused, portable
from jaxmlp.portable import products as of_products
from jaxmlp.portable.right import right as right_results
from jaxmlp.portable.text import text

X, W = cases.array(5, 7), cases.array(7, 3, seed=1)
FAST = {"xla_backend_optimization_level": 0}
"""LLVM's least effort: the bits are the same, and the tests take half the time."""


def run(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """The portable function's result."""
    compiled = jax.jit(lambda zero, *args: portable(function, zero=zero, **options)(*args)).lower(np.int32(0), *args)
    return compiled.compile(compiler_options=FAST)(np.int32(0), *args)


def by_numpy(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """The portable function's result by its rules in NumPy: nothing is compiled."""
    made, shapes = jax.make_jaxpr(
        lambda zero, *args: portable(function, zero=zero, **options)(*args), return_shape=True
    )(np.int32(0), *args)
    values = [np.asarray(value) for value in jax.tree.leaves((np.int32(0), args))]
    return jax.tree.unflatten(jax.tree.structure(shapes), right_results(made.jaxpr, made.consts, values))


def plainly(function: Callable[..., Any], *args: Any) -> Any:
    """JAX's own result."""
    return jax.jit(function).lower(*args).compile(compiler_options=FAST)(*args)


def made_portable(function: Callable[..., Any]) -> Callable[..., Any]:
    """Portable, of functions without types."""
    return portable(function)


def same_bits(one: Any, other: Any) -> bool:
    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in leaves)


def loss(w: Any, x: Any) -> jax.Array:
    return jnp.mean(jnp.tanh(x @ w) ** 2)


@pytest.fixture(scope="module")
def right() -> Any:
    return GRADIENT(W, X)


def test_the_bits_are_the_same_under_any_flags_and_the_plain_program_s_are_not() -> None:
    names = "relu rmsprop"
    with ThreadPoolExecutor(2) as pool:
        settings = [everywhere.SETTINGS[name] | {"NETWORKS": names} for name in everywhere.FEW]
        found = list(pool.map(lambda setting: everywhere.digests(setting, "3"), settings))
    assert len({digests["portable"][names] for digests in found}) == 1
    assert len({digests["plain"][names] for digests in found}) > 1


def test_a_product_of_a_transposed_array_is_that_of_the_array_itself() -> None:
    rng = np.random.default_rng(3)
    x, y, z = (rng.normal(size=shape).astype(np.float32) for shape in ((5, 7), (3, 7), (4, 7, 3)))
    assert same_bits(portable(lambda x, y: x @ y.T)(x, y), portable(lambda x, y: x @ y)(x, y.T.copy()))
    assert same_bits(portable(lambda x, y: x.T.T @ y.T)(x, y), portable(lambda x, y: x @ y)(x, y.T.copy()))
    turned = z.transpose(2, 1, 0)  # Its free axes lie in another order than the array's.
    got = portable(lambda x, z: jnp.einsum("ik,akb->iab", x, z.transpose(2, 1, 0)))(x, z)
    assert same_bits(got, portable(lambda x, z: jnp.einsum("ik,akb->iab", x, z))(x, turned.copy()))


def second(tree: Any) -> Any:
    """The second entry of each array."""
    return jax.tree.map(lambda leaf: leaf[1], tree)


MESH = Mesh(np.asarray(jax.devices()[:1]), ("d",), axis_types=(AxisType.Auto,))
ALIKE: Any = {"mesh": MESH, "in_specs": PartitionSpec(), "out_specs": PartitionSpec()}
GRADIENT = portable(jax.value_and_grad(loss))
WITHIN: dict[str, Callable[..., Any]] = {
    "jit": jax.jit(lambda w, x: GRADIENT(w, x * jnp.float32(1))),
    "scan": jax.jit(lambda w, x: second(lax.scan(lambda w, x: (w, GRADIENT(w, x)), w, jnp.stack([2 * x, x]))[1])),
    "shard_map": jax.jit(jax.shard_map(GRADIENT, **ALIKE, check_vma=False)),
    "export": lambda w, x: jax.export.deserialize(jax.export.export(jax.jit(GRADIENT))(w, x).serialize()).call(w, x),
    "constants": lambda w, x: jax.jit(lambda: GRADIENT(w, x))(),
    "vmap": lambda w, x: second(jax.vmap(GRADIENT, (None, 0))(w, jnp.stack([2 * x, x]))),
}


@pytest.mark.parametrize("around", WITHIN)
def test_within_any_program_the_bits_are_the_same(around: str, right: Any) -> None:
    assert same_bits(WITHIN[around](W, X), right)


def test_shard_map_inside_has_the_bits_of_one_device() -> None:
    def summed(devices: int) -> Any:
        mesh = Mesh(np.asarray(jax.devices()[:devices]), ("d",), axis_types=(AxisType.Auto,))

        def part(x: jax.Array) -> jax.Array:
            parts = lax.all_gather(jnp.sum(jnp.exp(x), axis=1), "d", tiled=True)
            total: jax.Array = parts[:2] + parts[2:]
            return total

        mapped = jax.shard_map(part, mesh=mesh, in_specs=PartitionSpec("d"), out_specs=PartitionSpec(), check_vma=False)
        return portable(mapped)(cases.array(4, 9))

    assert same_bits(summed(1), summed(4))


def contracted(x: jax.Array, y: jax.Array) -> jax.Array:
    """What a compiler would make a multiply-add of, were there no fence."""
    fenced: jax.Array = portable(lambda x, y: x * y + x)(x, y)
    return fenced


AROUND = {
    "jit": contracted,
    "scan": lambda x, y: lax.scan(lambda x, _: (contracted(x, y), None), x, length=3),
    "shard_map": jax.shard_map(contracted, **ALIKE),
    "export": lambda x, y: jax.export.export(jax.jit(contracted))(x, y).call(x, y),
}


@pytest.mark.parametrize("around", AROUND)
def test_a_zero_made_of_arguments_is_in_the_program_and_not_folded(around: str) -> None:
    program = jax.jit(AROUND[around]).lower(X, X).compile().as_text() or ""
    xors = [line for line in program.splitlines() if " xor(" in line]
    assert xors and not any("constant" in line.split("xor(")[1].split(")")[0] for line in xors)
    # The quadratic residue that is never met: the comparison is still made at run time.
    assert re.search(r"compare\(.*direction=EQ", program)


def test_the_gradient_of_a_portable_function_is_the_portable_gradient(right: Any) -> None:
    assert same_bits(jax.grad(portable(loss))(W, X), right[1])
    assert same_bits(jax.jit(jax.grad(portable(loss)))(W, X), right[1])


def test_the_jvp_of_a_portable_function_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="jvp"):
        jax.jvp(portable(loss), (W, X), (W, X))


def test_a_primitive_without_a_rule_is_refused_with_the_line() -> None:
    def mine(x: jax.Array) -> jax.Array:
        return jax.scipy.special.digamma(x)

    line = f"{Path(__file__).name}:{mine.__code__.co_firstlineno + 1}"
    with refused(Refused, "digamma", "float32[5,7]", line):
        portable(mine)(X)


@pytest.mark.parametrize("name", ["psum", "float64", "rbg"])
def test_what_has_no_fixed_bits_is_refused(name: str) -> None:
    if name == "psum":
        function = jax.shard_map(lambda x: lax.psum(x, "d"), **ALIKE | {"in_specs": PartitionSpec("d")})
        with pytest.raises(Refused, match="psum"):
            made_portable(function)(X[:1])
    elif name == "rbg":

        def drawn(seed: jax.Array) -> jax.Array:
            return jax.random.normal(jax.random.key(seed, impl="rbg"), (3,))

        with pytest.raises(Refused, match="rbg"):
            portable(drawn)(np.int32(0))
    else:
        with jax.enable_x64(True), pytest.raises(Refused, match="float64"):
            made_portable(lambda x: x + x)(X.astype(np.float64))


@pytest.mark.parametrize("asked", [np.float32, jnp.bfloat16, np.float16])
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_a_product_has_the_type_that_is_asked_of_it(dtype: Any, asked: Any) -> None:
    x, y = X.astype(dtype), X.T.astype(dtype)
    exact = np.asarray(x, np.float64) @ np.asarray(y, np.float64)
    product = portable(lambda x, y: lax.dot(x, y, preferred_element_type=asked))(x, y)
    assert product.dtype == asked
    np.testing.assert_allclose(
        np.asarray(product, np.float64), exact, rtol=2**-7, atol=2**-6
    )  # bfloat16 rounds to 2^-8


def test_a_function_may_return_another_structure_for_another_shape_or_type() -> None:
    def named(x: jax.Array) -> Any:
        return {"row": x, "sum": x.sum()} if x.ndim == 1 and x.dtype == np.float32 else (x, x.sum())

    ported = portable(named)
    for x in (X[0], X, X[0].astype(jnp.bfloat16), X[0]):
        assert str(jax.tree.structure(ported(x))) == str(jax.tree.structure(named(x)))


def test_orders_of_all_floats_are_jax_s() -> None:
    mapped: Any = jax.shard_map(lambda x: lax.pmax(x, "d"), **ALIKE)

    def largest(x: jax.Array) -> Any:
        return [lax.top_k(x, 2), mapped(x), jnp.sort(x)]

    for dtype in (np.float32, jnp.bfloat16, np.float16):
        x = np.asarray(X[:, :2], dtype)
        assert same_bits(run(largest, x), plainly(largest, x))


def test_portable_within_portable_is_portable_once() -> None:
    once, twice = portable(loss), made_portable(lambda w, x: portable(loss)(w, x))
    assert same_bits(once(W, X), twice(W, X))


def test_zeros_nan_and_subnormal_numbers_have_one_form() -> None:
    nan = np.asarray([0x7FC00000, -1, 0x7F800001 - 2**31 - 2**31], np.int64).astype(np.int32).view(np.float32)
    tiny = np.asarray([1e-40, -1e-40, -0.0], np.float32)
    x = np.concatenate([nan, tiny, np.asarray([np.inf, -np.inf, 1], np.float32)])

    def bits(x: jax.Array) -> Any:
        views = [x, x + 0, x * 1, lax.neg(-x), jnp.abs(x), jnp.maximum(x, x), jnp.sort(x)]
        return [lax.bitcast_convert_type(value, np.int32) for value in views]

    for out in portable(bits)(x):
        words = set(np.asarray(out).tolist())
        assert words <= {0x7FC00000, 0, 0x7F800000, -0x800000, 0x3F800000}, words
    tests = made_portable(lambda x: (jnp.isnan(x), jnp.isinf(x), x != x, x == 0, lax.eq_to_p.bind(x, jnp.abs(x))))(x)
    assert np.asarray(tests[0]).tolist() == [True] * 3 + [False] * 6
    assert np.asarray(tests[1]).tolist() == [False] * 6 + [True, True, False]
    assert np.asarray(tests[2]).tolist() == [True] * 3 + [False] * 6
    assert np.asarray(tests[3]).tolist() == [False] * 3 + [True] * 3 + [False] * 3
    assert np.asarray(tests[4]).tolist() == [True] * 7 + [False, True]


def test_conversions_out_of_range_and_wide_shifts_are_defined() -> None:
    x = np.asarray([np.nan, np.inf, -np.inf, 3e9, -3e9, 5e9, 300.7, -300.7], np.float32)
    out = made_portable(lambda x: (x.astype(jnp.int32), x.astype(jnp.uint32), x.astype(jnp.uint8)))(x)
    top, low = 2**31 - 1, -(2**31)
    assert np.asarray(out[0]).tolist() == [0, top, low, top, low, top, 300, -300]
    assert np.asarray(out[1]).tolist() == [0, 2**32 - 1, 0, 3_000_000_000, 0, 2**32 - 1, 300, 0]
    assert np.asarray(out[2]).tolist() == [0, 255, 0, 255, 0, 255, 255, 0]
    by = np.asarray([0, 31, 32, 99], np.int32)
    shifted = made_portable(lambda x, by: (x << by, lax.shift_right_arithmetic(x, by), lax.shift_right_logical(x, by)))
    out = shifted(np.full(4, -8, np.int32), by)
    assert [np.asarray(value).tolist() for value in out] == [[-8, 0, 0, 0], [-8, -1, -1, -1], [-8, 1, 0, 0]]
    quotients = made_portable(lambda x, y: (lax.div(x, y), lax.rem(x, y)))
    found = quotients(np.asarray([7, low, 7], np.int32), np.asarray([0, -1, 2], np.int32))
    assert [np.asarray(value).tolist() for value in found] == [[-1, low, 3], [7, 0, 1]]


@pytest.mark.parametrize("slices", [1, 2, 3])
def test_products_keep_their_bound_and_their_bits_for_any_type_of_factors(slices: int) -> None:
    x, y = cases.array(6, 300) * np.float32(3), cases.array(300, 5, seed=1)
    exact = x.astype(np.float64) @ y
    # docs/portable.md: of the row's and the column's largest, half a unit each, and the low slices left out.
    unit = 2.0 ** -(8 * slices - 1.01)
    largest = np.abs(x).max(1)[:, None], np.abs(y).max(0)[None]
    rounding = unit * (largest[0] * np.abs(y).sum(0)[None] + np.abs(x).sum(1)[:, None] * largest[1])
    left_out = 300 * largest[0] * largest[1] * (slices - 1) * unit**2 * 4.0 ** (4 * (slices - 1)) * 2.0**8
    floats = 2.0**-22 * np.abs(x).astype(np.float64) @ np.abs(y)
    out = [run(jnp.dot, x, y, slices=slices, factors=factors) for factors in ("int8", "bfloat16", "float32")]
    assert np.all(np.abs(np.asarray(out[0], np.float64) - exact) <= rounding + left_out + floats)
    assert same_bits(out[0], out[1]) and same_bits(out[0], out[2])


def test_slices_that_are_zero_cost_no_product_and_change_no_bit() -> None:
    labels, y = np.arange(6, dtype=np.int32) % 4, cases.array(4, 5)

    def by_one_hot(labels: jax.Array, y: jax.Array, one: jax.Array) -> jax.Array:
        return ((labels[:, None] == lax.iota(np.int32, 4)[None]).astype(jnp.float32) * one) @ y

    def known(labels: jax.Array, y: jax.Array) -> jax.Array:
        return (labels[:, None] == lax.iota(np.int32, 4)[None]).astype(jnp.float32) @ y

    assert same_bits(run(known, labels, y), run(by_one_hot, labels, y, np.float32(1)))
    made = jax.make_jaxpr(lambda zero: portable(known, zero=zero)(labels, y))(np.int32(0))
    assert str(made).count("dot_general[") == 2
    made = jax.make_jaxpr(lambda zero: portable(by_one_hot, zero=zero)(labels, y, np.float32(1)))(np.int32(0))
    assert str(made).count("dot_general[") == 3


def test_long_sums_are_cut_into_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = cases.array(2, 100), cases.array(100, 3, seed=1)
    whole = run(jnp.dot, x, y, slices=3)
    monkeypatch.setattr(of_products, "BLOCK", 32)
    assert np.allclose(run(jnp.dot, x, y, slices=3), whole, rtol=1e-5, atol=1e-5)  # Four roundings of float32.


def test_products_of_any_dimensions_are_jax_s() -> None:
    x, y = cases.array(2, 3, 4, 5), cases.array(4, 2, 5, 3, seed=1)

    def all_of_them(x: jax.Array, y: jax.Array) -> list[jax.Array]:
        numbers = [(((2,), (0,)), ((), ())), (((3, 1), (2, 3)), ((), ())), (((3,), (2,)), ((0, 2), (1, 0)))]
        return [lax.dot_general(x, y, number) for number in numbers]

    for got, want in zip(run(all_of_them, x, y, slices=3), all_of_them(x, y), strict=True):
        assert np.allclose(got, want, rtol=0, atol=2e-5)  # 3 slices: 2^-22 of sums of up to 15 products of normals.


def test_convolutions_and_their_gradients_are_jax_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(of_products, "UNROLLED", 4)  # Both ways: side by side, and in a loop.
    x, w = cases.array(2, 6, 5, 4), cases.array(3, 2, 2, 6, seed=1)

    def value(x: jax.Array, w: jax.Array) -> jax.Array:
        out = lax.conv_general_dilated(
            x, w, (2, 1), ((1, 2), (0, 1)), (1, 2), (1, 2), ("NHWC", "HWIO", "NHWC"), feature_group_count=2
        )
        return jnp.sum(out * jnp.cos(lax.iota(jnp.float32, out.size)).reshape(out.shape))

    got = run(jax.value_and_grad(value, (0, 1)), x, w, slices=3)
    want = jax.value_and_grad(value, (0, 1))(x, w)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert np.allclose(a, b, rtol=0, atol=2e-5)  # As above.


def test_sums_into_one_place_are_those_of_the_updates_whatever_their_shape() -> None:
    x, updates = cases.array(4, 3), cases.array(6, 3, seed=1)
    places = np.asarray([2, 0, 2, 7, 2, 0], np.int32)

    def added(x: jax.Array, updates: jax.Array) -> Any:
        windows = lax.scatter_add(
            x.reshape(-1),
            np.asarray([[0], [1], [9]], np.int32),
            updates[:3],
            lax.ScatterDimensionNumbers((1,), (), (0,)),
        )
        return x.at[places].add(updates), x.at[places].set(updates), x.at[places].max(updates), windows

    got, want = run(added, x, updates), jax.jit(added)(x, updates)
    for a, b in zip(got, want, strict=True):
        assert np.allclose(a, b, rtol=0, atol=1e-6)  # Another order of three additions.


def test_orders_are_jax_s_with_nan_and_infinities() -> None:
    x = np.asarray([[3, np.nan, -1, np.inf], [-np.inf, 2, 2, -5]], np.float32)

    def orders(x: jax.Array) -> Any:
        return (
            *(jnp.max(x, 1), jnp.min(x, 1), jnp.argmax(x, 1), jnp.argmin(x, 1), jnp.sort(x, 1), jnp.argsort(x, 1)),
            *(lax.cummax(x, axis=1), jnp.sign(x), jnp.floor(x / 2), jnp.round(x / 2), jnp.clip(x, -2, 2.5)),
            *(lax.top_k(x[1], 2), x < 2, x >= 2, jnp.isfinite(x), lax.reduce_precision(x, 8, 7), x % 2),
            *(primitive.bind(x, x[:, ::-1]) for primitive in (lax.eq_to_p, lax.lt_to_p, lax.le_to_p)),
            lax.eq_to_p.bind(x, x),  # NaN equals NaN.
        )

    for got, want in zip(jax.tree.leaves(run(orders, x)), jax.tree.leaves(jax.jit(orders)(x)), strict=True):
        assert np.array_equal(got, want, equal_nan=got.dtype == np.float32)


ALL = {**cases.LAYERS, **dict.fromkeys(cases.OPTIMIZERS)}


@pytest.mark.parametrize("name", ALL)
def test_every_layer_and_every_optimizer_has_its_rules(name: str) -> None:
    """Traced only; the values of some are tested below."""
    function, args = ALL[name] or cases.optimized(name)
    out = jax.eval_shape(lambda zero, *args: portable(function, zero=zero)(*args), np.int32(0), *args)
    assert str(jax.tree.structure(out)) == str(jax.tree.structure(jax.eval_shape(function, *args)))


@pytest.fixture(scope="module")
def gelu_network() -> tuple[Any, Any, Any]:
    """A network's initialisation and gradient compiled, its function and arguments."""
    function, args = cases.LAYERS["Dense gelu"]
    whole = jax.jit(lambda zero, *args: portable(function, slices=3, zero=zero)(*args))
    return whole.lower(np.int32(0), *args).compile(compiler_options=FAST), function, args


def close(got: Any, want: Any) -> bool:
    """To 2^-20 of the largest: some ten roundings one after the other."""
    leaves = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    return all(
        np.allclose(a, b, rtol=0, atol=2.0**-20 * max(1e-6, np.nanmax(np.abs(b))), equal_nan=True) for a, b in leaves
    )


def test_a_network_s_values_are_jax_s(gelu_network: tuple[Any, Any, Any]) -> None:
    compiled, function, args = gelu_network
    assert close(compiled(np.int32(0), *args), plainly(function, *args))


def test_an_optimizer_s_values_are_jax_s() -> None:
    function, args = cases.optimized("adamw", updates=2)
    assert close(by_numpy(function, *args, slices=3), plainly(function, *args))


def test_schedules_are_jax_s_and_each_of_them_traces() -> None:
    steps = np.arange(12, dtype=np.int32)
    assert close(by_numpy(cases.scheduled, steps), plainly(cases.scheduled, steps))


ALLOWED = {
    *("add", "subtract", "multiply", "convert", "bitcast-convert", "select", "constant", "parameter", "broadcast"),
    *("reshape", "transpose", "slice", "concatenate", "pad", "copy", "bitcast", "tuple", "get-tuple-element", "while"),
    *("fusion", "call", "conditional", "dynamic-slice", "dynamic-update-slice", "gather", "reverse", "iota"),
    *("copy-start", "copy-done", "negate", "opt-barrier"),
}
"""Operations with float results: what moves bits, and + - * and conversions. Negation flips a bit."""


def float_operations(program: str) -> set[str]:
    """Of the optimised program, those with a float result; a comparison of floats as `compare`."""
    found = set(re.findall(r"= (?:f32|bf16|f16)\[[^ ]* ([a-z-]+)\(", program))
    floats = set(re.findall(r"(%[\w.-]+) = (?:f32|bf16|f16)\[", program))
    for left, right in re.findall(r" compare\((%[\w.-]+), (%[\w.-]+)\)", program):
        if {left, right} & floats:
            found.add("compare")
    return found


def test_the_compiled_step_has_no_float_operation_but_sums_products_and_conversions(
    gelu_network: tuple[Any, Any, Any],
) -> None:
    compiled, function, args = gelu_network
    assert float_operations(compiled.as_text()) <= ALLOWED
    plain = jax.jit(function).lower(*args).compile(compiler_options=FAST).as_text()
    assert float_operations(plain) - ALLOWED >= {"divide", "exponential"}


def test_the_list_of_flags_has_every_vector_width_and_level() -> None:
    flags = " ".join(setting.get("XLA_FLAGS", "") for setting in everywhere.SETTINGS.values())
    assert all(name in flags for name in ("SSE4_2", "AVX2", "AVX512", "level=0", "level=3", "fast_math"))
    assert os.path.exists(everywhere.DIGEST)


def test_of_branches_for_platforms_portable_takes_the_default_and_its_program_is_the_default() -> None:
    def tuned(x: Any) -> Any:
        return lax.platform_dependent(x, cpu=jnp.sin, tpu=jnp.cos, default=jnp.exp)

    assert same_bits(run(tuned, X), run(jnp.exp, X))
    assert same_bits(by_numpy(tuned, X), by_numpy(jnp.exp, X))
    assert text(tuned, X) == text(jnp.exp, X) != text(jnp.sin, X)
