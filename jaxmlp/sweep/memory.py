"""How many lanes does a device hold at once? That depends on the size of a lane and the free memory."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

SHARE = 0.7
"""Fraction of the free memory that lanes may take. The rest is for evaluation, checkpoints and the allocator's gaps."""


def free_bytes(mesh: Mesh) -> int:
    """Free bytes of each device of this process. Simulated devices share the machine's memory."""
    local = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]
    stats = [device.memory_stats() for device in local]
    if all(each and "bytes_limit" in each for each in stats):
        return min(int(each["bytes_limit"]) - int(each["bytes_in_use"]) for each in stats)
    return _free_host_bytes() // len(local)


def _free_host_bytes() -> int:
    """Free bytes of the machine, or of the container that limits this process."""
    free = [os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")] or free
        group = Path("/sys/fs/cgroup")
        free.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):  # Another system, or no container with a limit.
        pass
    return min(free)


def lane_bytes(states: Any, orders: Any) -> int:
    """Bytes that a lane keeps on its device: its state twice, read and written, and its order of examples.

    Args:
        states: Shapes of the lanes' states, [lanes, ...].
        orders: Shape of the lanes' orders.
    """
    rows = [(2, leaf) for leaf in jax.tree.leaves(states)] + [(1, orders)]
    return sum(times * math.prod(leaf.shape[1:]) * leaf.dtype.itemsize for times, leaf in rows)


def program_bytes(compiled: Any) -> int:
    """Bytes that a compiled program takes on each device, arguments included, as measured by its compiler."""
    found = compiled.memory_analysis()
    kept = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return int(kept + found.temp_size_in_bytes)
