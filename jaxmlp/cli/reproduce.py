"""`jaxmlp reproduce`: train a run again and compare with what it left."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jaxmlp.cli import Answer, flags, say, writing_to
from jaxmlp.errors import CheckFailed, UsageError
from jaxmlp.experiment.fields import ranged
from jaxmlp.run.manifest import PROGRAM
from jaxmlp.source.shipped import experiment_path
from jaxmlp.system import runtime

if TYPE_CHECKING:
    from jaxmlp.proof.reproduce import Reproduction


@dataclass(frozen=True, kw_only=True)
class ReproduceFlags(flags.CodeFlags, flags.DataFlags, flags.DeviceFlags):
    """Train a run again from its stored config and compare digests and checkpoints up to the first difference.

    If versions, hardware or flags differ, bits are not promised. Then the batch order is checked, and whether the
    result lies in the experiment's band over seeds.
    """

    devices: int | None = ranged(None, "[1, 65536]")
    """Number of devices that split each batch. Default: the largest available number that divides the gradient
    shards."""
    resident_mb: float = ranged(4096.0, "(0, inf)")
    """Largest size in megabytes of a split's inputs that stay on the device. A larger split is streamed. The bits do
    not depend on it."""
    from_step: int = ranged(0, "[0, inf)")
    """Update after which to begin, from the run's own checkpoint there. 0 is the start."""
    to_step: int | None = ranged(None, "[1, inf)")
    """Last update to train. Default: the last update that the run recorded."""
    bisect: flags.Switch = False
    """Find the first wrong update by halving. It is exact if the run has a trace (train --digest-every 1)."""
    html: Path | None = None
    """HTML file to write: the run and its training here side by side, the first difference in front."""
    certificate: Path | None = None
    """File from `jaxmlp certify` to reproduce without the run. Then an EXPERIMENT with its code takes the place of
    RUN."""
    public_key: Path | None = None
    """Ed25519 public key, in PEM, that must have signed the certificate."""


def run(argv: Sequence[str]) -> Answer:
    """Reproduce RUN. Exit code 3 if it is not reproduced."""
    chosen, (name,) = flags.parse(ReproduceFlags(), argv, "reproduce", "RUN")
    if chosen.public_key and not chosen.certificate:
        raise UsageError("--public-key needs --certificate FILE")
    runtime.configure(chosen.device)
    from jaxmlp.proof.reproduce import reproduce
    from jaxmlp.run.find import find_run

    write_page = _page_writer() if chosen.html else None
    with contextlib.ExitStack() as stack:
        experiment = chosen.experiment
        if chosen.certificate:
            from jaxmlp.proof import certificate

            stated = certificate.statement(chosen.certificate, chosen.public_key)
            if not chosen.public_key:
                say("The signature is not checked: give the signer's key with --public-key FILE.")
            path, experiment = stack.enter_context(certificate.as_run(stated)), (experiment_path(name), *experiment)
        else:
            path = find_run(name)
        found = reproduce(
            path,
            experiment=experiment,
            manual_dir=chosen.manual_dir,
            devices=chosen.devices,
            resident_bytes=int(chosen.resident_mb * 2**20),
            from_step=chosen.from_step,
            to_step=chosen.to_step,
            bisect=chosen.bisect,
            report=say,
        )
    lines = "\n".join(_lines(found))
    if write_page and chosen.html:
        try:
            with writing_to(chosen.html):
                write_page(found, str(chosen.certificate or path), chosen.html)
        except BaseException:
            say(lines)  # The answer must not be lost with the page.
            raise
        say(f"{chosen.html}: the run and its training here, side by side")
    difference = found.first_difference
    document = {
        "level": found.level,
        "same": found.same,
        "first_difference": difference and difference._asdict(),
        "changed": list(found.changed),
        "steps": found.steps,
        "trained": found.trained,
        "operation": found.operation,
        "judgements": [judgement._asdict() for judgement in found.judgements],
    }
    if found.same:
        say(lines)
        return Answer(document)
    return Answer(document, CheckFailed.exit_code, lines)


def _page_writer() -> Callable[[Reproduction, str, Path], None]:
    try:
        from jaxmlp.report.replay import write_replay
    except ModuleNotFoundError as error:
        raise UsageError(f"--html needs {error.name}: pip install 'jaxmlp[report]'") from None
    return write_replay


def _lines(found: Reproduction) -> Iterator[str]:
    """Lines for people, the answer first."""
    if not (difference := found.first_difference):
        yield f"reproduced: {found.steps} updates, the same bits ({found.level})"
    elif any(changed.startswith(PROGRAM) for changed in found.changed):
        yield f"another program: not checked ({found.level})"
        yield "This JAX or flax traces the experiment to other operations, whose bits differ on every machine."
        yield f"The first difference: {difference}"
    elif found.level != "L4" or difference.leaf == "order":
        yield f"not reproduced ({found.level}): {difference}"
        if found.operation:
            yield found.operation
    else:
        answers = {
            True: "reproduced as far as it can be checked",
            False: "not reproduced",
            None: "not checked: nothing is known about what is still promised",
        }
        yield f"{answers[found.same]} (L4)"
        for figure, value, low, high in found.judgements:
            lies = "in" if low <= value <= high else "outside"
            yield f"{figure} {value:.4f} lies {lies} the experiment's band over seeds, {low:.4f} to {high:.4f}"
        if not found.judgements:
            yield "The result was not judged: only a part was trained, the run has not finished, or no band is known."
        yield f"The first difference: {difference}"
    yield from (f"changed: {changed}" for changed in found.changed)
