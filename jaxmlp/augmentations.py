"""The augmentations that ship: random changes of images, on the device, of each image by itself.

Images are [batch, height, width, channels], scaled and float32. What comes from outside of an image is 0. A new
position of a pixel is interpolated from its four neighbours. No division is by a traced value that is broadcast: see
`losses`.
"""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from jaxmlp.errors import ConfigError
from jaxmlp.fields import ranged
from jaxmlp.parts import Augmentation, Batch


class Shift(Augmentation):
    """Each image is moved by a whole number of pixels, up to `pixels`, down or up and right or left."""

    kind: ClassVar[str] = "shift"

    pixels: int = ranged(2, "[0, 1024]", traced=True)
    """Most pixels in each direction."""

    def __call__(self, key: Key[Array, ""], batch: Batch) -> Batch:
        """The moved images."""
        rows, columns = _grid(batch)
        by = jax.random.randint(key, (2, rows.shape[0], 1, 1), -self.pixels, self.pixels + 1).astype(jnp.float32)
        return _sampled(batch, rows - by[0], columns - by[1])


class Rotate(Augmentation):
    """Each image is turned about its centre by an angle of up to `degrees`, either way."""

    kind: ClassVar[str] = "rotate"

    degrees: float = ranged(10.0, "[0, 180]", traced=True)
    """Largest angle."""

    def __call__(self, key: Key[Array, ""], batch: Batch) -> Batch:
        """The turned images."""
        rows, columns = _grid(batch)
        angle = jax.random.uniform(key, (rows.shape[0], 1, 1), minval=-1, maxval=1) * (self.degrees * (np.pi / 180))
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        down, right = ((side - 1) / 2 for side in rows.shape[1:])
        rows, columns = rows - down, columns - right
        return _sampled(batch, cos * rows - sin * columns + down, sin * rows + cos * columns + right)


class Scale(Augmentation):
    """Each image is enlarged or shrunk about its centre, by a factor in [1 - part, 1 + part]."""

    kind: ClassVar[str] = "scale"

    part: float = ranged(0.1, "[0, 1)", traced=True)
    """Largest change of a length."""

    def __call__(self, key: Key[Array, ""], batch: Batch) -> Batch:
        """The scaled images."""
        rows, columns = _grid(batch)
        factor = 1 + self.part * jax.random.uniform(key, (rows.shape[0], 1, 1), minval=-1, maxval=1)
        inverse = 1 / factor
        down, right = ((side - 1) / 2 for side in rows.shape[1:])
        return _sampled(batch, (rows - down) * inverse + down, (columns - right) * inverse + right)


class Elastic(Augmentation):
    """Each pixel comes from a place nearby, which differs smoothly over the image. Source: Simard et al. 2003.

    Displacements are normal noise, smoothed by a Gaussian and scaled to the standard deviation `pixels`.
    """

    kind: ClassVar[str] = "elastic"

    pixels: float = ranged(1.5, "[0, inf)", traced=True)
    """Standard deviation of a displacement, down and right each."""
    smoothness: float = ranged(4.0, "(0, inf)")
    """Standard deviation of the Gaussian, in pixels."""

    def __call__(self, key: Key[Array, ""], batch: Batch) -> Batch:
        """The distorted images."""
        rows, columns = _grid(batch)
        noise = jax.random.normal(key, (2, *rows.shape))
        smooth = [jnp.asarray(_gaussian(side, self.smoothness)) for side in rows.shape[1:]]
        moved = self.pixels * jnp.einsum("hi,dbij,wj->dbhw", smooth[0], noise, smooth[1])
        return _sampled(batch, rows + moved[0], columns + moved[1])


class Noise(Augmentation):
    """Normal noise is added to each number of the inputs."""

    kind: ClassVar[str] = "noise"

    size: float = ranged(0.1, "[0, inf)", traced=True)
    """Its standard deviation; scaled pixels are 0 to 1."""

    def __call__(self, key: Key[Array, ""], batch: Batch) -> Batch:
        """The inputs with noise."""
        images = _images(batch)
        return batch._replace(inputs=images + self.size * jax.random.normal(key, images.shape))


class CutOut(Augmentation):
    """A square of each image, which may reach over its border, is set to 0. Source: DeVries and Taylor 2017."""

    kind: ClassVar[str] = "cut_out"

    size: int = ranged(8, "[0, 1024]", traced=True)
    """Pixels of its side."""

    def __call__(self, key: Key[Array, ""], batch: Batch) -> Batch:
        """The images with holes."""
        rows, columns = _grid(batch)
        sides = jnp.asarray(rows.shape[1:], jnp.float32).reshape(2, 1, 1, 1)
        centre = jnp.floor(jax.random.uniform(key, (2, rows.shape[0], 1, 1)) * sides)
        half = jnp.float32(self.size) * 0.5
        # The pixels whose centres lie in [centre - half, centre + half): as many as the side is long.
        inside = [(-half <= at - own) & (at - own < half) for at, own in ((rows, centre[0]), (columns, centre[1]))]
        return batch._replace(inputs=jnp.where((inside[0] & inside[1])[..., None], 0.0, _images(batch)))


def _images(batch: Batch) -> Float[Array, "batch height width channels"]:
    if not isinstance(batch.inputs, jax.Array | np.ndarray) or batch.inputs.ndim != 4:
        raise ConfigError("augmentation", "must fit the data: this one changes images, and the inputs are none")
    return jnp.asarray(batch.inputs)


def _grid(batch: Batch) -> tuple[Float[Array, "batch height width"], Float[Array, "batch height width"]]:
    """The row and the column of each pixel."""
    shape = _images(batch).shape[:3]
    rows, columns = (jax.lax.broadcasted_iota(jnp.float32, shape, axis) for axis in (1, 2))
    return rows, columns


def _sampled(batch: Batch, rows: Float[Array, "batch height width"], columns: Float[Array, "..."]) -> Batch:
    """The images whose pixels come from these places of the given ones, by bilinear interpolation."""
    images = _images(batch)
    count, height, width, channels = images.shape
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0))).reshape(count, -1, channels)
    top, left = jnp.floor(rows), jnp.floor(columns)
    down, right = (rows - top)[..., None], (columns - left)[..., None]

    def at(row: Float[Array, "..."], column: Float[Array, "..."]) -> Float[Array, "batch height width channels"]:
        # All places outside of the image are in its border of zeros.
        row, column = jnp.clip(row, -1, height) + 1, jnp.clip(column, -1, width) + 1
        places = (row * (width + 2) + column).astype(jnp.int32).reshape(count, -1, 1)
        return jnp.take_along_axis(padded, places, axis=1).reshape(images.shape)

    upper = at(top, left) * (1 - right) + at(top, left + 1) * right
    lower = at(top + 1, left) * (1 - right) + at(top + 1, left + 1) * right
    return batch._replace(inputs=upper * (1 - down) + lower * down)


def _gaussian(side: int, deviation: float) -> Float[np.ndarray, "side side"]:
    """Weights that smooth normal noise of `side` pixels, and leave its standard deviation 1 at each of them."""
    apart = np.subtract.outer(np.arange(side), np.arange(side))
    weights = np.exp(-(apart**2) / (2 * deviation**2))
    return np.asarray(weights / np.sqrt((weights**2).sum(axis=1, keepdims=True)), np.float32)
