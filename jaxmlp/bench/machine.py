"""Which machine ran a benchmark: processor, memory, devices, driver, clocks?"""

from __future__ import annotations

import contextlib
import os
import re
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax


def machine() -> dict[str, Any]:
    """Facts about the machine as JSON values, without names of host or user. Unknown facts are None."""
    device, info = jax.devices()[0], _read("/proc/cpuinfo")
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    clocks = [float(value) for value in re.findall(r"^cpu MHz\s*:\s*(.*)$", info, re.MULTILINE)]
    model = re.search(r"^(?:model name|Model)\s*:\s*(.*)$", info, re.MULTILINE)
    stats = device.memory_stats() or {}
    return {
        "processor": model[1] if model else None,
        "cores": len(cores),
        "clock_mhz": max(clocks, default=None),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "device_kind": device.device_kind,
        "devices": jax.device_count(),
        "device_memory_bytes": stats.get("bytes_limit"),
        "gpu": gpu(),
    }


def peak_bytes() -> dict[str, int | None]:
    """Peak memory of this process so far, in bytes, on the host and on the first device. None: the device is silent."""
    stats = jax.devices()[0].memory_stats() or {}
    return {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "device": stats.get("peak_bytes_in_use")}


def gpu() -> dict[str, Any] | None:
    """Driver, clocks, power and energy of the first NVIDIA GPU. None without a GPU, nvidia-ml-py or permission."""
    with _nvml() as nvml:
        if nvml is None:
            return None
        handle = nvml.nvmlDeviceGetHandleByIndex(0)
        asked = {
            "name": lambda: nvml.nvmlDeviceGetName(handle),
            "driver": nvml.nvmlSystemGetDriverVersion,
            "clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            "max_clock_mhz": lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM),
            "power_limit_w": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000,
            "joules": lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000,
        }
        found: dict[str, Any] = {}
        for name, ask in asked.items():
            found[name] = None
            with contextlib.suppress(nvml.NVMLError):
                found[name] = ask()
        return found


def joules(work: Callable[[], Any]) -> float | None:
    """Energy in joules that the first NVIDIA GPU used while `work` ran. None if the GPU does not report energy."""
    before = gpu()
    work()
    after = gpu()
    if not before or not after or before["joules"] is None or after["joules"] is None:
        return None
    return float(after["joules"] - before["joules"])


@contextlib.contextmanager
def _nvml() -> Iterator[Any]:
    """NVIDIA's management library, or None if it does not work here."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # Not installed, or pynvml.NVMLError, which has no name until pynvml is imported.
        yield None
        return
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""
