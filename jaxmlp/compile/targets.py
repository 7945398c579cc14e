"""For which accelerators can a program be compiled, what do their makers say, and where is the compiler?"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from jaxmlp.errors import ConfigError, DeviceError, did_you_mean

Platform = Literal["cpu", "gpu", "tpu"]
GB, TB = 10**9, 10**12

_HGX = "NVIDIA HGX Platform, specifications, https://www.nvidia.com/en-us/data-center/hgx/"
_SPECS = "https://github.com/openxla/xla/tree/main/xla/backends/gpu/target_config/specs"


@dataclass(frozen=True, kw_only=True)
class Chip:
    """One device of an accelerator, as its maker describes it."""

    platform: Platform
    memory: int | None = None
    """Memory in bytes. None for the memory of this machine."""
    bandwidth: float | None = None
    """Memory bandwidth in bytes per second."""
    flops: dict[str, float] = field(default_factory=dict)
    """Peak multiplications and additions of products per second, by type of the factors."""
    interconnect: float | None = None
    """Peak bytes per second that a device receives from others."""
    cache_bytes: int = 0
    """Size of the largest cache in bytes. Smaller arrays may never reach memory. A TPU's compiler itself says what
    stays."""
    source: str = ""
    """Source of the figures."""
    topology: str = ""
    """Topology of the smallest slice. Empty if devices are simply counted."""
    options: dict[str, str] = field(default_factory=dict)
    """Options of the topology's description, by name."""
    description: str = ""
    """Description of a GPU for XLA, as a `GpuTargetConfigProto`."""


def _gpu(name: str, cores: int, clock_ghz: float, memory: int, bandwidth: int, cache: int, major: int) -> str:
    """A GPU in the form of XLA's own descriptions: limits that Hopper and Blackwell share, and its own sizes."""
    common = (
        "threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048 fpus_per_core: 128 "
        "shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448 "
        "block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535 "
        "registers_per_core_limit: 65536 registers_per_block_limit: 65536"
    )
    own = (
        f"core_count: {cores} clock_rate_ghz: {clock_ghz} device_memory_size: {memory} memory_bandwidth: {bandwidth} "
        f"l2_cache_size: {cache} cuda_compute_capability {{ major: {major} minor: 0 }}"
    )
    versions = "dnn_version_info { major: 9 minor: 10 } runtime_version { major: 13 minor: 0 }"
    return f'gpu_device_info {{ {common} {own} }} platform_name: "CUDA" {versions} device_description_str: "{name}"'


CHIPS = {
    "tpu-v4": Chip(
        platform="tpu", memory=32 * 2**30, bandwidth=1200 * GB, flops={"bfloat16": 275 * TB},
        topology="2x2x1", source="Google Cloud, TPU v4, https://docs.cloud.google.com/tpu/docs/v4",
        options={"chip_config_name": "megacore"},  # Otherwise each of a chip's two cores would be a device.
    ),
    "tpu-v5e": Chip(
        platform="tpu", memory=16 * 2**30, bandwidth=819 * GB, flops={"bfloat16": 197 * TB}, interconnect=400 * GB,
        topology="2x2", source="Google Cloud, TPU v5e, https://docs.cloud.google.com/tpu/docs/v5e",
    ),
    "tpu-v6e": Chip(
        platform="tpu", memory=32 * 2**30, bandwidth=1638 * GB, flops={"bfloat16": 918 * TB}, interconnect=800 * GB,
        topology="2x2", source="Google Cloud, TPU v6e, https://docs.cloud.google.com/tpu/docs/v6e",
    ),
    "tpu-v5p": Chip(
        platform="tpu", memory=95 * 2**30, bandwidth=2765 * GB, flops={"bfloat16": 459 * TB}, interconnect=1200 * GB,
        topology="2x2x1", source="Google Cloud, TPU v5p, https://docs.cloud.google.com/tpu/docs/v5p",
    ),
    "h100": Chip(
        platform="gpu", memory=80 * GB, bandwidth=3350 * GB, flops={"bfloat16": 1979 / 2 * TB, "float32": 67 * TB},
        interconnect=450 * GB, cache_bytes=50 * 2**20,
        source=f"NVIDIA H100 Tensor Core GPU, H100 SXM, https://www.nvidia.com/en-us/data-center/h100/; {_SPECS}",
        description=_gpu("NVIDIA H100 80GB HBM3", 132, 1.98, 84942979072, 3352320000000, 52428800, 9),
    ),
    "h200": Chip(
        platform="gpu", memory=141 * GB, bandwidth=4800 * GB, flops={"bfloat16": 1979 / 2 * TB, "float32": 67 * TB},
        interconnect=450 * GB, cache_bytes=50 * 2**20,
        source=f"NVIDIA H200 GPU, H200 SXM, https://www.nvidia.com/en-us/data-center/h200/; {_SPECS}",
        description=_gpu("NVIDIA H200 141GB HBM3e", 132, 1.98, 151397597184, 4800000000000, 52428800, 9),
    ),
    "b200": Chip(
        platform="gpu", memory=180 * GB, bandwidth=8 * TB, flops={"bfloat16": 36 / 8 / 2 * 1000 * TB,
        "float32": 600 / 8 * TB}, interconnect=900 * GB, cache_bytes=132644864,
        source=f"{_HGX}; NVIDIA DGX B200, https://www.nvidia.com/en-us/data-center/dgx-b200/; {_SPECS}",
        description=_gpu("NVIDIA B200", 148, 1.965, 191514411008, 7672320000000, 132644864, 10),
    ),
    "cpu": Chip(platform="cpu"),
}  # fmt: skip
"""Chips by the name of a target. Peaks of GPUs are without sparsity, half of what their maker states with sparsity."""

GPU_FLAGS = {"xla_gpu_deterministic_ops": True, "xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}
"""Options of GPU targets. Without a device nothing can be tuned, so kernels differ somewhat from those on a user's
GPU."""


@dataclass(frozen=True)
class Target:
    """Devices to compile for."""

    name: str
    """Name as typed: `tpu-v5e:2x4`, `h100`, `cpu`."""
    chip: Chip
    topology: str

    @classmethod
    def of(cls, text: str) -> Target:
        """The target that a user names.

        Raises:
            ConfigError: There is no such target.
        """
        name, colon, topology = text.partition(":")
        if name not in CHIPS:
            raise ConfigError("for", f"must be one of {', '.join(CHIPS)}, got {text!r}.{did_you_mean(name, CHIPS)}")
        chip = CHIPS[name]
        if colon and not (chip.topology and re.fullmatch(r"\d+(x\d+)*", topology)):
            such = f"{name}:{chip.topology}" if chip.topology else name
            raise ConfigError("for", f"must look like {such}, got {text!r}")
        return cls(text, chip, topology or chip.topology)

    @property
    def flags(self) -> dict[str, bool | int]:
        """XLA flags of the target, in addition to every run's flags."""
        return dict(GPU_FLAGS) if self.chip.platform == "gpu" else {}

    def memory(self) -> int:
        """Memory of one device in bytes."""
        if self.chip.memory is not None:
            return self.chip.memory
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

    def devices(self, wanted: int | None, divides: int) -> Sequence[Any]:
        """Devices of the target: `wanted` of them, or the largest number that divides `divides`.

        Raises:
            ConfigError: There is no such topology, or it has fewer devices.
            DeviceError: The compiler is not installed, or JAX has started with fewer CPU devices.
        """
        there = self._described(wanted or 1)
        if wanted is None:
            wanted = max(count for count in range(1, min(len(there), divides) + 1) if divides % count == 0)
        if wanted > len(there):
            raise ConfigError("devices", f"must be at most the {len(there)} devices of {self.name}, got {wanted}")
        return there[:wanted]

    def _described(self, count: int) -> Sequence[Any]:
        import jax

        if self.chip.platform == "cpu":
            there = jax.devices("cpu")
            if len(there) < count:
                started = f"JAX has already started with {len(there)} CPU devices"
                raise DeviceError(f"device: {started}, but {count} were requested")
            return there
        from jax.experimental import topologies

        if not has_compiler(self.chip.platform):
            kind, extra = ("TPUs", "tpu") if self.chip.platform == "tpu" else ("NVIDIA's GPUs", "cuda13")
            install = f"Install jaxmlp's extra {extra}; no device is needed"
            raise DeviceError(f"device: {self.name} needs the compiler for {kind}. {install}")
        try:
            if self.chip.platform == "tpu":
                name = f"{self.name.partition(':')[0].removeprefix('tpu-')}:{self.topology}"
                return topologies.get_topology_desc(platform="tpu", topology_name=name, **self.chip.options).devices
            return topologies.get_topology_desc(
                platform="cuda", topology_name=self.name, target_config=self.chip.description, topology=f"1x1x{count}"
            ).devices
        except (jax.errors.JaxRuntimeError, RuntimeError, ValueError) as error:
            line = str(error).partition("\n")[0]
            raise ConfigError("for", f"must be a target that its compiler knows, got {self.name!r}: {line}") from None


def has_compiler(platform: Platform) -> bool:
    """Whether the compiler for the platform is installed. Nothing is started."""
    if platform == "cpu":
        return True
    names = ("libtpu",) if platform == "tpu" else ("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12")
    with contextlib.suppress(ModuleNotFoundError):  # jax_plugins itself
        return any(importlib.util.find_spec(name) for name in names)
    return False


def prepare(devices: int | None) -> None:
    """Before JAX starts: let it start on the CPU only, and keep compilers from looking for a device.

    Args:
        devices: Number of devices that the CPU appears as.
    """
    os.environ["JAX_PLATFORMS"] = "cpu"
    quiet = {
        "CUDA_VISIBLE_DEVICES": "-1", "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_MIN_LOG_LEVEL": "3", "TF_CPP_MIN_LOG_LEVEL": "3", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # libtpu would look for it; the topology decides.
    }  # fmt: skip
    for name, value in quiet.items():
        os.environ.setdefault(name, value)
    if devices and "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        os.environ["JAX_NUM_CPU_DEVICES"] = str(devices)


@contextlib.contextmanager
def compiling_anew() -> Iterator[None]:
    """Disable JAX's compilation cache within the block, so that seconds measure the compiler.

    Such a program cannot be read from the cache either.
    """
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    kept = jax.config.jax_enable_compilation_cache
    try:
        jax.config.update("jax_enable_compilation_cache", False)
        compilation_cache.reset_cache()  # JAX reads the setting only once.
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", kept)
        compilation_cache.reset_cache()
