"""Which private parts of JAX does the package need, because there is no public one? No other file may import any."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax._src import compilation_cache, compiler, xla_bridge
from jax._src.compilation_cache_interface import CacheInterface as CacheInterface

STARTS = xla_bridge.logger
"""Says which platforms JAX tries when it starts."""


def is_started() -> bool:
    """Whether JAX has started its devices."""
    return bool(xla_bridge.backends_are_initialized())


def keep_programs(folder: Path, cache_in: Callable[[Path], CacheInterface]) -> None:
    """Let JAX keep compiled programs in a folder, by a cache of one's own. Call it before JAX's first use.

    Every process of a cluster keeps its programs. JAX lets only the first process write. The others would compile at
    every start, because hosts need not share the folder, and on CPUs each process has keys of its own.
    """
    compilation_cache.get_file_cache = lambda path: (cache_in(Path(path)), path)
    compilation_cache.set_cache_dir(str(folder))
    compiler._cache_write = _keep


def _keep(cache_key: str, compile_time_secs: float, module_name: str, backend: Any, executable: Any) -> None:
    """Keep a program unless it compiles fast. If that fails for any reason, the only cost is compile time."""
    if compile_time_secs >= jax.config.jax_persistent_cache_min_compile_time_secs:
        with contextlib.suppress(Exception):
            compilation_cache.put_executable_and_time(
                cache_key, module_name, executable, backend, int(compile_time_secs)
            )
