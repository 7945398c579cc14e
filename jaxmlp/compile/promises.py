"""What must hold for a compiled program? Each rule is a function from the program to the findings that break it.

    no_float_sum        no sum of floats across devices except in `shards`, which adds in a fixed order
    no_lost_sign        no message in which a zero loses its sign
    no_unwritten        no message between devices that the program does not ask for
    known_length        the compiler knows the length of the loop over updates
    donated             the state is updated in place
    nothing_hosted      no callback, and no transfer to or from the host
    nothing_wide        nothing in 64 bits
    nothing_copied      no argument is copied before the loop, as into another layout: each call would copy it again
    few_kernels         a limited number of kernels per update

Two more report what else bits may depend on: `scatters` and `varying`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from jaxmlp.compile.hlo import Array
from jaxmlp.compile.reading import COPIES, Collective, Reading, changed, on_chip

GATHERS = ("all_gather", "all_to_all")
"""JAX primitives that send messages and add nothing, whatever XLA makes of them."""
WRITTEN = (*GATHERS, "psum", "psum2", "pmax", "pmin", "ppermute", "pbroadcast", "reduce_scatter", "psum_scatter")
HOST_CALLS = ("callback", "host", "infeed", "outfeed")
HOST_OPS = {"infeed", "outfeed", "send", "recv", "host-execute"}
LARGE = 1 << 20
"""Smallest copy, in bytes, that is reported."""
VARYING = {
    "rng": "the device draws its own random numbers",
    "select-and-scatter": "the device chooses the order of equal values",
}


class Finding(NamedTuple):
    """Something in a program that breaks a promise, or that the reader should know."""

    rule: str
    """Name of the promise."""
    what: str
    where: str
    """The JAX operation that it comes from, else the instruction's name."""


def no_float_sum(reading: Reading) -> Iterator[Finding]:
    """No sum of floats across devices: the network decides its order, and the bits depend on the order."""
    for each in _float_sums(reading):
        if not _written(each, GATHERS):
            yield Finding("no_float_sum", f"{each.op} adds floats of {each.devices} devices", each.source or each.op)


def no_lost_sign(reading: Reading) -> Iterator[Finding]:
    """No all-gather of floats that XLA turns into a sum of zeros and one value, which turns -0.0 into 0.0."""
    for each in _float_sums(reading):
        if _written(each, GATHERS):
            what = f"{each.op} adds zeros to {_types(each.arrays)}: -0.0 becomes 0.0"
            yield Finding("no_lost_sign", what, each.source)


def no_unwritten(reading: Reading) -> Iterator[Finding]:
    """No message between devices that the program does not ask for. XLA's partitioner makes such messages."""
    for each in reading.collectives:
        if not _written(each, WRITTEN):
            what = f"{each.op} of {_types(each.arrays)}, which the program does not ask for"
            yield Finding("no_unwritten", what, each.source or each.op)


def known_length(reading: Reading) -> Iterator[Finding]:
    """The loop has a known length. Otherwise the host of a GPU waits for a flag in each iteration."""
    if reading.trip_count is None:
        where = reading.loop and (reading.loop.source or reading.loop.name)
        yield Finding("known_length", "the loop's length is not known", where or reading.module.entry)


def donated(reading: Reading, outputs: int) -> Iterator[Finding]:
    """Each of the first `outputs` outputs reuses the memory of an argument."""
    for number in sorted({*range(outputs)} - reading.module.aliased):
        yield Finding("donated", f"output {number} does not take the memory of a donated argument", f"output {number}")


def nothing_hosted(reading: Reading) -> Iterator[Finding]:
    """Nothing in the program calls the host or waits for it."""
    for each in reading.module.all():
        calls = each.op == "custom-call" and any(word in each.target.lower() for word in HOST_CALLS)
        moves = (
            each.op.removesuffix("-start").removesuffix("-done") in HOST_OPS
            or "is_host_transfer=true" in each.attributes
        )
        if calls or (moves and not each.op.endswith("-done")):
            yield Finding("nothing_hosted", f"{each.target or each.op} leaves the device", each.source or each.name)


def nothing_wide(reading: Reading) -> Iterator[Finding]:
    """Nothing is computed in 64 bits."""
    wide = {"f64", "s64", "u64", "c128"}
    sources = {each.source: each for each in reading.module.all() if wide & {array.dtype for array in each.arrays}}
    for source, each in sources.items():
        yield Finding("nothing_wide", f"{each.op} computes {each.result.dtype}", source or each.name)


def nothing_copied(reading: Reading) -> Iterator[Finding]:
    """No large array that the loop only reads is copied outside it. Keeping it on the chip does not count."""
    if not reading.loop:
        return
    entry = reading.module.computations[reading.module.entry]
    # Devices that share an update cut parameters and optimizer state into slices, once per call.
    state = {(array.dtype, array.size) for array in changed(reading.module, reading.loop)}
    for each in entry.values():
        if each.op in COPIES and each.nbytes >= LARGE and (each.result.dtype, each.result.size) not in state:
            if on_chip(each.result) or on_chip(entry[each.operands[0]].result):
                continue
            what = f"{each.nbytes / 1e6:,.0f} MB are copied in each call, outside the loop: {_types([each.result])}"
            yield Finding("nothing_copied", what, each.source or ", ".join(each.operands))


def few_kernels(reading: Reading, most: int) -> Iterator[Finding]:
    """At most `most` kernels per iteration."""
    if reading.kernels_per_turn > most:
        found = ", ".join(f"{count} {kind}" for kind, count in sorted(reading.kernels.items()) if kind != "copies")
        yield Finding("few_kernels", f"{reading.kernels_per_turn} kernels, wanted at most {most}: {found}", "update")


def scatters(reading: Reading) -> Iterator[Finding]:
    """No scatter adds floats where indices may be equal. Without deterministic kernels, their order varies."""
    for each in reading.module.all():
        if each.op == "scatter" and each.result.is_float and "unique_indices=true" not in each.attributes:
            yield Finding("scatters", "a scatter adds floats where indices may be equal", each.source or each.name)


def varying(reading: Reading) -> Iterator[Finding]:
    """No operation whose results are known to vary between devices or runs."""
    for each in reading.module.all():
        if each.op in VARYING:
            yield Finding("varying", f"{each.op}: {VARYING[each.op]}", each.source or each.name)
        elif each.op == "rng-bit-generator" and "rng_default" in each.attributes:
            yield Finding("varying", "rng-bit-generator: the device's own algorithm", each.source or each.name)


PROMISES: tuple[Callable[[Reading], Iterator[Finding]], ...] = (
    no_float_sum, no_lost_sign, no_unwritten, known_length, nothing_hosted, nothing_wide, nothing_copied, scatters,
    varying,
)  # fmt: skip
"""The promises that need only the program."""


def findings(reading: Reading, outputs: int) -> list[Finding]:
    """All findings of a program, without duplicates.

    Args:
        reading: The program.
        outputs: Number of leading outputs that must reuse the memory of donated arguments.
    """
    found = [finding for promise in PROMISES for finding in promise(reading)] + list(donated(reading, outputs))
    return list(dict.fromkeys(found))


def _float_sums(reading: Reading) -> Iterator[Collective]:
    for each in reading.collectives:
        adds = each.op == "reduce-scatter" or (each.op == "all-reduce" and each.reduces in ("add", "multiply", ""))
        if adds and any(array.is_float for array in each.arrays):
            yield each


def _written(each: Collective, primitives: tuple[str, ...]) -> bool:
    return re.split(r"[/ ]", each.source)[-1].rstrip("]").partition("[")[0] in primitives


def _types(arrays: Iterable[Array]) -> str:
    return " and ".join(f"{array.dtype}[{','.join(map(str, array.shape))}]{array.layout}" for array in arrays)
