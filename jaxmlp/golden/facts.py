"""Which facts of this machine decide the bits of a tree?"""

from __future__ import annotations

import functools
import os
import platform
import sys
from typing import Any

import numpy as np

from jaxmlp.run.manifest import instruction_set, platform_facts


def facts_of(tree: Any) -> dict[str, dict[str, Any]]:
    """The facts that decide a tree's bits (`binding`), and facts that help to explain a difference (`not_binding`).

    A tree with a JAX array has JAX's facts, with those of the device that holds the array. Any other tree has NumPy's.
    """
    jax = sys.modules.get("jax")
    if jax is not None:
        for leaf in jax.tree_util.tree_leaves(tree):
            if isinstance(leaf, jax.Array):
                return platform_facts(min(leaf.devices(), key=lambda device: device.id))
    return _numpy_facts()


@functools.cache
def _numpy_facts() -> dict[str, dict[str, Any]]:
    built: Any = np.show_config(mode="dicts")
    blas, simd = built["Build Dependencies"]["blas"], built["SIMD Extensions"]
    binding = {
        "numpy": np.__version__,
        "blas": f"{blas.get('name')} {blas.get('version')}",
        "simd": " ".join(simd.get("baseline", []) + simd.get("found", [])),
        "libm": " ".join((platform.system(), *platform.libc_ver())).strip(),
        "isa": instruction_set(),
    }
    return {"binding": binding, "not_binding": {"threads": os.cpu_count(), "python": platform.python_version()}}
