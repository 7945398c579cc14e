"""What is promised between two manifests: the same bits, or only the same batch order and range of results?

L1: between equal manifests, the same bits.
L2: for any chunks of updates, interruptions and resumes, the same bits. Every reproduction tests this.
L3: between other numbers of devices, processes and threads, the same bits.
L5: for a run in portable precision, between other versions, hardware or flags, the same bits.
L4: between other versions, hardware or flags, the same distribution of results over seeds; and the same batch order if
    JAX, flax and the random streams are the same.

Changes in the user's code do not affect the batch order, whether or not the run continued with them.
But only the same bits, or a known band, can then show that the code means the same. The same holds for another program
of a portable run, as another JAX may trace it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from jaxmlp.errors import RunError
from jaxmlp.run.code import ACCEPTED, CODE
from jaxmlp.run.manifest import PLATFORM, PROGRAM, differences

STREAMS = ("jax", "flax", "prng", "threefry_partitionable", "random_seed_offset", "x64")
"""The facts that random integers depend on."""

Level = Literal["L1", "L3", "L4", "L5"]


@dataclass(frozen=True)
class Promise:
    """The promise between two manifests."""

    level: Level
    changed: tuple[str, ...]
    """The facts that differ, with both values: `jax: 0.12.0.1 there, 0.13.0 here`."""
    same_order: bool
    """Whether the batch order is promised."""
    same_code: bool = True
    """Whether the user's own code is the same. Changed code may have another distribution of results."""
    same_program: bool = True
    """Whether a portable run's program is the same. Another program may have other bits on every machine."""


def promise(there: Mapping[str, Any], here: Mapping[str, Any]) -> Promise:
    """What is promised if a run with the manifest `there` is trained again with the manifest `here`.

    Raises:
        RunError: Nothing is promised: the run had another config or data, was imported, or its manifest lacks the
            facts.
    """
    if "imported" in there:
        raise RunError("the run's network was imported, not trained: there is nothing to train again.")
    if not there.get("binding"):
        raise RunError("the run's manifest does not say what its bits depend on. Create runs with manifest().")
    binding, not_binding = (differences(there, here, kind) for kind in ("binding", "not_binding"))
    names = {difference.partition(":")[0] for difference in binding}
    for accepted in there.get(ACCEPTED) or []:
        files = ", ".join(f"{name} {sha256}" for name, sha256 in (accepted.get(CODE) or {}).items())
        binding.append(f"code: continued with changed code after epoch {accepted.get('epochs')}: {files}")
    for longer in there.get("lengthened") or []:
        if not longer.get("same_bits", True):
            after, before, epochs = (longer.get(name) for name in ("after", "from", "to"))
            binding.append(f"epochs: {before} until epoch {after}, then {epochs}, and the learning rate depends on it")
    if there["binding"].get("exact", True) is False:
        binding.append("exact: false, so no two runs are promised the same bits")
    for name, what in [("config_sha256", "config"), ("data_sha256", "data")]:
        if name in names:
            raise RunError(f"the run had another {what}, so nothing is promised: {'; '.join(binding)}.")
    moved = {difference.partition(":")[0] for difference in not_binding}
    level: Level = "L4" if binding else "L5" if moved & {*PLATFORM} else "L3" if moved else "L1"
    same_program, same_streams = PROGRAM not in names, not names & {*STREAMS, PROGRAM}
    same_code = not any(difference.startswith(CODE) for difference in binding)
    return Promise(level, (*binding, *not_binding), same_streams, same_code, same_program)
