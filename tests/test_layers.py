"""The layers' promises: products and their gradients in either precision, and masks of the wanted probability."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.random import threefry_2x32

from jaxmlp import layers, prng
from jaxmlp.prng import Stream, root_key, stream_key

ROWS, INPUTS = 24, 33
WIDTHS = pytest.mark.parametrize("features", [17, layers.FEW_FEATURES + 1])


def random_factors(dtype: str, features: int) -> list[np.ndarray]:
    """x, kernel, and the gradient of their product; values that `dtype` holds exactly."""
    rng = np.random.default_rng(0)
    shapes = [(ROWS, INPUTS), (INPUTS, features), (ROWS, features)]
    return [np.asarray(jnp.asarray(rng.normal(size=shape), dtype), np.float64) for shape in shapes]


@WIDTHS
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("as_elsewhere", [False, True])
def test_a_product_and_its_gradients_are_float32_sums_of_exact_factors(
    as_elsewhere: bool, dtype: str, features: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if as_elsewhere:
        monkeypatch.setattr(lax, "platform_dependent", lambda *values, cpu, default: default(*values))
    x, kernel, grads = random_factors(dtype, features)
    found, pull_back = jax.vjp(lambda x, kernel: layers.product(x, kernel, dtype), *map(jnp.float32, (x, kernel)))
    for given, expected in zip(
        [found, *pull_back(jnp.float32(grads))], [x @ kernel, grads @ kernel.T, x.T @ grads], strict=True
    ):
        assert given.dtype == jnp.float32
        # Up to 33 float32 roundings of sums below 32.
        np.testing.assert_allclose(given, expected, rtol=0, atol=33 * 32 * 2.0**-24)


def test_factors_are_rounded_to_the_precision_and_sums_are_not() -> None:
    x, kernel = jnp.float32([[1 + 2**-10, 1]]), jnp.float32([[256], [1]])
    assert layers.product(x, kernel, "float32").tolist() == [[257.25]]
    assert layers.product(x, kernel, "bfloat16").tolist() == [[257]]  # bfloat16 would make it 256 or 258.


@pytest.mark.parametrize("probability", [0.2, 0.5, 0.8, 2**-16])
def test_elements_are_true_with_the_probability_to_16_bits(probability: float) -> None:
    size = 1 << 20
    given = prng.bernoulli(stream_key(root_key(0), Stream.DROPOUT), probability, (size,))
    deviation = np.sqrt(probability * (1 - probability) / size)
    assert np.mean(given) == pytest.approx(round(probability * 2**16) / 2**16, abs=4 * deviation)


def test_no_two_elements_share_their_bits() -> None:
    """In the halves of the words, neighbours or far apart: the correlation of fair coins is that of chance."""
    coins = np.asarray(prng.bernoulli(stream_key(root_key(0), Stream.DROPOUT), 0.5, (4096,))) * 2.0 - 1
    for lag in (1, 2, 1024, 2048, 3072):
        assert abs(np.mean(coins * np.roll(coins, lag))) < 4 / np.sqrt(coins.size)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (5, 7), (2, 3, 4)])
def test_masks_have_any_shape(shape: tuple[int, ...]) -> None:
    given = prng.bernoulli(stream_key(root_key(0), Stream.DROPOUT), 0.5, shape)
    assert given.shape == shape
    assert given.dtype == jnp.bool_
    assert prng.bernoulli(stream_key(root_key(0), Stream.DROPOUT), 1.0, shape).all()
    assert not prng.bernoulli(stream_key(root_key(0), Stream.DROPOUT), 0.0, shape).any()


@pytest.mark.parametrize("shape", [(128, 12), (4, 1), (6, 7), (8, 3, 5)])
def test_masks_are_the_halves_of_threefry_s_words_in_order(shape: tuple[int, ...]) -> None:
    key, size = stream_key(root_key(0), Stream.DROPOUT), int(np.prod(shape))
    words = np.asarray(threefry_2x32(jax.random.key_data(key), jnp.arange(-(-size // 2), dtype=jnp.uint32)))
    halves = np.concatenate([words & 0xFFFF, words >> 16])[:size]
    given = jax.jit(prng.bernoulli, static_argnums=(1, 2))(key, 0.75, shape)
    np.testing.assert_array_equal(given, (halves < 0xC000).reshape(shape))


def test_the_devices_own_generator_has_the_probability_too() -> None:
    key = prng.of_the_device(stream_key(root_key(0), Stream.DROPOUT))
    assert np.mean(prng.bernoulli(key, 0.8, (1 << 16,))) == pytest.approx(0.8, abs=0.01)
    assert prng.bernoulli(key, 1.0, (64,)).all()
