"""A summary counts what a network really has, and what a step of it really multiplies."""

from __future__ import annotations

import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from refusals import assert_names

from jaxmlp import MLP, SGD, DataConfig, ExperimentConfig, MeanAbsoluteError, MeanSquaredError, data, train
from jaxmlp.engine.network import MNIST, Layer, facts_of, summary

RELU = ExperimentConfig(name="relu_rmsprop")
KERAS_TABLE = """\
Model: "relu_rmsprop"
_________________________________________________________________
Layer (type)                 Output Shape              Param #
=================================================================
Dense_0 (Dense)              (None, 512)               401920
_________________________________________________________________
Dropout_0 (Dropout)          (None, 512)               0
_________________________________________________________________
Dense_1 (Dense)              (None, 512)               262656
_________________________________________________________________
Dropout_1 (Dropout)          (None, 512)               0
_________________________________________________________________
Dense_2 (Dense)              (None, 10)                5130
=================================================================
Total params: 669,706
Trainable params: 669,706
Non-trainable params: 0
_________________________________________________________________
"""


class Convolutions(nn.Module):
    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = nn.Conv(4, (3, 3), strides=2)(images)
        x = nn.Sequential([nn.Conv(8, (3, 3)), nn.relu])(x)
        return nn.Dense(10)(x.reshape(x.shape[0], -1)) + self.param("shift", nn.initializers.zeros, (1, 10))


class Block(nn.Module):
    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        return nn.relu(nn.Conv(4, (3, 3), padding="VALID")(images))


class OneBlock(nn.Module):
    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = Block()(images)
        return nn.Dense(10)(x.reshape(x.shape[0], -1))


class Rows(nn.Module):
    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        rows: Any = nn.RNN(nn.LSTMCell(16))(images[..., 0])
        return nn.Dense(10)(rows[:, -1])


class Normalised(nn.Module):
    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        return nn.Dense(10)(nn.BatchNorm(use_running_average=not train)(images.reshape(images.shape[0], -1)))


def products(config: ExperimentConfig) -> int:
    """FLOPs of an MLP's update: forward, weight gradients, and the gradients of all but the first layer's inputs."""
    assert isinstance(config.model, MLP)
    sizes = [784, *config.model.hidden_sizes, 10]
    pairs = [a * b for a, b in itertools.pairwise(sizes)]
    return 2 * config.batch_size * (2 * sum(pairs) + sum(pairs[1:]))


def test_the_table_is_the_one_that_keras_prints() -> None:
    assert str(summary(RELU)).startswith(KERAS_TABLE)


@pytest.mark.parametrize("grad_shards", [1, 4])
@pytest.mark.parametrize("hidden_sizes", [(), (5,), (512, 512)])
def test_flops_are_those_of_the_products_of_an_update(hidden_sizes: tuple[int, ...], grad_shards: int) -> None:
    config = ExperimentConfig(model=MLP(hidden_sizes=hidden_sizes), batch_size=32, grad_shards=grad_shards)
    assert summary(config).flops_per_step == products(config)


def test_flops_and_activations_of_a_convolution_inside_another_module() -> None:
    found = summary(ExperimentConfig(batch_size=2, model=OneBlock()))
    convolution, dense = 26 * 26 * 4 * 3 * 3, 26 * 26 * 4 * 10
    # Forward and the weights' gradients; the first layer's input has none.
    assert found.flops_per_step == 2 * 2 * (2 * convolution + 3 * dense)
    assert found.activations_bytes == 4 * 2 * (26 * 26 * 4 + 10)
    assert found.layers[0] == Layer("Block_0", "Block", (26, 26, 4), 3 * 3 * 4 + 4)


def test_flops_of_a_loop_count_every_pass() -> None:
    found = summary(ExperimentConfig(batch_size=8, model=Rows()))
    # A gate's products of input and state for each of 28 rows: forward, weight gradients, and the state's gradient.
    cell = 4 * 16 * (28 + 16) * 2 + 4 * 16 * 16
    dense = 10 * 16 * 3
    assert found.flops_per_step == pytest.approx(2 * 8 * (28 * cell + dense), rel=0.02)  # the first state is zero


def test_bytes_are_those_of_the_arrays_themselves() -> None:
    config = ExperimentConfig(model=MLP(hidden_sizes=(7,)), optimizer=SGD(momentum=0.9), batch_size=4)
    found = summary(config)
    state = train.init_state(config.on_data(10, 1), MNIST.zeros(1).inputs)
    assert found.params_bytes == sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))
    assert found.opt_state_bytes == sum(leaf.nbytes for leaf in jax.tree.leaves(state.opt_state))
    assert found.activations_bytes == 4 * 4 * (7 + 7 + 10)
    half = summary(ExperimentConfig(model=config.model, batch_size=4, precision="bfloat16"))
    assert (half.params_bytes, half.activations_bytes) == (found.params_bytes, found.activations_bytes)


def test_nothing_is_allocated_however_large_the_batch() -> None:
    config = ExperimentConfig(batch_size=1 << 24)  # 53 GB of pixels as float32.
    assert summary(config).flops_per_step == products(config)


def test_any_module_is_summarised_with_all_its_parameters() -> None:
    module = Convolutions()
    found = summary(ExperimentConfig(batch_size=2, model=module))
    params = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 28, 28, 1)))["params"]
    assert found.params == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert sum(layer.params for layer in found.layers) == found.params
    assert found.layers[0] == Layer("Conv_0", "Conv", (14, 14, 4), 3 * 3 * 4 + 4)
    assert [layer.name for layer in found.layers] == ["Conv_0", "Sequential_0", "Conv_1", "Dense_0", "(its own)"]


def test_what_a_module_keeps_beside_its_parameters_is_counted_apart() -> None:
    found = summary(ExperimentConfig(model=Normalised()))
    assert (found.params, found.variables) == (2 * 784 + 784 * 10 + 10, 2 * 784)
    assert found.layers[0] == Layer("BatchNorm_0", "BatchNorm", (784,), 4 * 784)
    assert_names(str(found), "10,986", "9,418", "1,568")


def test_examples_need_not_be_images() -> None:
    facts = data.Facts(data.ArrayFacts("float32", (5,)), data.ArrayFacts("float32", ()), 1)
    config = ExperimentConfig(model=MLP(hidden_sizes=(3,)), loss=MeanSquaredError(), metrics=MeanAbsoluteError())
    assert summary(config, facts).params == 5 * 3 + 3 + 3 + 1


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "mnist_5k"])
def test_the_shape_of_an_example_is_known_without_a_download(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAXMLP_MANUAL_DIR", raising=False)
    assert facts_of(DataConfig(name=name)) == MNIST
