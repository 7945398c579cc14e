"""How do a run and its training again compare? Update by update and leaf by leaf, the first difference in front."""

from __future__ import annotations

from pathlib import Path

from jaxmlp.proof.reproduce import Reproduction
from jaxmlp.report.templates import environment
from jaxmlp.run import files

SHOWN = 200
"""Number of compared updates that are listed, counted from the end."""


def write_replay(found: Reproduction, name: str, out: Path) -> None:
    """Write the page to `out`.

    Args:
        found: The result of `reproduce`.
        name: Name of the run, for people.
        out: The file.

    Raises:
        DiskError: It cannot be written.
    """
    compared = sorted(found.compared, key=lambda each: each.step)
    page = (
        environment()
        .get_template("replay.html")
        .render(found=found, name=name, compared=compared[-SHOWN:], left_out=max(0, len(compared) - SHOWN))
    )
    files.write(out, page.encode(errors="backslashreplace"))
