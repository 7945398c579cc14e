"""Does this machine compute products, sums, conversions, roundings and random bits as integers say?

Each probe runs in plain `jax.numpy` and in portable arithmetic. Its right answer is computed with integers, or
published.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.random import threefry_2x32

from jaxmlp.portable import portable
from jaxmlp.proof.blame import shown


class WrongAnswer(NamedTuple):
    """A probe's first wrong value."""

    probe: str
    arithmetic: str
    """jnp, or portable."""
    at: tuple[int, ...]
    right: str
    here: str

    def __str__(self) -> str:
        return f"{self.probe} in {self.arithmetic}: {self.here} at {list(self.at)}, right is {self.right}"


class Probe(NamedTuple):
    """A function, its arguments, and the right result."""

    function: Callable[..., Any]
    arguments: tuple[np.ndarray, ...]
    right: np.ndarray


def _rounded(whole: np.ndarray) -> np.ndarray:
    """Integers rounded to float32, to nearest, ties to even, using only integers."""
    size = np.abs(whole)
    cut = np.maximum(0, np.asarray([int(each).bit_length() for each in size.flat]).reshape(size.shape) - 24)
    half = (np.int64(1) << cut) >> 1
    odd = (size >> cut) & 1
    fraction = (size + np.where(cut > 0, half - 1 + odd, 0)) >> cut
    # The fraction is at most 2^24, so its conversion is exact, and so is the power of two.
    return (np.sign(whole) * fraction).astype(np.float32) * np.exp2(cut).astype(np.float32)


def probes() -> dict[str, Probe]:
    """All probes, by name."""
    rng = np.random.default_rng(17)
    whole = rng.integers(-(2**24), 2**24, (3, 4096))
    x, y = whole[0], whole[1]
    left, other = rng.integers(-8, 9, (64, 96)), rng.integers(-8, 9, (96, 80))
    bytes_left, bytes_other = rng.integers(-128, 128, (32, 784)), rng.integers(-128, 128, (784, 48))
    small = rng.integers(-1000, 1001, 5001)
    wide = rng.integers(-(2**31), 2**31, 4096)
    halves = rng.integers(-(2**20), 2**20, 4096)
    # Source: the known answers of Random123, threefry2x32 with 20 rounds; columns are keys, counters, words.
    known = np.asarray([
        [0x00000000, 0x00000000, 0x00000000, 0x00000000, 0x6B200159, 0x99BA4EFE],
        [0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0x1CB996FC, 0xBB002BE7],
        [0x13198A2E, 0x03707344, 0x243F6A88, 0x85A308D3, 0xC4923A9C, 0x483DF7A0],
    ], np.uint32)  # fmt: skip

    def float32(*values: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(value.astype(np.float32) for value in values)

    def blocks(keys: Any, counts: Any) -> Any:
        return jnp.stack([threefry_2x32(keys[i], counts[i]) for i in range(len(known))])

    def whole_product(x: Any, y: Any) -> Any:
        return lax.dot(x, y, preferred_element_type=jnp.int32)

    return {
        "products of two float32": Probe(lambda x, y: x * y, float32(x, y), _rounded(x * y)),
        "sums of two float32": Probe(lambda x, y: x + y * 64, float32(x, y), _rounded(x + y * 64)),
        "differences of two float32": Probe(lambda x, y: x * 64 - y, float32(x, y), _rounded(x * 64 - y)),
        "products of float32 matrices": Probe(lambda x, y: x @ y, float32(left, other), _rounded(left @ other)),
        "products of int8 matrices": Probe(
            whole_product,
            (bytes_left.astype(np.int8), bytes_other.astype(np.int8)),
            (bytes_left @ bytes_other).astype(np.int32),
        ),
        "sums of many float32": Probe(jnp.sum, float32(small), _rounded(np.asarray(small.sum()))),
        "conversions of int32 to float32": Probe(
            lambda x: x.astype(jnp.float32), (wide.astype(np.int32),), _rounded(wide)
        ),
        "conversions of float32 to int32": Probe(
            lambda x: x.astype(jnp.int32),
            (halves.astype(np.float32) / 8,),
            (np.sign(halves) * (np.abs(halves) // 8)).astype(np.int32),
        ),
        "roundings to whole numbers": Probe(
            jnp.round, (halves.astype(np.float32) / 2,), _rounded((halves + (halves >> 1 & halves & 1)) >> 1)
        ),
        "threefry": Probe(blocks, (known[:, :2], known[:, 2:4]), known[:, 4:]),
    }


def run_probes() -> list[WrongAnswer]:
    """The probes whose answers are wrong on this machine."""
    found = []
    every = probes()
    arguments = [probe.arguments for probe in every.values()]

    def answers(arguments: list[tuple[Any, ...]]) -> list[Any]:
        return [probe.function(*each) for probe, each in zip(every.values(), arguments, strict=True)]

    for arithmetic, transform in (("jnp", jax.jit), ("portable", portable)):
        for (name, probe), answer in zip(every.items(), transform(answers)(arguments), strict=True):
            value = np.asarray(answer)
            # Zeros of either sign are equal, because integers have only one zero.
            if len(wrong := np.argwhere(value != probe.right)):
                index = tuple(int(i) for i in wrong[0])
                right, here = shown(probe.right[index]), shown(value[index])
                found.append(WrongAnswer(name, arithmetic, index, right, here))
    return found
