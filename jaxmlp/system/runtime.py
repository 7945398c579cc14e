"""What must be set before JAX starts? Device, XLA flags, precision of products, compile cache. Only this module does.

Everything here that decides bits is in a run's manifest.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from typing import Final, Literal, TypeAlias

from jaxmlp.errors import DeviceError
from jaxmlp.folders import user_cache
from jaxmlp.run.manifest import instruction_set
from jaxmlp.system.distributed import Cluster, join

Device: TypeAlias = Literal["auto", "cpu", "gpu", "tpu"]

XLA_FLAGS: Final = ("--xla_gpu_deterministic_ops=true",)
"""Flags added to the user's own. Without them, some GPU kernels add in an order that changes from run to run."""

MATMUL_PRECISION: Final = "highest"
"""By default JAX rounds the factors of float32 products to bfloat16 on TPUs, and to TensorFloat-32 on recent GPUs."""

_SETTINGS: Final = {
    "enable_x64": False,
    "default_matmul_precision": MATMUL_PRECISION,
    "threefry_partitionable": True,
}
"""JAX's settings that decide bits, by the names of JAX's contexts."""

_added: list[str] = []
"""The flags that `prepare` has added to the user's."""

_EXTRAS: Final = {"gpu": "cuda13 (or cuda12)", "tpu": "tpu"}


def prepare(device: Device = "auto", *, exact: bool = True) -> None:
    """Set XLA's flags and the device before anything can start JAX. It does not start JAX. Idempotent.

    Args:
        device: As in `configure`.
        exact: Whether bits matter. If false, flags that cost speed are left out.
    """
    import jax

    if not is_up():
        users = " ".join(flag for flag in os.environ.get("XLA_FLAGS", "").split() if flag not in _added)
        _added[:] = _missing_flags(users) if exact else []
        os.environ["XLA_FLAGS"] = " ".join([users, *_added]).strip()
        if device == "cpu":
            jax.config.update("jax_platforms", "cpu")


def is_up() -> bool:
    """Whether JAX has already started. Before `configure` was called, other code must have started it."""
    from jaxmlp.system import private

    return private.is_started()


def _missing_flags(given: str) -> list[str]:
    return [flag for flag in XLA_FLAGS if flag.split("=")[0] not in given]


def configure(
    device: Device = "auto", cluster: Cluster | None = None, *, cpu_devices: int | None = None, exact: bool = True
) -> None:
    """Set up JAX so that a run's bits depend only on what its manifest names. Idempotent.

    Args:
        device: Device to compute on. `auto` takes the first that JAX finds of TPU, GPU, CPU.
        cluster: The other processes of the run, to connect to before JAX starts.
        cpu_devices: Number of devices that the CPU appears as, at most one per core. Default: one. XLA_FLAGS and
            JAX_NUM_CPU_DEVICES take precedence.
        exact: As in the experiment. If false, and JAX has not started, XLA's deterministic flags are left out.

    Raises:
        DeviceError: The device does not exist, or JAX has already started on another device or in 64 bits.
    """
    import jax

    if is_up() and jax.config.jax_enable_x64:
        raise DeviceError(
            "device: JAX has already started in 64 bits, but jaxmlp's bits need 32-bit mode. "
            "Call it inside `with jax.enable_x64(False):`, or in a process of its own"
        )
    for name, value in _SETTINGS.items():
        jax.config.update(f"jax_{name}", value)
    _start(device, cluster, cpu_devices, exact)


@contextlib.contextmanager
def settings(*, cpu_devices: int | None = None, exact: bool = True) -> Iterator[None]:
    """Set up JAX as `configure` does within the block. The user's settings are restored afterwards.

    Args, Raises: As `configure`, but JAX may have started in 64 bits.
    """
    import jax

    with contextlib.ExitStack() as stack:
        for name, value in _SETTINGS.items():
            stack.enter_context(getattr(jax, name)(value))
        _start("auto", None, cpu_devices, exact)
        yield


def _start(device: Device, cluster: Cluster | None, cpu_devices: int | None, exact: bool) -> None:
    """Start JAX on the device with the flags, if it has not started."""
    import jax

    from jaxmlp.system import private

    private.STARTS.addFilter(_name_the_extra)
    up, missing = is_up(), _missing_flags(os.environ.get("XLA_FLAGS", ""))
    prepare(device, exact=exact)
    said = (
        "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "") or "JAX_NUM_CPU_DEVICES" in os.environ
    )
    if not up and cpu_devices and not said:
        jax.config.update("jax_num_cpu_devices", min(cpu_devices, _cores()))
    _keep_compiled_programs()
    if cluster and not up:
        join(cluster)
    try:
        here = jax.default_backend()
    except (RuntimeError, AssertionError) as error:
        platforms = os.environ.get("JAX_PLATFORMS", "")
        raise DeviceError(f"device: JAX cannot start on {platforms or 'this machine'}: {error}") from None
    if up and missing and exact and here == "gpu":
        warnings.warn(
            f"JAX started before jaxmlp, without {' '.join(missing)}: runs of this process can differ in their bits, "
            "and the manifest says so. Call jaxmlp.configure() before the first use of JAX, or add it to XLA_FLAGS",
            stacklevel=3,
        )
    if device not in ("auto", here):
        found = ", ".join(sorted({f"{d.platform} ({d.device_kind})" for d in jax.devices()}))
        if up and device == "cpu":
            raise DeviceError(f"device: cpu was requested, but JAX has already started on {found}. Start a new process")
        raise DeviceError(
            f"device: {device} was requested, but JAX finds {found}. "
            f"Install jaxmlp's extra {_EXTRAS.get(device)}, or leave --device at auto"
        )


def _name_the_extra(record: logging.LogRecord) -> bool:
    """Add to JAX's message about an accelerator that it cannot use which extra to install."""
    for device, name in (("gpu", "An NVIDIA GPU"), ("tpu", "A Google TPU")):
        if record.msg.startswith(f"{name} may be present"):
            record.msg = f"{name} is present, but this JAX cannot use it. Install jaxmlp's extra {_EXTRAS[device]}"
    return True


def _cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _keep_compiled_programs() -> None:
    """Store compiled programs in the user's cache folder, so that the next start compiles almost nothing.

    Each set of processor features has its own folder, because JAX's keys do not include them.
    """
    import jax

    if not jax.config.jax_compilation_cache_dir:
        if not (cache := user_cache()):
            return
        folder = cache / "compiled" / instruction_set()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError:
            return  # If home cannot be written, the only cost is compile time.
        from jaxmlp.system import compiled

        compiled.keep_in(folder)
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
