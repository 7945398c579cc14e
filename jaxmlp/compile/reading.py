"""What does a compiled program do in an update? Its kernels, products, bytes and messages, read from the module."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from jaxmlp.compile.hlo import Array, Instruction, Module

FREE = {
    "add-dependency", "after-all", "bitcast", "constant", "domain", "get-dimension-size", "get-tuple-element",
    "iota", "opt-barrier", "parameter", "partition-id", "replica-id", "tuple",
}  # fmt: skip
"""Opcodes that compute nothing."""
LOOPS = {"while", "call", "conditional", "async-start"}
"""Opcodes that run other computations, whose instructions count."""
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
COPIES = {"copy", "copy-start", "slice-start"}
MARKS = {"AllocateBuffer", "AssumeGatherIndicesInBound", "ConcatBitcast", "Sharding", "annotate_device_placement"}
"""Targets of custom calls that run nothing."""
GEMMS = ("__cublas$", "__onednn$matmul", "__cublas$lt")
NAMES = {"float32": "f32", "float64": "f64", "float16": "f16", "bfloat16": "bf16", "bool": "pred"}


class Collective(NamedTuple):
    """A message between devices."""

    op: str
    arrays: tuple[Array, ...]
    """The result on each device."""
    devices: int
    """Number of devices in one group."""
    source: str
    """The JAX operation that it comes from."""
    reduces: str
    """Opcode with which an all-reduce combines values, such as `add`."""

    @property
    def received(self) -> int:
        """Smallest number of bytes that each device must receive.

        All-gather and all-to-all: (D-1)/D of the result. All-reduce: 2(D-1)/D of it. Reduce-scatter: D-1 results.
        """
        whole, others = sum(array.nbytes for array in self.arrays), self.devices - 1
        if self.op == "all-reduce":
            return 2 * whole * others // self.devices
        return whole * others if self.op == "reduce-scatter" else whole * others // self.devices


class Reading(NamedTuple):
    """An iteration of a program: an update, or a batch of an evaluation."""

    module: Module
    loop: Instruction | None
    """The loop over iterations. None if the compiler unrolled it, because there is only one iteration."""
    trip_count: int | None
    """Number of iterations. None if the compiler does not know it."""
    kernels: Counter[str]
    """Kernels per iteration, by kind: `fusions`, `library calls`, `products`, `others`, and `copies`."""
    flops: int
    """Multiplications and additions of products per iteration."""
    bytes: int
    """Bytes read and written in the device's memory per iteration."""
    large_bytes: int
    """Bytes of arrays that are larger than the cache."""
    collectives: tuple[Collective, ...]

    @property
    def kernels_per_turn(self) -> int:
        """Number of kernels without copies."""
        return sum(count for kind, count in self.kernels.items() if kind != "copies")


def read(module: Module, carried: Iterable[Any], cache_bytes: int = 0) -> Reading:
    """What one iteration of a program does.

    Args:
        module: The program.
        carried: Shapes of what its loop over iterations changes.
        cache_bytes: Arrays up to this size may stay in the device's cache between kernels.
    """
    loop = find_loop(module, carried)
    body = loop.called_as("body") if loop else module.entry
    kernels: Counter[str] = Counter()
    total = large = 0
    for times, each, computation in _executed(module, body):
        if kind := _kind(each):
            kernels[kind] += times
            moved = list(_moved(module, computation, each))
            total += times * sum(moved)
            large += times * sum(size for size in moved if size > cache_bytes)
    flops = sum(times * _flops(module, each, computation) for times, each, computation in _products(module, body))
    messages = tuple(collectives(module, body))
    return Reading(module, loop, _turns(module, loop), kernels, flops, total, large, messages)


def _turns(module: Module, loop: Instruction | None) -> int | None:
    """Number of iterations of the loop; 1 if the compiler unrolled it."""
    if loop:
        return trip_count(module, loop)
    return None if any(trip_count(module, each) is None for each in loops_of(module)) else 1


def find_loop(module: Module, carried: Iterable[Any]) -> Instruction | None:
    """The innermost loop that changes arrays of all these shapes. If there are only scalars, these count."""
    keys = [_key(leaf) for leaf in carried]
    wanted = Counter([key for key in keys if key[1] > 1] or keys)
    fitting = [
        loop
        for loop in loops_of(module)
        if wanted <= Counter((array.dtype, array.size) for array in changed(module, loop))
    ]
    return fitting[-1] if fitting else None


def _key(leaf: Any) -> tuple[str, int]:
    name = str(leaf.dtype)
    if found := re.fullmatch(r"(u?)int(\d+)", name):
        name = f"{'u' if found[1] else 's'}{found[2]}"
    return NAMES.get(name, name), math.prod(leaf.shape)


def loops_of(module: Module) -> Iterator[Instruction]:
    """The loops that the entry reaches, outer loops first."""
    waiting, seen = [module.entry], set[str]()
    while waiting:
        for each in module.computations.get(waiting.pop(0), {}).values():
            if each.op == "while":
                yield each
            if each.op in LOOPS or each.op == "fusion":
                waiting += [called for called in each.called if called not in seen]
                seen |= {*each.called}


def changed(module: Module, loop: Instruction) -> list[Array]:
    """The arrays that an iteration of the loop changes. The others pass through."""
    body = module.computations[loop.called_as("body")]
    root = next(each for each in body.values() if each.is_root)
    return [
        array for number, array in enumerate(loop.arrays) if not _reads(body, body.get(root.operands[number]), number)
    ]


def _reads(body: dict[str, Instruction], value: Instruction | None, number: int) -> bool:
    """Whether a value is the one with which the iteration began at this index."""
    if value is None or value.op != "get-tuple-element" or f"index={number}" not in re.split(r"[, ]", value.attributes):
        return False
    return body[value.operands[0]].op == "parameter"


def trip_count(module: Module, loop: Instruction) -> int | None:
    """Number of iterations of a loop, if the program says it: by the compiler's note, or by constant bounds."""
    if loop.trip_count is not None:
        return loop.trip_count
    condition = module.computations.get(loop.called_as("condition"), {})
    root = next((each for each in condition.values() if each.is_root), None)
    if root is None or root.op != "compare" or "direction=LT" not in root.attributes:
        return None
    counter, bound = (condition.get(name) for name in root.operands)
    start = _initial(module, loop, counter)
    stop = _constant(bound)
    if stop is None and bound is not None:
        stop = _initial(module, loop, bound)
    return stop - start if start is not None and stop is not None else None


def _initial(module: Module, loop: Instruction, element: Instruction | None) -> int | None:
    """The constant with which a loop begins at the index that `element` reads."""
    found = re.search(r"index=(\d+)", element.attributes) if element and element.op == "get-tuple-element" else None
    around = next(each for each in module.computations.values() if each.get(loop.name) is loop)
    given = around.get(loop.operands[0]) if found else None
    if not found or given is None or given.op != "tuple":
        return None
    value = around.get(given.operands[int(found[1])])
    while value is not None and value.op in ("copy", "bitcast", "copy-done", "copy-start"):
        value = around.get(value.operands[0])
    return _constant(value)


def _constant(instruction: Instruction | None) -> int | None:
    found = re.match(r"\((-?\d+)\)", instruction.attributes) if instruction and instruction.op == "constant" else None
    return int(found[1]) if found else None


def _executed(module: Module, computation: str, times: int = 1) -> Iterator[tuple[int, Instruction, str]]:
    """All instructions that run, with their number of runs per iteration.

    The body of a loop of unknown length counts once.
    """
    for each in module.computations.get(computation, {}).values():
        if each.op == "while":
            yield from _executed(module, each.called_as("body"), times * (trip_count(module, each) or 1))
        elif each.op in LOOPS:
            for called in each.called:
                yield from _executed(module, called, times)
        else:
            yield times, each, computation


def _kind(each: Instruction) -> str | None:
    """The kind of kernel that an instruction is."""
    if each.op in FREE or each.op.endswith(("-done", "-update")) or is_collective(each) or each.target in MARKS:
        return None
    if each.op in COPIES:
        return "copies" if each.result.size > 1 else None
    if each.op == "fusion":
        return "fusions"
    if each.op == "custom-call":
        return "library calls"
    if each.op in ("dot", "convolution"):
        return "products"
    return "others" if each.result.size > 1 else None


def is_collective(each: Instruction) -> bool:
    """Whether it is a message between devices. Of an asynchronous message, only the start counts."""
    return each.op.removesuffix("-start") in COLLECTIVES


def _moved(module: Module, computation: str, each: Instruction) -> Iterator[int]:
    """Bytes of each array that a kernel reads or writes in the device's memory."""
    around = module.computations[computation]
    if each.op in COPIES:
        target = each.arrays[each.op == "slice-start"]
        ends = (around[each.operands[0]].result, target)
        yield from (target.nbytes for end in ends if not on_chip(end))
        return
    inside = module.computations.get(each.called[0], {}) if each.op == "fusion" else {}
    parameters = {int(found[1]): name for name, item in inside.items() if item.op == "parameter"
                  and (found := re.match(r"\((\d+)\)", item.attributes))}  # fmt: skip
    for number, name in enumerate(each.operands):
        if name in around and not on_chip(around[name].result):
            whole = around[name].nbytes if around[name].op != "tuple" else 0
            yield min(
                whole, _read_part(inside, parameters.get(number), whole) if inside else _sliced(each, number, whole)
            )
    root = next((item for item in inside.values() if item.is_root), each)
    if root.op == "dynamic-update-slice" and (around if root is each else inside).get(root.operands[1]):
        yield (around if root is each else inside)[root.operands[1]].nbytes
    else:
        yield sum(array.nbytes for array in each.arrays if not on_chip(array))


def on_chip(array: Array) -> bool:
    """Whether the array lies in on-chip memory, which a TPU's compiler manages."""
    return bool(re.search(r"S\([1-9]\d*\)", array.layout))


def _sliced(each: Instruction, number: int, whole: int) -> int:
    if each.op in ("dynamic-slice", "gather") and number == 0:
        return each.nbytes
    return 0 if each.op == "dynamic-update-slice" and number == 0 else whole


def _read_part(inside: dict[str, Instruction], parameter: str | None, whole: int) -> int:
    """Bytes that a fusion reads of a parameter: the rows that it gathers, or everything."""
    if parameter is None:
        return whole
    users = [item for item in inside.values() if parameter in item.operands]
    if not all(item.op in ("dynamic-slice", "gather", "dynamic-update-slice") for item in users):
        return whole
    return sum(_sliced(item, item.operands.index(parameter), whole) for item in users)


def _products(module: Module, computation: str, times: int = 1) -> Iterator[tuple[int, Instruction, str]]:
    """All products that run, including those inside fusions."""
    for count, each, around in _executed(module, computation, times):
        if each.op in ("dot", "convolution") or each.target.startswith((*GEMMS, "__cudnn$conv")):
            yield count, each, around
        elif each.op in ("fusion", "custom-call"):
            for called in each.called:
                yield from _products(module, called, count)


def _flops(module: Module, each: Instruction, computation: str) -> int:
    around = module.computations[computation]
    left, right = (around[name].result for name in each.operands[:2])
    output = each.result  # A library's workspace follows it in the tuple.
    if each.op == "convolution":
        spread = re.search(r"lhs_dilate=([\dx]+)", each.attributes)
        zeros = math.prod(map(int, spread[1].split("x"))) if spread else 1
        return 2 * output.size * _per_output(right, each) // zeros
    if each.target.startswith("__cudnn$conv"):
        kernel = {"Filter": output, "Input": right}.get(each.target.removeprefix("__cudnn$convBackward"), right)
        result = left if each.target == "__cudnn$convBackwardInput" else right if "Filter" in each.target else output
        return 2 * result.size * _per_output(kernel, each)
    if each.op == "dot":
        found = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", each.attributes)
        contracted = [int(axis) for axis in found[1].split(",") if axis] if found else []
    else:
        found = re.search(r'"lhs_contracting_dimensions":(\[[^\]]*\])', each.attributes)
        contracted = [int(axis) for axis in json.loads(found[1])] if found else []
    return 2 * output.size * math.prod(left.shape[axis] for axis in contracted)


def _per_output(kernel: Array, each: Instruction) -> int:
    """Multiplications of a convolution per output element: the product of all kernel axes except the outputs."""
    labels = re.search(r"dim_labels=\w+_(\w+)->", each.attributes)
    assert labels
    return math.prod(size for size, label in zip(kernel.shape, labels[1], strict=True) if label != "o")


def collectives(module: Module, computation: str) -> Iterator[Collective]:
    """The messages between devices in a computation, repeated as often as they are sent."""
    for times, each, _ in _executed(module, computation):
        found = [each] if is_collective(each) else [
            item for name in each.called if each.op == "fusion" for item in module.inside(name) if is_collective(item)
        ]  # fmt: skip
        for item in found:
            yield from [_collective(module, item)] * times


def _collective(module: Module, each: Instruction) -> Collective:
    op = each.op.removesuffix("-start")
    arrays = each.arrays[len(each.arrays) // 2 :] if each.op.endswith("-start") and op != "all-reduce" else each.arrays
    joined = module.computations.get(each.called_as("to_apply"), {})
    reduces = next((item.op for item in joined.values() if item.is_root), "")
    return Collective(op, arrays, _group_size(each.attributes), each.source, reduces)


def _group_size(attributes: str) -> int:
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        return math.prod(int(sizes[name]) for name in re.findall(r"'(\w+)'", found[2]))
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]", attributes):
        return int(found[2])
    if found := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
        return len(found[1].split(","))
    return 1 + len(re.findall(r"\{\d+,\d+\}", attributes)) if "source_target_pairs" in attributes else 1
