"""Hostile input for every parser: whole files, altered by hypothesis, and what may come of reading them.

A parser may take what it is given or refuse it with an error of the project's own. Whatever else it does is a bug:
another exception, more memory than `MEMORY`, more time than `SECONDS`, a control character on a terminal.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st

from jaxmlp.cli import main

CAMPAIGN_S = float(os.environ.get("JAXMLP_FUZZ_SECONDS") or 0)
"""How long each parser is fuzzed; by default for a number of tries that takes a second or two."""
MEMORY = 2 << 30
"""Bytes of address space that reading a hostile file may add."""
SECONDS = 20.0
"""That one try may take; the slowest whole file takes a hundredth."""
CODES = {0, 3, 4, 5, 7, 8}
"""Exit codes with which a command may answer hostile files."""


class Hung(BaseException):
    """A try took too long; no code catches it."""


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Hold what runs inside to `MEMORY` and `SECONDS`."""

    def hung(number: int, frame: FrameType | None) -> None:
        raise Hung

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    former = signal.signal(signal.SIGALRM, hung)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGALRM, former)


def fuzz(name: str, given: st.SearchStrategy[Any], feed: Callable[[Any], str], tries: int) -> None:
    """Feed a parser with hostile input, `tries` times, or for `CAMPAIGN_S`; prints how often and what came of it.

    Args:
        name: The parser's.
        given: What it is fed with.
        feed: Gives it to the parser; returns a word for what came of it, and raises where that is a bug.
        tries: In the ordinary suite.
    """
    outcomes: dict[str, int] = {}

    def one(hostile: Any) -> None:
        with bounded():
            outcome = feed(hostile)
        outcomes[outcome] = outcomes.get(outcome, 0) + 1

    began = time.monotonic()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(1_000_000):
        settings = hypothesis.settings(
            max_examples=500 if CAMPAIGN_S else tries,
            database=None,
            deadline=None,
            derandomize=not CAMPAIGN_S,
            phases=[Phase.explicit, Phase.generate, Phase.target] if CAMPAIGN_S else list(Phase),
            suppress_health_check=list(HealthCheck),
        )
        tried: Callable[[], None] = settings(hypothesis.given(given)(one))
        if CAMPAIGN_S:
            tried = hypothesis.seed(time.time_ns() + number)(tried)
        tried()
        if time.monotonic() - began >= CAMPAIGN_S:
            break
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) >> 10
    told = ", ".join(f"{outcome} {count:,}" for outcome, count in sorted(outcomes.items()))
    seconds = time.monotonic() - began
    print(f"fuzz {name}: {sum(outcomes.values()):,} tries in {seconds:.0f} s: {told}; peak memory +{grown} MiB")
    assert sum(outcomes.values()) >= tries


WIDTHS = (1, 2, 4, 8)
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, (1 << 63) - 1, (1 << 64) - 1)


@st.composite
def damaged(draw: st.DrawFn, wholes: list[bytes]) -> bytes:
    """One of the wholes with one to four damages, most of them near its start, where headers are."""
    content = bytearray(draw(st.sampled_from(wholes)))
    for _ in range(draw(st.integers(1, 4))):
        near = min(draw(st.sampled_from((64, 512, len(content)))), len(content))
        at = draw(st.integers(0, near))
        match draw(st.sampled_from(("flip", "cut", "add", "remove", "number", "repeat", "zero", "move"))):
            case "flip" if at < len(content):
                content[at] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del content[at:]
            case "add":
                content[at:at] = draw(st.binary(min_size=1, max_size=16))
            case "remove":
                del content[at : at + draw(st.integers(1, 64))]
            case "number":
                width, order = draw(st.sampled_from(WIDTHS)), draw(st.sampled_from(("little", "big")))
                number = draw(st.sampled_from(NUMBERS)) % (1 << 8 * width)
                content[at : at + width] = number.to_bytes(width, order)  # type: ignore[arg-type]
            case "repeat":
                content[at:at] = content[at : at + draw(st.integers(1, 512))] * draw(st.integers(1, 20))
            case "zero":
                length = draw(st.integers(1, 64))
                content[at : at + length] = bytes(len(content[at : at + length]))
            case "move":
                other = draw(st.integers(0, len(content)))
                content[at : at + 8] = content[other : other + 8]
    return bytes(content)


HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 1 << 31, 1 << 63, 10**400, -(10**400), 0.5, 1e308, float("nan"), float("inf"),
    "", "x", "0", "\ud800", "\x1b[31m\a", "a\nb", "\0", "<script>alert(1)</script>", "../../x", "/etc/passwd",
    "%s{}$x$\\", "9" * 5000, [], {}, [[]], [None], {"": {}}, [1, "x"], {"epoch": []}, "x" * 100_000,
)  # fmt: skip
"""Values that no field expects, one for each way in which a reader may trust a field."""


def places(plain: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a JSON document, its own too."""
    yield path
    items = plain.items() if isinstance(plain, dict) else enumerate(plain) if isinstance(plain, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


@st.composite
def altered(draw: st.DrawFn, documents: list[Any]) -> Any:
    """One of the JSON documents with one to three values replaced, left out, moved or added."""
    plain = copy.deepcopy(draw(st.sampled_from(documents)))
    for _ in range(draw(st.integers(1, 3))):
        *parents, last = draw(st.sampled_from(list(places(plain))[1:] or [(None,)]))
        node = plain
        for key in parents:
            node = node[key]
        if last is None:
            return copy.deepcopy(draw(st.sampled_from(HOSTILE)))
        match draw(st.sampled_from(("replace", "replace", "replace", "leave out", "move", "add"))):
            case "replace":
                node[last] = copy.deepcopy(draw(st.sampled_from(HOSTILE)))
            case "leave out":
                del node[last]
            case "move":
                node[last] = copy.deepcopy(_at(plain, draw(st.sampled_from(list(places(plain))))))
            case "add" if isinstance(node, dict):
                name = draw(st.sampled_from(("kind", "x", "__class__", "../x", "")))
                node[name] = copy.deepcopy(draw(st.sampled_from(HOSTILE)))
    return plain


def _at(plain: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        plain = plain[key]
    return plain


def as_json(documents: list[Any]) -> st.SearchStrategy[bytes]:
    """The documents' text, their values altered, or their bytes."""
    texts = [json.dumps(each).encode() for each in documents]
    deep = [
        b"[" * 200_000,
        b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
        b"[" * 900 + b"]" * 900,
        b'{"a":' * 2_000 + b"1" + b"}" * 2_000,
        b"9" * 6000,
        b"\xff\xfe",
    ]
    plain = altered(documents).map(lambda each: json.dumps(each).encode())
    return st.one_of(plain, plain, damaged(texts), st.sampled_from(deep))


def as_lines(documents: list[Any]) -> st.SearchStrategy[bytes]:
    """A log of JSON lines, a line of it altered, or its bytes."""
    whole = b"".join(json.dumps(each).encode() + b"\n" for each in documents)

    def log(altered_line: bytes, at: int) -> bytes:
        lines = [json.dumps(each).encode() for each in documents]
        lines[at % len(lines)] = altered_line.replace(b"\n", b"")
        return b"\n".join(lines) + b"\n"

    return st.one_of(
        st.builds(log, as_json(documents), st.integers(0, 100)),
        damaged([whole]),
        st.permutations(documents * 2).map(lambda some: b"".join(json.dumps(each).encode() + b"\n" for each in some)),
    )


def answer(*argv: str) -> tuple[int, str]:
    """What the program prints on both streams, and its exit code.

    Raises:
        AssertionError: It had a bug, answered with a code that is none of `CODES`, or printed what moves a terminal.
    """
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors=how) for how in ("strict", "backslashreplace"))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(list(argv))
    printed = ""
    for stream in (out, err):
        stream.flush()
        printed += stream.buffer.getvalue().decode()  # type: ignore[attr-defined]
    assert "Traceback" not in printed, f"{argv}: {printed}"
    assert code in CODES, f"{argv} ended in {code}: {printed}"
    moving = {character for character in printed if not character.isprintable() and character not in "\n"}
    assert not moving, f"{argv} printed {moving}: {printed!r}"
    return code, printed
