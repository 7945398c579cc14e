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

POWERCAP = Path("/sys/class/powercap")
"""Linux's folder of energy counters."""


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
    """Energy in joules that the device used while `work` ran: the first NVIDIA GPU, or all processors.

    Processors count it by Intel's or AMD's RAPL, which often only root may read. Without a counter that may be read,
    the result is None and `work` does not run.
    """
    energy = _of_processors if jax.devices()[0].platform == "cpu" else _of_gpu
    if not (before := energy()):
        return None
    work()
    after = energy()
    if len(after) != len(before) or any(end < start for start, end in zip(before, after, strict=True)):
        return None  # A counter began again from zero.
    return sum(after) - sum(before)


def _of_gpu() -> list[float]:
    found = gpu()
    return [] if not found or found["joules"] is None else [found["joules"]]


def _of_processors() -> list[float]:
    """Joules counted by each processor package; empty without counters or permission."""
    packages = [path for path in sorted(POWERCAP.glob("*-rapl:*")) if path.name.count(":") == 1]
    counters = [_read(path / "energy_uj") for path in packages]
    return [int(text) / 1e6 for text in counters] if all(counters) else []


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


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""
