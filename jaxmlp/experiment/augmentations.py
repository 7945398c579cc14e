"""Which augmentations ship? Each changes every image at random, on the device.

Images are [batch, height, width, channels], scaled and float32. Outside an image all pixels are 0. A pixel at a
fractional position is interpolated from its four neighbours. No rule divides by a traced value that is broadcast: see
`losses`.
"""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from jaxmlp.errors import ConfigError
from jaxmlp.experiment.fields import ranged
from jaxmlp.experiment.parts import Augmentation, Batch


class Shift(Augmentation):
    """Shift each image by a random whole number of pixels, at most `pixels`, vertically and horizontally."""

    kind: ClassVar[str] = "shift"

    pixels: int = ranged(2, "[0, 1024]", traced=True)
    """Largest shift in each direction, in pixels."""

    def __call__(self, key: Key[Array, ""], batch: Batch) -> Batch:
        """The shifted images."""
        rows, columns = _grid(batch)
        by = jax.random.randint(key, (2, rows.shape[0], 1, 1), -self.pixels, self.pixels + 1).astype(jnp.float32)
        return sampled(batch, rows - by[0], columns - by[1])


class Rotate(Augmentation):
    """Rotate each image about its centre by a random angle of at most `degrees`, in either direction."""

    kind: ClassVar[str] = "rotate"

    degrees: float = ranged(10.0, "[0, 180]", traced=True)
    """Largest angle, in degrees."""

    def __call__(self, key: Key[Array, ""], batch: Batch) -> Batch:
        """The rotated images."""
        rows, columns = _grid(batch)
        angle = jax.random.uniform(key, (rows.shape[0], 1, 1), minval=-1, maxval=1) * (self.degrees * (np.pi / 180))
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        down, right = ((side - 1) / 2 for side in rows.shape[1:])
        rows, columns = rows - down, columns - right
        return sampled(batch, cos * rows - sin * columns + down, sin * rows + cos * columns + right)


class Scale(Augmentation):
    """Scale each image about its centre by a random factor in [1 - part, 1 + part]."""

    kind: ClassVar[str] = "scale"

    part: float = ranged(0.1, "[0, 1)", traced=True)
    """Largest relative change of a length."""

    def __call__(self, key: Key[Array, ""], batch: Batch) -> Batch:
        """The scaled images."""
        rows, columns = _grid(batch)
        factor = 1 + self.part * jax.random.uniform(key, (rows.shape[0], 1, 1), minval=-1, maxval=1)
        inverse = 1 / factor
        down, right = ((side - 1) / 2 for side in rows.shape[1:])
        return sampled(batch, (rows - down) * inverse + down, (columns - right) * inverse + right)


class Elastic(Augmentation):
    """Move each pixel by a small displacement that varies smoothly over the image. Source: Simard et al. 2003.

    Displacements are normal noise, smoothed by a Gaussian and scaled to the standard deviation `pixels`.
    """

    kind: ClassVar[str] = "elastic"

    pixels: float = ranged(1.5, "[0, inf)", traced=True)
    """Standard deviation of the displacement along each axis, in pixels."""
    smoothness: float = ranged(4.0, "(0, inf)")
    """Standard deviation of the smoothing Gaussian, in pixels."""

    def __call__(self, key: Key[Array, ""], batch: Batch) -> Batch:
        """The distorted images."""
        rows, columns = _grid(batch)
        noise = jax.random.normal(key, (2, *rows.shape))
        smooth = [jnp.asarray(gaussian(side, self.smoothness)) for side in rows.shape[1:]]
        moved = self.pixels * jnp.einsum("hi,dbij,wj->dbhw", smooth[0], noise, smooth[1])
        return sampled(batch, rows + moved[0], columns + moved[1])


class Noise(Augmentation):
    """Add normal noise to each number of the inputs."""

    kind: ClassVar[str] = "noise"

    size: float = ranged(0.1, "[0, inf)", traced=True)
    """Standard deviation of the noise. Scaled pixels are 0 to 1."""

    def __call__(self, key: Key[Array, ""], batch: Batch) -> Batch:
        """The inputs with noise."""
        images = _images(batch)
        return batch._replace(inputs=images + self.size * jax.random.normal(key, images.shape))


class CutOut(Augmentation):
    """Set a random square of each image to 0. It may extend over the border. Source: DeVries and Taylor 2017."""

    kind: ClassVar[str] = "cut_out"

    size: int = ranged(8, "[0, 1024]", traced=True)
    """Side of the square, in pixels."""

    def __call__(self, key: Key[Array, ""], batch: Batch) -> Batch:
        """The images with the squares cut out."""
        rows, columns = _grid(batch)
        sides = jnp.asarray(rows.shape[1:], jnp.float32).reshape(2, 1, 1, 1)
        centre = jnp.floor(jax.random.uniform(key, (2, rows.shape[0], 1, 1)) * sides)
        half = jnp.float32(self.size) * 0.5
        # Pixels whose centres lie in [centre - half, centre + half): exactly `size` of them along each axis.
        inside = [(-half <= at - own) & (at - own < half) for at, own in ((rows, centre[0]), (columns, centre[1]))]
        return batch._replace(inputs=jnp.where((inside[0] & inside[1])[..., None], 0.0, _images(batch)))


def _images(batch: Batch) -> Float[Array, "batch height width channels"]:
    if not isinstance(batch.inputs, jax.Array | np.ndarray) or batch.inputs.ndim != 4:
        raise ConfigError(
            "augmentation", "must fit the data: this augmentation needs images [batch, height, width, channels]"
        )
    return jnp.asarray(batch.inputs)


def _grid(batch: Batch) -> tuple[Float[Array, "batch height width"], Float[Array, "batch height width"]]:
    """Row and column of each pixel."""
    shape = _images(batch).shape[:3]
    rows, columns = (jax.lax.broadcasted_iota(jnp.float32, shape, axis) for axis in (1, 2))
    return rows, columns


def sampled(batch: Batch, rows: Float[Array, "batch height width"], columns: Float[Array, "..."]) -> Batch:
    """Images that take each pixel from the given position of `batch`, by bilinear interpolation."""
    images = _images(batch)
    count, height, width, channels = images.shape
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0))).reshape(count, -1, channels)
    top, left = jnp.floor(rows), jnp.floor(columns)
    down, right = (rows - top)[..., None], (columns - left)[..., None]

    def at(row: Float[Array, "..."], column: Float[Array, "..."]) -> Float[Array, "batch height width channels"]:
        # Every position outside the image maps to the border of zeros.
        row, column = jnp.clip(row, -1, height) + 1, jnp.clip(column, -1, width) + 1
        places = (row * (width + 2) + column).astype(jnp.int32).reshape(count, -1, 1)
        return jnp.take_along_axis(padded, places, axis=1).reshape(images.shape)

    upper = at(top, left) * (1 - right) + at(top, left + 1) * right
    lower = at(top + 1, left) * (1 - right) + at(top + 1, left + 1) * right
    return batch._replace(inputs=upper * (1 - down) + lower * down)


def gaussian(side: int, deviation: float) -> Float[np.ndarray, "side side"]:
    """Matrix that smooths normal noise along one axis and keeps its standard deviation at 1."""
    apart = np.subtract.outer(np.arange(side), np.arange(side))
    weights = np.exp(-(apart**2) / (2 * deviation**2))
    return np.asarray(weights / np.sqrt((weights**2).sum(axis=1, keepdims=True)), np.float32)
