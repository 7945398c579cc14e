"""What does a program need, counted from its jaxpr without a compiler?

Temporaries are counted as for a simple compiler. A value is written to memory if a product, a sum, a gather or another
whole operation reads or writes it. Elementwise values in between are not written. A value lives from its operation to
the last operation that reads it.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
from jax.extend.core import Literal as Constant
from jax.interpreters.partial_eval import dce_jaxpr

from jaxmlp.compile.program import Program
from jaxmlp.engine import network

Platform: TypeAlias = Literal["cpu", "gpu", "tpu"]
INLINED = {
    "checkpoint", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "jit", "pjit", "remat2",
    "shard_map",
}  # fmt: skip
"""Primitives that stand for the operations inside them."""
ELEMENTWISE = {
    "abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan", "atan2", "atanh",
    "bitcast_convert_type", "broadcast_in_dim", "cbrt", "ceil", "clamp", "convert_element_type", "copy", "copy_p",
    "cos", "cosh", "digamma", "div", "eq", "eq_to", "erf", "erf_inv", "erfc", "exp", "exp2", "expand_dims",
    "expm1", "floor", "ge", "gt", "imag", "integer_pow", "iota", "is_finite", "le", "lgamma", "log", "log1p",
    "logistic", "lt", "max", "min", "mul", "mul_no_nan", "ne", "neg", "nextafter", "not", "or", "pad",
    "population_count", "pow", "pvary", "random_fold_in", "random_seed", "random_unwrap", "random_wrap", "real",
    "reduce_precision", "rem", "reshape", "rev", "round", "rsqrt", "select_n", "shift_left",
    "shift_right_arithmetic", "shift_right_logical", "sign", "sin", "sinh", "slice", "sqrt", "square", "squeeze",
    "stop_gradient", "sub", "tan", "tanh", "transpose", "xor",
}  # fmt: skip
"""Primitives whose results a compiler need not write to memory."""
VIEWS = {"transpose", "reshape", "squeeze", "expand_dims", "broadcast_in_dim"}
"""Primitives that a product reads through."""
PRODUCTS = {"dot_general", "conv_general_dilated"}
RANDOM = {"random_bits", "threefry2x32", "random_split"}
THREEFRY_ON_CPU = 6
"""Arrays of the result's length that XLA's loop over threefry's rounds holds on a CPU: counters, numbers, and
copies."""
GPU_WORKSPACE = 4 << 20
"""Bytes that XLA gives cuBLAS besides a product's own arrays."""
TILE = (8, 128)
"""Tile of the last two dimensions in a TPU's memory. Source: "Pallas TPU details", JAX's documentation."""


class Memory(NamedTuple):
    """Bytes on each device."""

    arguments: int
    outputs: int
    """Bytes of outputs, without those that reuse the memory of donated arguments."""
    temporaries: int
    code: int | None = None
    """Bytes of the code. None if unknown."""

    @property
    def without_code(self) -> int:
        """Bytes of all arrays together."""
        return self.arguments + self.outputs + self.temporaries

    @property
    def total(self) -> int:
        """Bytes of all arrays, and of the code if known."""
        return self.without_code + (self.code or 0)


def memory(program: Program, platform: Platform) -> Memory:
    """The memory that a program needs on each of its devices.

    Args:
        program: The traced program.
        platform: Platform whose compiler is imitated.
    """
    jaxpr = program.traced.jaxpr.jaxpr
    arguments = sum(padded(leaf.shape, leaf.dtype, platform) for leaf in program.arguments)
    outputs = sum(padded(leaf.shape, leaf.dtype, platform) for leaf in program.outputs[program.donated :])
    return Memory(arguments, outputs, _Graph.of(jaxpr, platform).peak())


def products(program: Program) -> int:
    """Multiplications and additions of products in one iteration, on each device."""
    return network.flops(turn(program.traced.jaxpr, program.carried))


def turn(jaxpr: Any, carried: Sequence[Any]) -> Any:
    """The body of the innermost loop that carries arrays of all these shapes.

    Without such a loop, the whole program.
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    wanted = Counter((leaf.dtype, leaf.size) for leaf in carried)
    for equation in jaxpr.eqns:
        for inner in _inner(equation):
            found = turn(inner, carried)
            if found is not inner:
                return found
            carries = Counter((var.aval.dtype, var.aval.size) for var in equation.outvars)
            if equation.primitive.name in ("while", "scan") and wanted <= carries:
                return inner
    return jaxpr


def padded(shape: Sequence[int], dtype: Any, platform: Platform) -> int:
    """Bytes of an array. On a TPU, with padding to whole tiles, in the order of dimensions with the least padding."""
    itemsize, size = getattr(dtype, "itemsize", 4), math.prod(shape)
    if platform != "tpu":
        return size * itemsize
    if len(shape) < 2:
        return -(-max(1, size) // TILE[1]) * TILE[1] * itemsize
    waste = min(
        (
            -(-second // TILE[0]) * TILE[0] * -(-last // TILE[1]) * TILE[1] / (second * last)
            for second, last in itertools.permutations(shape, 2)
            if second * last
        ),
        default=1,
    )
    return round(size * waste) * itemsize


@dataclass
class _Node:
    """A value: its bytes, its inputs, and the memory for making it."""

    nbytes: int
    inputs: Sequence[_Node] = ()
    primitive: str = ""
    inside: int = 0
    """Peak memory of the loop or branch that makes the value."""
    users: list[_Node] = field(default_factory=list)
    position: int = -1
    """Position in the program; -1 for the program's inputs."""
    in_place: bool = False
    """Whether the value reuses the memory of an argument or of a loop's carry."""
    is_fenced: bool = False
    """Whether an optimization barrier separates the value from its readers."""


class _Graph:
    """The operations of a jaxpr, including the functions that it calls."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self.nodes: list[_Node] = []

    @classmethod
    def of(cls, jaxpr: Any, platform: Platform) -> _Graph:
        jaxpr, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
        graph = cls(platform)
        for node in graph._add(jaxpr, [_Node(0) for _ in jaxpr.invars]):
            node.in_place = True
        return graph

    def _add(self, jaxpr: Any, arguments: Sequence[_Node]) -> list[_Node]:
        known: dict[Any, _Node] = dict(zip(jaxpr.invars, arguments, strict=True))
        known |= {var: _Node(0) for var in jaxpr.constvars}

        def read(var: Any) -> _Node:
            return _Node(0) if isinstance(var, Constant) else known[var]

        for equation in jaxpr.eqns:
            inputs = [read(var) for var in equation.invars]
            name = equation.primitive.name
            inner = list(_inner(equation))
            if name in INLINED and inner:
                body = inner[0]
                made = self._add(body, inputs[len(inputs) - len(body.invars) :])
            elif platforms := equation.params.get("branches_platforms"):
                body = inner[next(n for n, own in enumerate(platforms) if own is None or self.platform in own)]
                made = self._add(body, inputs[1:])
            elif name == "optimization_barrier":
                made = inputs
                for each in inputs:
                    each.is_fenced = True
            else:
                made = self._make(equation, inputs, inner)
            known |= dict(zip(equation.outvars, made, strict=True))
        return [read(var) for var in jaxpr.outvars]

    def _make(self, equation: Any, inputs: list[_Node], inner: list[Any]) -> list[_Node]:
        """The results of an operation. Values carried by a loop stay where they began."""
        name, params = equation.primitive.name, equation.params
        inside = max((_Graph.of(body, self.platform).peak() for body in inner), default=0)
        carried: list[_Node] = []
        if name == "while":
            carried = inputs[params["cond_nconsts"] + params["body_nconsts"] :]
        elif name == "scan":
            carried = inputs[_scan_consts(equation, inner[0]) :][: _scan_carries(equation, inner[0])]
        new = [
            _Node(padded(var.aval.shape, var.aval.dtype, self.platform), inputs, name)
            for var in equation.outvars[len(carried) :]
        ]
        new = new or [_Node(0, inputs, name)]
        if name in RANDOM and self.platform == "cpu":
            inside = THREEFRY_ON_CPU * sum(each.nbytes for each in new)
        elif name in PRODUCTS and self.platform == "gpu":
            inside = GPU_WORKSPACE
        new[0].inside = inside
        for each in new:
            each.position = len(self.nodes)
            self.nodes.append(each)
        for each in inputs:
            each.users += new
        return [*carried, *new][: len(equation.outvars)]

    def _is_light(self, node: _Node) -> bool:
        """Whether the value is computed where it is read."""
        if node.primitive in RANDOM | {"concatenate"}:
            return self.platform != "cpu"
        if node.primitive in PRODUCTS and self.platform == "tpu":
            # A TPU updates a parameter where it computes the gradient. A GPU updates it right afterwards.
            return not node.in_place and all(self._ends_in_place(user) for user in node.users)
        return node.primitive in ELEMENTWISE

    def _ends_in_place(self, node: _Node) -> bool:
        if node.is_fenced or node.primitive not in ELEMENTWISE:
            return False
        return node.in_place or (bool(node.users) and all(self._ends_in_place(user) for user in node.users))

    def _is_stored(self, node: _Node) -> bool:
        """Whether the value is written to memory."""
        if node.is_fenced or not self._is_light(node):
            return True
        if self.platform == "tpu" and self._only_multiplied(node):
            return False
        through = node.primitive in VIEWS
        return any(self._reads_whole(user) and not (through and user.primitive in PRODUCTS) for user in node.users)

    def _only_multiplied(self, node: _Node) -> bool:
        """Whether a single product reads the value, so that a TPU computes it there."""
        (user, *others) = node.users or [_Node(0)]
        through = user.primitive in VIEWS and self._only_multiplied(user)
        return not others and (user.primitive in PRODUCTS or through)

    def _reads_whole(self, node: _Node) -> bool:
        """Whether the operation, or the operation that reads through it, needs its input in memory."""
        if node.primitive in VIEWS and self._is_light(node):
            return any(self._reads_whole(user) for user in node.users)
        return not self._is_light(node)

    def peak(self) -> int:
        """Peak bytes of temporaries."""
        stored = {id(node) for node in self.nodes if not node.in_place and self._is_stored(node)}
        last: dict[int, int] = {}
        for node in reversed(self.nodes):
            reads = [
                user.position if user.primitive in PRODUCTS or id(user) in stored or user.in_place else last[id(user)]
                for user in node.users
            ]
            at_once = self.platform != "cpu" and bool(node.users) and all(map(self._ends_in_place, node.users))
            last[id(node)] = node.position if at_once else max(reads, default=node.position)
        changes = [0] * (len(self.nodes) + 2)
        for node in self.nodes:
            if id(node) in stored:
                changes[node.position] += node.nbytes
                changes[last[id(node)] + 1] -= node.nbytes
        live = list(itertools.accumulate(changes))
        return max((live[node.position] + node.inside for node in self.nodes), default=0)


def _scan_carries(equation: Any, body: Any) -> int:
    """Number of values that a scan carries: its first results, which have no axis of iterations."""
    alike = [out.aval.shape == made.aval.shape for out, made in zip(equation.outvars, body.outvars, strict=True)]
    return [*alike, False].index(False)


def _scan_consts(equation: Any, body: Any) -> int:
    """Number of values that each iteration of a scan reads whole: neither carried nor sliced."""
    alike = [var.aval.shape == read.aval.shape for var, read in zip(equation.invars, body.invars, strict=True)]
    return alike.count(True) - _scan_carries(equation, body)


def _inner(equation: Any) -> Iterator[Any]:
    """The jaxprs of an equation. For a loop, only the body."""
    params = equation.params
    if equation.primitive.name == "while":
        params = {"body_jaxpr": params["body_jaxpr"]}
    for leaf in jax.tree.leaves(params, is_leaf=lambda value: hasattr(value, "eqns") or hasattr(value, "jaxpr")):
        if hasattr(leaf, "eqns") or hasattr(leaf, "jaxpr"):
            yield getattr(leaf, "jaxpr", leaf)
