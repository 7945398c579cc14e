"""What is the grammar of a compiled program? XLA's text of an optimised module, as computations of instructions."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

BITS = {"pred": 8, "token": 0, "opaque": 0}
_ARRAY = re.compile(r"([a-z]+[0-9]*(?:e[0-9]+m[0-9]+\w*)?)\[([0-9,<=?]*)\](\{[^}]*\})?")
_NAME = re.compile(r"\s*(?:ROOT )?%?([\w.~-]+) = ")
_OPCODE = re.compile(r" ?([\w-]+)\(")
_REFERENCE = re.compile(r"%([\w.~-]+)")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.~-]+)")
_BRANCHES = re.compile(r"\b(?:branch_computations|called_computations|calls)=\{([^}]*)\}")
_ALIAS = re.compile(r"\{([0-9]*)[0-9, ]*\}: \((\d+), \{\}")


class Array(NamedTuple):
    """The type of an array."""

    dtype: str
    """Element type, such as `f32`, `bf16`, `s32` or `pred`."""
    shape: tuple[int, ...]
    layout: str = ""

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes, without the padding of a layout."""
        digits = re.search(r"\d+", self.dtype)
        bits = BITS.get(self.dtype, int(digits[0]) if digits else 0)
        return self.size * bits // 8

    @property
    def is_float(self) -> bool:
        """Whether sums of such elements depend on their order."""
        return self.dtype[0] in "fc" or self.dtype.startswith("bf")


@dataclass(frozen=True)
class Instruction:
    """A line of a computation."""

    name: str
    op: str
    """Opcode, such as `fusion`, `dot` or `while`."""
    arrays: tuple[Array, ...]
    """The result: one array, or the arrays of a tuple."""
    operands: tuple[str, ...]
    attributes: str
    """Everything after the operands."""
    is_root: bool = False

    @property
    def result(self) -> Array:
        """The resulting array; for a tuple, the first."""
        return self.arrays[0] if self.arrays else Array("token", ())

    @property
    def nbytes(self) -> int:
        """Bytes of all results."""
        return sum(array.nbytes for array in self.arrays)

    @property
    def source(self) -> str:
        """The JAX operation that it comes from, such as `jit(train_steps)/while/body/dot_general`."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""

    @property
    def target(self) -> str:
        """The function that a `custom-call` calls."""
        found = re.search(r'custom_call_target="([^"]*)"', self.attributes)
        return found[1] if found else ""

    @property
    def called(self) -> tuple[str, ...]:
        """Names of the computations that it runs."""
        lists = [name for names in _BRANCHES.findall(self.attributes) for name in re.findall(r"[\w.~-]+", names)]
        return tuple(dict.fromkeys([*_CALLED.findall(self.attributes), *lists]))

    def called_as(self, role: str) -> str:
        """The computation in a role, such as `body`. Empty if there is none."""
        found = re.search(rf"\b{role}=%?([\w.~-]+)", self.attributes)
        return found[1] if found else ""

    @property
    def trip_count(self) -> int | None:
        """Number of iterations of a `while`, if the compiler knows it."""
        found = re.search(r'"known_trip_count":\{"n":"(\d+)"', self.attributes)
        return int(found[1]) if found else None


@dataclass
class Module:
    """A compiled program."""

    computations: dict[str, dict[str, Instruction]]
    """Computations by name. Each maps names to instructions, in their order."""
    entry: str
    aliased: frozenset[int]
    """Numbers of the outputs that reuse the memory of a donated argument."""
    parallel: frozenset[str] = field(default_factory=frozenset)

    def inside(self, computation: str) -> Iterator[Instruction]:
        """All instructions of a computation and of the computations that it calls, each once."""
        waiting, seen = [computation], {computation}
        while waiting:
            for each in self.computations.get(waiting.pop(), {}).values():
                yield each
                waiting += [name for name in each.called if name not in seen]
                seen |= {*each.called}

    def all(self) -> Iterator[Instruction]:
        """All instructions that the entry reaches."""
        return self.inside(self.entry)


def parse(text: str) -> Module:
    """Parse the text of `compiled.as_text()`.

    Args:
        text: XLA's text of the optimised module.
    """
    computations: dict[str, dict[str, Instruction]] = {}
    current: dict[str, Instruction] = {}
    entry = ""
    for line in text.splitlines():
        if line[:1] in ("%", "E") and line.endswith("{"):
            name = re.match(r"(?:ENTRY )?%?([\w.~-]+)", line)
            assert name
            current = computations[name[1]] = {}
            entry = name[1] if line.startswith("ENTRY") else entry
        elif instruction := _instruction(line):
            current[instruction.name] = instruction
    return Module(computations, entry, frozenset(int(output or 0) for output, _ in _ALIAS.findall(_aliases(text))))


def _aliases(text: str) -> str:
    header = text.partition("\n")[0]
    start = header.find("input_output_alias={")
    return "" if start < 0 else _balanced(header, start + len("input_output_alias="))


def _instruction(line: str) -> Instruction | None:
    named = _NAME.match(line)
    if not named:
        return None
    rest = line[named.end() :]
    kind = _balanced(rest, 0) if rest.startswith("(") else rest.partition(" ")[0]
    opcode = _OPCODE.match(rest, len(kind))
    if not opcode:
        return None
    operands = _balanced(rest, opcode.end() - 1)
    attributes = rest[opcode.end() - 1 + len(operands) :]
    if opcode[1] in ("constant", "parameter"):
        attributes, operands = operands + attributes, ""
    arrays = tuple(_array(found) for found in _ARRAY.finditer(re.sub(r"/\*.*?\*/", "", kind)))
    return Instruction(
        named[1], opcode[1], arrays, tuple(_REFERENCE.findall(operands)), attributes, line.lstrip().startswith("ROOT")
    )


def _array(found: re.Match[str]) -> Array:
    shape = tuple(int(re.sub(r"\D", "", number)) for number in found[2].split(",") if number)
    return Array(found[1], shape, found[3] or "")


def _balanced(text: str, start: int) -> str:
    """The text from the bracket at `start` to the matching bracket."""
    depth = 0
    for end in range(start, len(text)):
        depth += (text[end] in "({") - (text[end] in ")}")
        if depth == 0:
            return text[start : end + 1]
    return text[start:]
