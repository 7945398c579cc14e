"""`jaxmlp reproduce`: a run trained again, and compared with what it left."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxmlp import runtime
from jaxmlp.cli import Answer, flags, say
from jaxmlp.errors import CheckFailed
from jaxmlp.fields import ranged
from jaxmlp.run.manifest import PROGRAM

if TYPE_CHECKING:
    from jaxmlp.proof.reproduce import Reproduction


@dataclass(frozen=True, kw_only=True)
class ReproduceFlags(flags.CodeFlags, flags.DataFlags, flags.DeviceFlags):
    """Train a run again from its stored config, and compare its digests and checkpoints until one differs.

    Where versions, hardware or flags are others, bits are not promised: then the batch order and the result's place in
    the experiment's band over seeds are checked.
    """

    devices: int | None = ranged(None, "[1, 65536]")
    """How many devices share a batch; by default the largest number there is that divides the gradient shards."""
    resident_mb: float = ranged(4096.0, "(0, inf)")
    """Megabytes of a split's inputs up to which it stays on the device; a larger one streams. Changes no bit."""


def run(argv: Sequence[str]) -> Answer:
    """Reproduce a RUN; one that is not ends with 3."""
    chosen, (name,) = flags.parse(ReproduceFlags(), argv, "reproduce", "RUN")
    runtime.configure(chosen.device)
    from jaxmlp.proof.reproduce import reproduce
    from jaxmlp.run.find import find_run

    found = reproduce(
        find_run(name),
        experiment=chosen.experiment,
        manual_dir=chosen.manual_dir,
        devices=chosen.devices,
        resident_bytes=int(chosen.resident_mb * 2**20),
        report=say,
    )
    difference = found.first_difference
    document = {
        "level": found.level,
        "same": found.same,
        "first_difference": difference and difference._asdict(),
        "changed": list(found.changed),
        "steps": found.steps,
        "judgements": [judgement._asdict() for judgement in found.judgements],
    }
    lines = "\n".join(_lines(found))
    if found.same:
        say(lines)
        return Answer(document)
    return Answer(document, CheckFailed.exit_code, lines)


def _lines(found: Reproduction) -> Iterator[str]:
    """What people read, the answer first."""
    if not (difference := found.first_difference):
        yield f"reproduced: {found.steps} updates, the same bits ({found.level})"
        return
    if any(changed.startswith(PROGRAM) for changed in found.changed):
        yield f"another program: not checked ({'; '.join(found.changed)})"
        yield "This JAX or flax traces the experiment to other operations, whose bits are others on every machine."
        yield f"The first other bits: {difference}"
        return
    if found.level != "L4" or difference.leaf == "order":
        yield f"not reproduced ({found.level}): {difference}"
        return
    answers = {
        True: "reproduced as far as it can be checked",
        False: "not reproduced",
        None: "not checked: nothing is known of what is still promised",
    }
    yield f"{answers[found.same]} (L4: {'; '.join(found.changed)})"
    for figure, value, low, high in found.judgements:
        lies = "in" if low <= value <= high else "outside"
        yield f"{figure} {value:.4f} lies {lies} the experiment's band over seeds, {low:.4f} to {high:.4f}"
    if not found.judgements:
        yield "The result was not judged: the run has not finished, or no band over seeds is known for its experiment."
    yield f"The first other bits: {difference}"
