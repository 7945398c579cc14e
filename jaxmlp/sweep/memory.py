"""How many lanes a device holds at once: what one takes, and what is free."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

SHARE = 0.7
"""Part of the free memory that lanes may take; the rest is for evaluation, checkpoints and the allocator's gaps."""


def free_bytes(mesh: Mesh) -> int:
    """Free memory of each device of this process; simulated ones share the machine's."""
    local = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]
    stats = [device.memory_stats() for device in local]
    if all(each and "bytes_limit" in each for each in stats):
        return min(int(each["bytes_limit"]) - int(each["bytes_in_use"]) for each in stats)
    return _free_host_bytes() // len(local)


def _free_host_bytes() -> int:
    """Of the machine, or of the container that this process may not outgrow."""
    free = [os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")] or free
        group = Path("/sys/fs/cgroup")
        free.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):  # Another system, no container, or one without a limit.
        pass
    return min(free)


def lane_bytes(states: Any, orders: Any) -> int:
    """What one lane keeps on its device: twice its state, read and written, and its order of examples.

    Args:
        states: Shapes of lanes' states, [lanes, ...].
        orders: Shape of their orders.
    """
    rows = [(2, leaf) for leaf in jax.tree.leaves(states)] + [(1, orders)]
    return sum(times * math.prod(leaf.shape[1:]) * leaf.dtype.itemsize for times, leaf in rows)


def program_bytes(compiled: Any) -> int:
    """What a compiled program takes on each device, arguments too, as its compiler measured it."""
    found = compiled.memory_analysis()
    kept = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return int(kept + found.temp_size_in_bytes)
