"""Each augmentation does what it says to each image by itself, and draws the same on any number of devices."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import refused
from scipy import ndimage

from jaxmlp import MLP, ConfigError, CutOut, Elastic, ExperimentConfig, Noise, Rotate, Scale, Shift, data, shards, train
from jaxmlp.experiment.augmentations import sampled
from jaxmlp.experiment.parts import Batch
from jaxmlp.prng import Stream, root_key, stream_key
from jaxmlp.report.facts import DRAWS, PREVIEWED, preview

SIDE, COUNT = 21, 64


def applied(augmentation: Any, images: Any, seed: int = 0) -> np.ndarray[Any, Any]:
    images = jnp.asarray(images, jnp.float32)
    batch = Batch(images, jnp.zeros(len(images), jnp.int32), jnp.ones(len(images)))
    return np.asarray(augmentation(jax.random.key(seed), batch).inputs)


@pytest.fixture(scope="module")
def images() -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).uniform(size=(COUNT, SIDE, SIDE, 2)).astype(np.float32)


@pytest.mark.parametrize(
    "none", [Shift(pixels=0), Rotate(degrees=0), Scale(part=0), Elastic(pixels=0), Noise(size=0), CutOut(size=0)]
)
def test_an_augmentation_by_nothing_leaves_every_bit(none: Any, images: Any) -> None:
    np.testing.assert_array_equal(applied(none, images), images)


def test_pixels_come_from_their_places_by_bilinear_interpolation_and_are_zero_outside(images: Any) -> None:
    places = np.random.default_rng(1).uniform(-3, SIDE + 3, (2, COUNT, SIDE, SIDE)).astype(np.float32)
    batch = Batch(jnp.asarray(images), jnp.zeros(COUNT, jnp.int32), jnp.ones(COUNT))
    found = np.asarray(sampled(batch, jnp.asarray(places[0]), jnp.asarray(places[1])).inputs)
    for image, result, own in zip(images, found, places.swapaxes(0, 1), strict=True):
        for channel in range(2):
            # scipy cuts off at the border itself: a border of zeros gives the border's own pixels their neighbours.
            expected = ndimage.map_coordinates(np.pad(image[..., channel], 4), own + 4, order=1)
            np.testing.assert_allclose(result[..., channel], expected, atol=1e-5)


def test_a_shift_is_by_whole_pixels_each_way_alike(images: Any) -> None:
    moves = []
    for image, found in zip(images, applied(Shift(pixels=1), images), strict=True):
        padded = np.pad(image, ((1, 1), (1, 1), (0, 0)))
        moved = {(y, x): padded[1 - y : 1 - y + SIDE, 1 - x : 1 - x + SIDE] for y in (-1, 0, 1) for x in (-1, 0, 1)}
        moves += [move for move, expected in moved.items() if np.array_equal(found, expected)]
    assert len(moves) == COUNT
    assert len(set(moves)) == 9


def dot_at(row: float, column: float) -> np.ndarray[Any, Any]:
    """Images with one bright, soft dot."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    return np.broadcast_to(
        np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / 4)[None, ..., None], (COUNT, SIDE, SIDE, 1)
    )


def places_of(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Where each dot lies from the centre: [images, 2], down and right."""
    return np.array([ndimage.center_of_mass(image[..., 0]) for image in images]) - SIDE // 2


def test_a_rotation_turns_by_up_to_its_degrees_and_a_scale_changes_lengths_by_up_to_its_part() -> None:
    middle = SIDE // 2
    turned = places_of(applied(Rotate(degrees=30), dot_at(middle, middle + 5)))
    angles = np.degrees(np.arctan2(turned[:, 0], turned[:, 1]))
    np.testing.assert_allclose(np.hypot(*turned.T), 5, rtol=0.02)
    assert -30.5 < angles.min() < -25 and 25 < angles.max() < 30.5
    scaled = places_of(applied(Scale(part=0.4), dot_at(middle, middle + 5)))
    assert np.abs(scaled[:, 0]).max() < 0.02
    assert 2.9 < scaled[:, 1].min() < 3.3 and 6.7 < scaled[:, 1].max() < 7.1


def test_an_elastic_displacement_is_smooth_and_of_its_deviation() -> None:
    rows = np.broadcast_to(np.arange(40, dtype=np.float32)[None, :, None, None], (COUNT, 40, 40, 1))
    moved = (applied(Elastic(pixels=1.5, smoothness=3.0), rows) - rows)[:, 8:32, 8:32, 0]
    assert moved.std() == pytest.approx(1.5, rel=0.1)
    assert np.abs(np.diff(moved, axis=2)).mean() < 0.5


def test_noise_has_its_deviation_and_a_hole_its_size(images: Any) -> None:
    noise = applied(Noise(size=0.25), images) - images
    assert noise.std() == pytest.approx(0.25, rel=0.02)
    holes = (applied(CutOut(size=4), np.ones_like(images)) == 0)[..., 0]
    assert holes.sum(axis=(1, 2)).max() == 16
    for hole in holes:
        down, right = hole.any(1).sum(), hole.any(0).sum()
        assert hole.sum() == down * right and 1 <= min(down, right) <= max(down, right) <= 4


def test_inputs_that_are_no_images_are_refused() -> None:
    with refused(ConfigError, "augmentation"):
        applied(Rotate(), np.ones((4, 3), np.float32))


@pytest.mark.optimized
def test_augmentations_have_the_same_bits_on_1_and_4_devices_however_the_updates_are_grouped() -> None:
    config = ExperimentConfig(
        model=MLP(hidden_sizes=(8,)), augmentation=(Rotate(), CutOut()), batch_size=16, grad_shards=4
    )
    on_data = config.on_data(10, 3)
    rng = np.random.default_rng(0)
    split = train.DeviceSplit(rng.integers(0, 256, (40, 8, 8, 1), np.uint8), rng.integers(0, 10, 40, np.int32))
    order, found = train.epoch_order(on_data, jnp.int32(0), examples=40), []
    for devices, stops in ((1, (3,)), (4, (1, 3))):
        mesh = shards.make_mesh(jax.devices()[:devices])
        state = train.init_state(on_data, split.inputs[:1])
        sums = train.zero_sums(on_data, state, split)
        whole = shards.replicate((on_data, split, order), mesh)
        state, sums = shards.replicate((state, sums), mesh)
        for start, stop in zip((0, *stops), stops, strict=False):
            bounds = jnp.int32(start), jnp.int32(stop)
            state, sums, _ = train.train_steps(whole[0], state, sums, *whole[1:], *bounds, mesh=mesh)
        found.append(jax.device_get((state.params, sums)))
    for other in found[1:]:
        jax.tree.map(np.testing.assert_array_equal, found[0], other)


def test_the_reports_preview_shows_what_the_first_updates_would_make_of_training_images(small_dataset: Any) -> None:
    config = ExperimentConfig(augmentation=(Shift(), CutOut()), seed=3)
    found = preview(config, small_dataset)
    assert found is not None and found.shape == (1 + DRAWS, PREVIEWED, 28, 28, 1)
    pixels = small_dataset.train.inputs[:PREVIEWED].astype(np.float32) * np.float32(1 / 255)
    np.testing.assert_array_equal(found[0], pixels)
    key = stream_key(root_key(jnp.uint32(3)), Stream.AUGMENTATION, 1)
    batch = Batch(jnp.asarray(pixels), jnp.zeros(PREVIEWED, jnp.int32), jnp.ones(PREVIEWED))
    np.testing.assert_array_equal(found[2], train.augmented(config.on_data(10, 1), key, 0, batch).inputs)
    numbers = data.from_arrays((np.ones((8, 3)), [0, 1] * 4), (np.ones((8, 3)), [0, 1] * 4))
    assert preview(config, numbers) is None and preview(ExperimentConfig(), small_dataset) is None
