"""The MLP's shapes, sizes, initial values, dropout and precision."""

from __future__ import annotations

import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import keras_reference as keras
import numpy as np
import pytest

from jaxmlp import modules
from jaxmlp.experiment.config import ExperimentConfig
from jaxmlp.experiment.mlp import MLP
from jaxmlp.layers import Dropout
from jaxmlp.prng import Stream, root_key, stream_key
from jaxmlp.train import init_state

RELU = MLP()
TANH = MLP(hidden_sizes=(500, 500), activation="tanh", dropout_rate=0.5)
IMAGE = (28, 28, 1)
RNG = np.random.default_rng(0)


def init(model: MLP, seed: int = 0, precision: Any = "float32") -> tuple[nn.Module, Any]:
    config = ExperimentConfig(model=model, seed=seed, precision=precision).on_data(10, 1)
    return config.module(), init_state(config, np.zeros((1, *IMAGE), np.uint8)).params


def dropout_key(seed: int = 0) -> jax.Array:
    return stream_key(root_key(seed), Stream.DROPOUT)


def apply_eval(module: nn.Module, params: Any, images: jax.Array) -> jax.Array:
    return modules.apply_eval(module, params, {}, images)


def apply_train(module: nn.Module, params: Any, images: jax.Array, key: jax.Array) -> jax.Array:
    return modules.apply_train(module, params, {}, images, key)[0]


def random_images(count: int = 16) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).uniform(size=(count, *IMAGE)), jnp.float32)


@pytest.mark.parametrize(
    ("config", "expected"),
    [(RELU, 669_706), (TANH, 648_010), (MLP(hidden_sizes=()), 7_850)],
    ids=["relu", "tanh", "linear"],
)
def test_the_parameters_are_as_many_as_kerass_summary_says(config: MLP, expected: int) -> None:
    assert modules.num_params(init(config)[1]) == expected


@pytest.mark.parametrize("config", [RELU, TANH], ids=["relu", "tanh"])
def test_kernels_start_glorot_uniform_and_biases_at_zero(config: MLP) -> None:
    sizes = [784, *config.hidden_sizes, 10]
    params = init(config)[1]
    assert len(params) == len(sizes) - 1
    for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        kernel, bias = params[f"Dense_{layer}"]["kernel"], params[f"Dense_{layer}"]["bias"]
        limit = keras.glorot_uniform_limit(fan_in, fan_out)
        assert kernel.shape == (fan_in, fan_out) and kernel.dtype == bias.dtype == jnp.float32
        # Of n uniform draws, the largest is within 0.3 % of the limit but for a chance of exp(-0.003 n), n >= 5,000.
        assert 0.997 * limit < float(jnp.max(jnp.abs(kernel))) <= limit * (1 + 1e-6)
        # Five standard errors, 1 / sqrt(n) and 0.45 / sqrt(n) of the standard deviation.
        deviation = limit / np.sqrt(3)
        assert abs(float(jnp.mean(kernel))) < 5 * deviation / np.sqrt(kernel.size)
        assert float(jnp.std(kernel)) == pytest.approx(deviation, rel=5 * 0.45 / np.sqrt(kernel.size))
        assert not np.any(bias)


SCALES = {"glorot": (1.0, "both"), "he": (2.0, "in"), "lecun": (1.0, "in")}


@pytest.mark.parametrize("distribution", ["uniform", "normal"])
@pytest.mark.parametrize("family", SCALES)
def test_every_initializer_has_its_variance(family: str, distribution: str) -> None:
    """Source: keras/initializers.py, `VarianceScaling`; its normal is cut at two deviations and widened for it."""
    config = MLP(hidden_sizes=(300,), kernel_init=f"{family}_{distribution}")
    kernel = init(config)[1]["Dense_0"]["kernel"]
    scale, fans = SCALES[family]
    variance = scale / ((784 + 300) / 2 if fans == "both" else 784)
    # Five standard errors of a standard deviation: at most 0.71 / sqrt(n) of it.
    assert float(jnp.std(kernel)) == pytest.approx(np.sqrt(variance), rel=5 * 0.71 / np.sqrt(kernel.size))
    bound = {"uniform": np.sqrt(3), "normal": 2 / 0.87962566103423978}[distribution] * np.sqrt(variance)
    assert 0.98 * bound < float(jnp.max(jnp.abs(kernel))) <= bound * (1 + 1e-6)


def test_every_layer_and_seed_draws_its_own_kernel() -> None:
    config = MLP(hidden_sizes=(50, 50, 50))
    kernels = [init(config, seed)[1][layer]["kernel"] for seed in (0, 1) for layer in ("Dense_1", "Dense_2")]
    assert len({kernel.tobytes() for kernel in map(np.asarray, kernels)}) == 4


def dropouts(module: nn.Module, params: Any, images: jax.Array, *, train: bool, seed: int = 0) -> list[keras.Array]:
    """What each dropout layer gives on."""
    _, captured = module.apply(
        {"params": params},
        images,
        train=train,
        rngs={"dropout": dropout_key(seed)},
        capture_intermediates=lambda layer, _: isinstance(layer, Dropout),
    )
    layers = captured["intermediates"]
    return [np.asarray(layers[name]["__call__"][0]) for name in sorted(layers)]


@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_dropout_drops_the_rate_and_divides_what_is_kept_by_the_rest(rate: float) -> None:
    module, params = init(MLP(hidden_sizes=(500, 500), activation="sigmoid", dropout_rate=rate))
    images = random_images(200)
    whole = dropouts(module, params, images, train=False)[0]
    first, second = dropouts(module, params, images, train=True)
    for given in (first, second):
        # A sigmoid is never zero. Five standard errors of a fraction of 100,000 units.
        assert np.mean(given == 0) == pytest.approx(rate, abs=5 * np.sqrt(rate * (1 - rate) / given.size))
    np.testing.assert_allclose(first, keras.dropout(whole, first != 0, rate), rtol=3e-7)  # Two roundings.
    assert np.any((first == 0) != (second == 0))


def test_dropout_is_the_identity_in_evaluation_and_at_rate_zero() -> None:
    module, params = init(MLP(dropout_rate=0.5))
    images = random_images()
    still = module.clone(dropout_rate=0.0)
    expected = apply_eval(still, params, images)
    np.testing.assert_array_equal(apply_eval(module, params, images), expected)
    np.testing.assert_array_equal(apply_train(still, params, images, dropout_key()), expected)


def test_masks_come_from_the_key_alone() -> None:
    module, params = init(RELU)
    images = random_images()
    logits = [apply_train(module, params, images, dropout_key(seed)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(logits[0], logits[1])
    assert np.any(logits[0] != logits[2])


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_the_logits_are_those_of_dense_activation_dense(activation: str) -> None:
    module, params = init(MLP(hidden_sizes=(30, 20), activation=activation))
    exact = jax.tree.map(np.float64, params)
    x = np.asarray(random_images(), np.float64).reshape(16, -1)
    for layer in ("Dense_0", "Dense_1"):
        x = keras.ACTIVATIONS[activation][0](x @ exact[layer]["kernel"] + exact[layer]["bias"])
    expected = x @ exact["Dense_2"]["kernel"] + exact["Dense_2"]["bias"]
    with jax.default_matmul_precision("highest"):  # As `runtime.configure` has it; a GPU's own is TensorFloat-32.
        found = apply_eval(module, params, random_images())
    np.testing.assert_allclose(found, expected, atol=5e-6)  # Float32 sums of 784 terms of about 0.03.


def test_bfloat16_keeps_float32_parameters_and_gives_float32_logits() -> None:
    whole, params = init(RELU)
    half, half_params = init(RELU, precision="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(half_params)} == {jnp.dtype("float32")}
    jax.tree.map(np.testing.assert_array_equal, half_params, params)
    images = random_images()
    logits, half_logits = apply_eval(whole, params, images), apply_eval(half, params, images)
    direct: Any = half.apply({"params": params}, images)
    assert logits.dtype == half_logits.dtype == direct.dtype == jnp.float32
    assert np.any(logits != half_logits)
    # Bfloat16 keeps 8 bits: 0.4 % a rounding of activations, kernels and products; the logits are of size 1.
    np.testing.assert_allclose(half_logits, logits, atol=0.03)


def test_bfloat16_gives_float32_gradients() -> None:
    module, params = init(MLP(hidden_sizes=(20,)), precision="bfloat16")
    grads = jax.grad(lambda params: jnp.sum(jnp.square(apply_eval(module, params, random_images()))))(params)
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype("float32")}


def test_batch_norm_stands_between_a_layer_and_its_activation_with_running_means_in_evaluation() -> None:
    config = ExperimentConfig(model=MLP(hidden_sizes=(5,), batch_norm=True, dropout_rate=0.0))
    assert config.to_dict()["model"]["batch_norm"] is True and "batch_norm" not in ExperimentConfig().to_dict()["model"]
    on_data, images = config.on_data(10, 1), random_images()
    state, flat = init_state(on_data, np.zeros((1, *IMAGE), np.uint8)), np.asarray(images).reshape(16, -1)
    module, params = (
        on_data.module(),
        jax.tree.map(lambda leaf: np.asarray(leaf) + RNG.normal(0, 0.1, leaf.shape).astype(np.float32), state.params),
    )
    hidden = flat @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]

    def expected(mean: Any, variance: Any) -> Any:
        norm = params["BatchNorm_0"]
        normed = (hidden - mean) / np.sqrt(variance + 0.001) * norm["scale"] + norm["bias"]
        return np.maximum(normed, 0) @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"]

    trained, updated = modules.apply_train(module, params, state.variables, images, dropout_key())
    np.testing.assert_allclose(trained, expected(hidden.mean(axis=0), hidden.var(axis=0)), rtol=1e-4, atol=1e-4)
    own = jax.device_get(updated)["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(own["mean"], 0.01 * hidden.mean(axis=0), rtol=1e-4)
    found = modules.apply_eval(module, params, updated, images)
    np.testing.assert_allclose(found, expected(own["mean"], own["var"]), rtol=1e-4, atol=1e-4)
