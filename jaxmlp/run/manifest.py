"""What do a run's bits depend on? Runs of a config and its named data set have the same bits if `binding` is equal.

Bits do not depend on `not_binding`. Files that define parts of the user's own are bound by their hashes, as `code`. An
object that no file defines is `none`, and is not bound. Arguments from Python that replace values of the config are not
bound either: the validation split and the number of classes of `from_arrays`, because the data's hash covers only
training and test examples; and the weights of an import.

A run in portable precision has the same bits on every platform. So its `binding` has the hash of its program in place
of the platform, which is in `not_binding`.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import re
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxmlp.data import Dataset
    from jaxmlp.experiment.config import ExperimentConfig

_CPU_FEATURES = ("sse", "ssse", "avx", "amx", "fma", "f16c", "bmi")
_WIDEST_FIRST = ("amx_tile", "avx512_bf16", "avx512f", "avx2", "avx", "sse4_2", "sve2", "sve", "asimd")
_FREE_FLAGS = ("--xla_force_host_platform_device_count", "--xla_dump_")
COMPILED = "compiled_sha256"
"""Key, beside the facts, of the hash of the training program as XLA compiled it."""
PROGRAM = "program_sha256"
STREAMS = ("prng", "threefry_partitionable", "random_seed_offset")
"""The facts of the platform that a portable run depends on: its random streams."""
PLATFORM = ("jax", "jaxlib", "flax", "optax", "xla_flags", "matmul_precision", "x64", "device_kind", "platform_version",
            "isa")  # fmt: skip
"""The other facts of the platform."""


def manifest(
    config: ExperimentConfig,
    dataset: Dataset,
    *,
    devices: int | None = None,
    variants: Iterable[ExperimentConfig] = (),
) -> dict[str, Any]:
    """The facts of a run on this machine, as JSON values, without names of the host or user, or their paths.

    Args:
        config: The experiment. Its hash is the hash of `config.json`.
        dataset: The data set.
        devices: Number of devices that split each batch. Default: all that JAX finds.
        variants: Variants of the experiment, whose code counts too.
    """
    from jaxmlp.source.code import code_of, data_code_of, sums_of

    here = platform_facts(devices=devices)
    sums = {"config_sha256": hashlib.sha256(config.to_json().encode()).hexdigest(), "data_sha256": dataset.sha256}
    binding, not_binding = {**sums, **here["binding"]}, here["not_binding"]
    configs = [config, *variants]
    if all(each.precision == "portable" for each in configs):
        from jaxmlp.run.fingerprint import program_sha256

        not_binding |= {name: binding.pop(name) for name in PLATFORM}
        binding[PROGRAM] = program_sha256(configs, dataset)
    if not all(each.exact for each in configs):
        binding["exact"] = False
    if code := sums_of(code_of(*configs)):
        binding["code"] = code
    if data_code := sums_of(data_code_of(config)):
        not_binding["data_code"] = data_code
    return {"binding": binding, "not_binding": not_binding, "data": dataset.facts.to_plain()}


def platform_facts(device: Any = None, *, devices: int | None = None) -> dict[str, dict[str, Any]]:
    """The facts of a manifest without config and data: what decides the bits of any JAX program on this machine.

    Args:
        device: The JAX device that computes. Default: the first that JAX finds.
        devices: Number of devices that compute. Default: all that JAX finds.
    """
    import jax

    from jaxmlp.prng import IMPLEMENTATION

    device = device or jax.devices()[0]
    flags = " ".join(os.environ.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS"))
    binding = {
        **_versions(),
        "xla_flags": binding_flags(flags),
        "prng": IMPLEMENTATION,
        "threefry_partitionable": jax.config.jax_threefry_partitionable,
        "random_seed_offset": jax.config.jax_random_seed_offset,
        "matmul_precision": jax.config.jax_default_matmul_precision,
        "x64": jax.config.jax_enable_x64,
        "device_kind": device.device_kind,
        "platform_version": device.client.platform_version,
        "isa": _instruction_set_here() if device.platform == "cpu" else getattr(device, "compute_capability", None),
    }
    threads = os.environ.get("NPROC", "")
    not_binding = {
        "devices": devices or jax.device_count(),
        "processes": jax.process_count(),
        "threads": int(threads) if threads.isdecimal() else os.cpu_count(),
        "python": platform.python_version(),
        "os": platform.system(),
    }
    return {"binding": binding, "not_binding": not_binding}


@functools.cache
def _versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax")}


def differences(there: Mapping[str, Any], here: Mapping[str, Any], kind: str = "binding") -> list[str]:
    """The facts of a kind in which two manifests differ, with both values: `jax: 0.12.0 there, 0.13.0 here`."""
    there, here = (_by_file(facts.get(kind, {})) for facts in (there, here))
    names = [*there, *(name for name in here if name not in there)]
    return [
        f"{name}: {there.get(name)} there, {here.get(name)} here" for name in names if there.get(name) != here.get(name)
    ]


def _by_file(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts, with `code` split into one fact per file."""
    found: dict[str, Any] = {}
    for name, value in facts.items():
        is_code = isinstance(value, Mapping)
        found |= {f"{name} {file}": sha256 for file, sha256 in value.items()} if is_code else {name: value}
    return found


def binding_flags(flags: str) -> str:
    """The XLA flags that can change bits, sorted by name.

    Folders in paths are left out, because they may name a user.
    """
    found: dict[str, str] = {}
    for flag in flags.split():
        name, _, value = flag.partition("=")
        if not name.startswith(_FREE_FLAGS):
            found[name] = value.rpartition("/")[2]
    return " ".join(f"{name}={value}" if value else name for name, value in sorted(found.items()))


def instruction_set() -> str:
    """The vector instructions that XLA may use here: the widest, and a hash of the whole set.

    For example `x86_64-avx2-1f3a0c2b`. On systems other than Linux, only the architecture.
    """
    machine = platform.machine().lower()
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return machine
    found = re.search(r"^(flags|Features)\s*:(.*)$", text, re.MULTILINE)
    listed = set(found[2].split()) if found else set()
    features = sorted(name for name in listed if machine == "aarch64" or name.startswith(_CPU_FEATURES))
    widest = next((name for name in _WIDEST_FIRST if name in features), "scalar")
    return f"{machine}-{widest}-{hashlib.sha256(' '.join(features).encode()).hexdigest()[:8]}"


_instruction_set_here = functools.cache(instruction_set)
"""`instruction_set`, read once per process, because the file has thousands of lines on a server with many cores."""
