"""Which private parts of JAX does the package need, because there is no public one? No other file may import any."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from jax._src import compilation_cache, xla_bridge
from jax._src.compilation_cache_interface import CacheInterface as CacheInterface

STARTS = xla_bridge.logger
"""Says which platforms JAX tries when it starts."""


def is_started() -> bool:
    """Whether JAX has started its devices."""
    return bool(xla_bridge.backends_are_initialized())


def keep_programs(folder: Path, cache_in: Callable[[Path], CacheInterface]) -> None:
    """Let JAX keep compiled programs in a folder, by a cache of one's own. Call it before JAX's first use."""
    compilation_cache.get_file_cache = lambda path: (cache_in(Path(path)), path)
    compilation_cache.set_cache_dir(str(folder))
