"""What are the right values? NumPy evaluates the operations of the rules one by one, without XLA.

NumPy's float32 +, - and * round once each, as IEEE 754 defines, and its integers are exact.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from jaxmlp.portable.evaluation import STRUCTURE, branch_of, call, called, cond, literal
from jaxmlp.portable.text import THE_SAME

Values = Sequence[np.ndarray]


def right(jaxpr: Any, consts: Values, values: Values) -> list[np.ndarray]:
    """The results of a jaxpr that consists of such operations. Random keys are given as words, uint32 `[..., 2]`.

    Raises:
        NotImplementedError: The jaxpr has another primitive, which the message names.
    """
    return walk(jaxpr, consts, values, right_of)


def walk(
    jaxpr: Any, consts: Values, values: Values, visit: Callable[[Any, list[np.ndarray]], list[np.ndarray]]
) -> list[np.ndarray]:
    """The results of a jaxpr. `visit(equation, values)` returns those of each equation.

    Calls and branches are walked into.
    """
    env: dict[Any, np.ndarray] = {}

    def read(atom: Any) -> np.ndarray:
        return literal(atom) if isinstance(atom, core.Literal) else env[atom]

    env.update(zip(jaxpr.constvars, map(np.asarray, consts), strict=True))
    env.update(zip(jaxpr.invars, values, strict=True))
    for eqn in jaxpr.eqns:
        operands = [read(atom) for atom in eqn.invars]
        rule = STRUCTURE.get(eqn.primitive.name)
        if rule is call:
            results = walk(*called(eqn), operands, visit)
        elif rule is cond:
            branch = branch_of(eqn, operands[0])
            results = walk(branch.jaxpr, branch.consts, operands[1:], visit)
        else:
            results = visit(eqn, operands)
        env.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def right_of(eqn: Any, values: Values) -> list[np.ndarray]:
    """The results of one equation, of a call too. Loops have no operation here."""
    name = eqn.primitive.name
    if STRUCTURE.get(name) is call:
        return right(*called(eqn), values)
    if name not in OPERATIONS:
        raise NotImplementedError(f"NumPy's evaluation has no {name}")
    with np.errstate(all="ignore"):
        results = OPERATIONS[name](eqn.params, *values)
    if not eqn.primitive.multiple_results:
        results = [results]
    return [_shaped(result, var.aval) for result, var in zip(results, eqn.outvars, strict=True)]


def _shaped(result: Any, aval: Any) -> np.ndarray:
    dtype, shape = (np.uint32, (*aval.shape, 2)) if is_key(aval) else (aval.dtype, aval.shape)
    return np.broadcast_to(np.asarray(result, dtype), shape)


def is_key(aval: Any) -> bool:
    """Whether values of this type are random keys."""
    return bool(jnp.issubdtype(aval.dtype, jax.dtypes.prng_key))


def threefry(key: Values, count: Values) -> tuple[np.ndarray, np.ndarray]:
    """Two words for each counter, under a key of two words. Source: Salmon et al. 2011, Threefry-2x32, 20 rounds."""
    schedule = [*key, key[0] ^ key[1] ^ np.uint32(0x1BD11BDA)]
    x, y = count[0] + schedule[0], count[1] + schedule[1]
    for i in range(5):
        for turn in ((13, 15, 26, 6), (17, 29, 16, 24))[i % 2]:
            x = x + y
            y = ((y << np.uint32(turn)) | (y >> np.uint32(32 - turn))) ^ x
        x, y = x + schedule[(i + 1) % 3], y + schedule[(i + 2) % 3] + np.uint32(i + 1)
    return x, y


def _words(key: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return key[..., 0], key[..., 1]


def _seed(params: Any, seed: np.ndarray) -> np.ndarray:
    return np.stack([np.zeros_like(seed, np.uint32), seed.astype(np.uint32)], -1)


def _fold_in(params: Any, key: np.ndarray, data: np.ndarray) -> np.ndarray:
    return np.stack(threefry(_words(key), (np.zeros_like(data, np.uint32), data.astype(np.uint32))), -1)


def _random_bits(params: Any, key: np.ndarray) -> np.ndarray:
    shape = params["shape"]
    count = np.arange(int(np.prod(shape)), dtype=np.uint32).reshape(shape)
    x, y = threefry(_words(key), (np.zeros_like(count), count))
    words: np.ndarray = (x ^ y).astype(f"u{params['bit_width'] // 8}")
    return words


def _convert(params: Any, x: np.ndarray) -> np.ndarray:
    dtype = np.dtype(params["new_dtype"])
    if x.dtype.kind == "f" and dtype.kind in "iu":
        return np.trunc(x).astype(np.int64).astype(dtype)
    return x.astype(dtype)


def _dot_general(params: Any, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Products of integers, in float64, which is exact below 2^53."""
    ((contracted_x, contracted_y), (batch_x, batch_y)) = params["dimension_numbers"]
    parts = []
    for value, batch, contracted in ((x, batch_x, contracted_x), (y, batch_y, contracted_y)):
        free = [i for i in range(value.ndim) if i not in (*batch, *contracted)]
        sizes = [[value.shape[i] for i in axes] for axes in (batch, free, contracted)]
        turned = value.transpose(*batch, *free, *contracted).astype(np.float64)
        parts.append((turned.reshape(*(int(np.prod(size)) for size in sizes)), sizes))
    (left, (batch, rows, _)), (other, (_, columns, _)) = parts
    product: np.ndarray = (left @ other.transpose(0, 2, 1)).reshape(*batch, *rows, *columns)
    return product


def _gather(params: Any, x: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Slices of x. Slices outside x are clipped into it, or filled."""
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    if numbers.operand_batching_dims:
        raise NotImplementedError("NumPy's evaluation has no gather with batches")
    starts = np.zeros((*indices.shape[:-1], x.ndim), np.int64)
    starts[..., list(numbers.start_index_map)] = indices
    most = np.asarray(x.shape) - sizes
    inside = np.all((starts >= 0) & (starts <= most), -1)
    starts = np.clip(starts, 0, most)
    kept = [i for i in range(x.ndim) if i not in numbers.collapsed_slice_dims]
    lead = starts.ndim - 1
    places = []
    for i in range(x.ndim):
        within = np.arange(sizes[i]) if i in kept else np.zeros((), np.int64)
        shape = [1] * (lead + len(kept))
        if i in kept:
            shape[lead + kept.index(i)] = sizes[i]
        places.append(starts[..., i].reshape(*starts.shape[:-1], *[1] * len(kept)) + within.reshape(shape))
    found: np.ndarray = x[tuple(places)]
    if params["mode"] == jax.lax.GatherScatterMode.FILL_OR_DROP:
        fill = params["fill_value"]
        fill = fill if fill is not None else (np.nan if x.dtype.kind == "f" else np.iinfo(x.dtype).min)
        found = np.where(inside.reshape(*inside.shape, *[1] * len(kept)), found, np.asarray(fill, x.dtype))
    order = iter(range(lead))
    slices = iter(range(lead, found.ndim))
    turned: np.ndarray = found.transpose(
        [next(slices) if i in numbers.offset_dims else next(order) for i in range(found.ndim)]
    )
    return turned


def _at(x: np.ndarray, starts: Values, sizes: Sequence[int]) -> tuple[slice, ...]:
    """The position of a slice, shifted to lie inside x."""
    first = [min(max(int(start), 0), whole - size) for start, whole, size in zip(starts, x.shape, sizes, strict=True)]
    return tuple(slice(start, start + size) for start, size in zip(first, sizes, strict=True))


def _update(params: Any, x: np.ndarray, update: np.ndarray, *starts: np.ndarray) -> np.ndarray:
    found = x.copy()
    found[_at(x, starts, update.shape)] = update
    return found


def _pad(params: Any, x: np.ndarray, fill: np.ndarray) -> np.ndarray:
    config = params["padding_config"]
    sizes = [size + max(size - 1, 0) * inner for size, (_, _, inner) in zip(x.shape, config, strict=True)]
    spread = np.full(sizes, fill, x.dtype)
    spread[tuple(slice(None, None, inner + 1) for _, _, inner in config)] = x
    ends = zip(sizes, config, strict=True)
    cut = spread[tuple(slice(max(-low, 0), size + min(high, 0)) for size, (low, high, _) in ends)]
    return np.pad(cut, [(max(low, 0), max(high, 0)) for low, high, _ in config], constant_values=fill)


def _split(params: Any, x: np.ndarray) -> list[np.ndarray]:
    return np.split(x, np.cumsum(params["sizes"])[:-1], params["axis"])


def _sort(params: Any, *values: np.ndarray) -> list[np.ndarray]:
    axis, keys = params["dimension"], values[: params["num_keys"]]
    places = np.lexsort([np.moveaxis(key, axis, -1) for key in reversed(keys)], axis=-1)
    return [np.take_along_axis(value, np.moveaxis(places, -1, axis), axis) for value in values]


def _shift(signed: bool) -> Callable[..., np.ndarray]:
    def shifted(params: Any, x: np.ndarray, by: np.ndarray) -> np.ndarray:
        kind = f"{'i' if signed else 'u'}{x.dtype.itemsize}"
        moved: np.ndarray = (x.view(kind) >> by.astype(kind)).view(x.dtype)
        return moved

    return shifted


def _reduced(function: Any, x: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    found: np.ndarray = function(x, axis=tuple(axes))
    return found


def _broadcast_in_dim(params: Any, x: np.ndarray) -> np.ndarray:
    shape = [1] * len(params["shape"])
    for size, axis in zip(x.shape, params["broadcast_dimensions"], strict=True):
        shape[axis] = size
    return np.broadcast_to(x.reshape(shape), params["shape"])


def _operations() -> dict[str, Callable[..., Any]]:
    plain: dict[str, Any] = {
        "add": np.add, "add_any": np.add, "sub": np.subtract, "mul": np.multiply, "and": np.bitwise_and,
        "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.invert, "neg": np.negative, "abs": np.abs,
        "sign": np.sign, "max": np.maximum, "min": np.minimum, "eq": np.equal, "ne": np.not_equal, "lt": np.less,
        "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    }  # fmt: skip
    found: dict[str, Callable[..., Any]] = {
        name: functools.partial(lambda function, params, *values: function(*values), function)
        for name, function in plain.items()
    }
    for name in (*THE_SAME, "random_unwrap", "random_wrap"):
        found[name] = lambda params, x: x
    found["optimization_barrier"] = found["device_put"] = lambda params, *values: values
    for name, function in (("max", np.max), ("min", np.min), ("and", np.all), ("or", np.any)):
        found[f"reduce_{name}"] = functools.partial(
            lambda function, params, x: _reduced(function, x, params["axes"]), function
        )
    return found | {
        "argmax": lambda params, x: np.argmax(x, axis=params["axes"][0]),
        "argmin": lambda params, x: np.argmin(x, axis=params["axes"][0]),
        "bitcast_convert_type": lambda params, x: np.ascontiguousarray(x).view(params["new_dtype"]).reshape(x.shape),
        "broadcast_in_dim": _broadcast_in_dim,
        "clamp": lambda params, least, x, most: np.minimum(np.maximum(x, least), most),
        "concatenate": lambda params, *values: np.concatenate(values, params["dimension"]),
        "convert_element_type": _convert,
        "dot_general": _dot_general,
        "dynamic_slice": lambda params, x, *starts: x[_at(x, starts, params["slice_sizes"])],
        "dynamic_update_slice": _update,
        "gather": _gather,
        "iota": lambda params: np.arange(params["shape"][params["dimension"]]).reshape(
            [size if i == params["dimension"] else 1 for i, size in enumerate(params["shape"])]
        ),
        "pad": _pad,
        "random_bits": _random_bits,
        "random_fold_in": _fold_in,
        "random_seed": _seed,
        "reduce_sum": lambda params, x: x.sum(tuple(params["axes"]), dtype=x.dtype),
        "reshape": lambda params, x: x.reshape(params["new_sizes"]),
        "rev": lambda params, x: np.flip(x, params["dimensions"]),
        "select_n": lambda params, which, *cases: np.choose(which.astype(np.int32), cases),
        "shift_left": lambda params, x, by: x << by,
        "shift_right_arithmetic": _shift(True),
        "shift_right_logical": _shift(False),
        "slice": lambda params, x: x[
            tuple(map(slice, params["start_indices"], params["limit_indices"], params["strides"] or [None] * x.ndim))
        ],
        "sort": _sort,
        "split": _split,
        "stack": lambda params, *values: np.stack(values, params["axis"]),
        "squeeze": lambda params, x: x.squeeze(tuple(params["dimensions"])),
        "threefry2x32": lambda params, a, b, c, d: threefry((a, b), (c, d)),
        "transpose": lambda params, x: x.transpose(params["permutation"]),
        "unstack": lambda params, x: list(np.moveaxis(x, params["axis"], 0)),
    }  # fmt: skip


OPERATIONS = _operations()
"""operation(parameters, *values) -> the result, or several results."""
