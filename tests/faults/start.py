"""The program with the data sets of these tests: `python tests/faults/start.py train tests/faults/tiny.py`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))


def start(argv: list[str]) -> int:
    """Run it, in a process of its own: `mnist` is the stand-in, where it lies in --manual-dir."""
    try:
        from jaxmlp.cli import main
        from jaxmlp.system.signals import kept_interrupts

        with kept_interrupts():
            from faults import tiny
    except KeyboardInterrupt:  # as main answers, where it is loaded
        return 130

    assert tiny.CONFIG
    if "--manual-dir" in argv:
        from mnist_stand_in import stand_in_source

        from jaxmlp.data import official

        official.SOURCES["mnist"] = stand_in_source(Path(argv[argv.index("--manual-dir") + 1]))
    return main(argv)


if __name__ == "__main__":
    from jaxmlp.cli import program

    program(start)
