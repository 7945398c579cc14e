"""Plants faults in the quickstart's update, and asks whether they are found: `planted_faults.py [COUNT] [transient]`.

A fault is a primitive that, for operands of given types, always returns one wrong bit at one place. It is planted in
the compiled program of the whole update, by an argument that says which bit of which primitive, so that one compilation
serves all faults. `make test-planted` plants 1,000.

A transient fault is one wrong bit in the result of one equation in one update. It is found if it reaches the state
after that update, for that is what a burn-in compares.
"""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmlp import data
from jaxmlp.portable import evaluation
from jaxmlp.portable.arithmetic import Arithmetic
from jaxmlp.portable.right import is_key, right_of
from jaxmlp.portable.text import type_of
from jaxmlp.proof import blame, right_bits
from jaxmlp.proof.training import Training
from jaxmlp.run.digest import digest
from jaxmlp.system import runtime

UPDATES = 3
"""After which a fault that the digests do not show counts as masked."""


def signature(eqn: Any) -> str:
    """What a fault is of: a primitive and the types of its operands."""
    return " ".join([eqn.primitive.name, *(type_of(atom.aval) for atom in eqn.invars)])


def flipped(x: Any, place: Any, bit: Any, here: Any) -> Any:
    """The array with one other bit at one place, where the fault is `here`."""
    flat = x.reshape(-1)
    hit = (jnp.arange(flat.size, dtype=np.int32) == place) & here
    if x.dtype == np.bool_:
        return (flat ^ hit).reshape(x.shape)
    unsigned = np.dtype(f"u{x.dtype.itemsize}")
    whole = lax.bitcast_convert_type(flat, unsigned)
    mask = hit.astype(unsigned) << bit.astype(unsigned)
    return lax.bitcast_convert_type(whole ^ mask, x.dtype).reshape(x.shape)


class Planted:
    """The update of the golden quickstart, with room for a fault: in a primitive, or in one equation alone."""

    def __init__(self, *, alone: bool = False) -> None:
        self.alone = alone
        golden = right_bits.read("quickstart")
        dataset = data.load(right_bits.GOLDEN["quickstart"].data)
        training = Training(right_bits.GOLDEN["quickstart"], dataset, devices=1)
        self.golden, self.config = golden.states, training.on_data
        self.states = list(right_bits.states(training, UPDATES))
        self.batches = [right_bits.batch_of(training, dataset, update) for update in range(1, UPDATES + 1)]
        self.closed, _ = blame.program_of(self.config, self.states[0], self.batches[0])
        self.tree = jax.tree.structure(self.states[0])
        self.outputs: dict[str, Any] = {}
        """The type of the first result, by what a fault is of."""
        self.number: dict[str, int] = {}
        self.update = jax.jit(self.faulty)
        self.right: dict[Any, Any] = {}
        self.harmful = False
        """Whether the last fault changed a value: the sign of a zero is none."""

    def faulty(self, zero: Any, which: Any, place: Any, bit: Any, *values: Any) -> Any:
        """The update with a fault in primitive number `which`."""
        right = evaluation.evaluate_equation

        def evaluate_equation(a: Arithmetic, eqn: Any, operands: Any) -> list[Any]:
            results = right(a, eqn, operands)
            if evaluation.STRUCTURE.get(eqn.primitive.name) is evaluation.call or is_key(eqn.outvars[0].aval):
                return results
            name = f"{signature(eqn)} of equation {len(self.number)}" if self.alone else signature(eqn)
            number = self.number.setdefault(name, len(self.number))
            self.outputs[name] = eqn.outvars[0].aval
            return [flipped(jnp.asarray(results[0]), place, bit, which == number), *results[1:]]

        evaluation.evaluate_equation = evaluate_equation
        try:
            return evaluation.evaluate(Arithmetic(zero), self.closed.jaxpr, self.closed.consts, values)
        finally:
            evaluation.evaluate_equation = right

    def after(self, update: int, state: Any, number: int, place: int, bit: int) -> Any:
        """The state after an update under a fault."""
        values = jax.tree.leaves(
            jax.tree.map(np.asarray, (self.config.without_precision(), state, self.batches[update - 1]))
        )
        leaves = self.update(np.int32(0), np.int32(number), np.int32(place), np.int32(bit), *values)
        return jax.tree.unflatten(self.tree, jax.device_get(leaves))

    def trained(self, number: int, place: int, bit: int) -> int | None:
        """The first update after which the state's digest is wrong under the fault; None where it never is."""
        state = self.states[0]
        for update in range(1, UPDATES + 1):
            state = self.after(update, state, number, place, bit)
            if digest(state) != self.golden[update]:
                return update
        return None

    def drawn(self, name: str, rng: random.Random) -> tuple[int, int, int]:
        """A fault of this primitive or equation: its number, a place and a bit."""
        aval = self.outputs[name]
        bits = 1 if aval.dtype == bool else 8 * aval.dtype.itemsize
        return self.number[name], rng.randrange(aval.size), rng.randrange(bits)

    def blamed(self, wrong: str, place: int, bit: int, update: int) -> blame.WrongPrimitive | None:
        """What the walk through an update names, on a machine with the fault."""
        self.harmful = False
        device = self.right.setdefault("device", blame.Device())

        def machine(eqn: Any, function: Any, values: Any) -> Any:
            if function.__name__ == "alone":
                return right_of(eqn, values)
            key = of_values(eqn, values)
            if key not in self.right:
                self.right[key] = eqn, device(eqn, function, values)
            found = self.right[key][1]
            if signature(eqn) != wrong or is_key(eqn.outvars[0].aval):
                return found
            self.harmful |= bit != 31 or found[0].dtype != np.float32 or found[0].flat[place] != 0
            return [np.asarray(flipped(jnp.asarray(found[0]), place, np.asarray(bit), np.bool_(True))), *found[1:]]

        return blame.wrong_primitive(self.config, self.states[update - 1], self.batches[update - 1], machine)


def of_values(eqn: Any, values: Any) -> tuple[int, ...]:
    """The same for an equation with the same values: a function that is called twice has its equations once."""
    return id(eqn), *(hash(value.tobytes()) for value in values)


def remembered(function: Any, key: Any) -> Any:
    """The function, which computes each answer once."""
    known: dict[Any, Any] = {}

    def called(*arguments: Any) -> Any:
        name = key(*arguments)
        if name not in known:
            known[name] = arguments, function(*arguments)
        return known[name][1]

    return called


def transient(count: int) -> int:
    """Prints how many faults of one bit in one update reach the state after it."""
    planted, rng = Planted(alone=True), random.Random(0)
    planted.after(1, planted.states[0], -1, 0, 0)
    names = list(planted.number)
    elements = [planted.outputs[name].size for name in names]
    for how, weights in (("each equation alike", None), ("each element alike", elements)):
        found = 0
        for name in rng.choices(names, weights, k=count):
            update = rng.randint(1, UPDATES)
            fault = planted.drawn(name, rng)
            found += digest(planted.after(update, planted.states[update - 1], *fault)) != planted.golden[update]
        print(f"{how}: {found} of {count} transient faults in {len(names)} equations are in the state", flush=True)
    return 0


def main() -> int:
    """Prints what came of the faults; 1 if one was not found, or another primitive was named."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    runtime.configure()
    return transient(count) if "transient" in sys.argv else permanent(count)


def permanent(count: int) -> int:
    """As `main`, for faults that are always there."""
    planted, rng = Planted(), random.Random(0)
    # The right values are those of each fault: they are computed once.
    blame.program_of = remembered(blame.program_of, lambda config, state, batch: int(state.step))
    blame.by_numpy = remembered(blame.by_numpy, of_values)
    planted.trained(-1, 0, 0)
    tally: Counter[str] = Counter()
    began = time.monotonic()
    for i in range(count):
        wrong = rng.choice(sorted(planted.number))
        number, place, bit = planted.drawn(wrong, rng)
        update = planted.trained(number, place, bit)
        found = planted.blamed(wrong, place, bit, update or 1)
        named = found and " ".join([found.primitive, *found.shapes]) == wrong
        how = "found by digests" if update else "masked"
        if not (update or planted.harmful):
            tally["only the sign of a zero, which has none"] += 1
            continue
        tally[f"{how}, {'named' if named else 'NOT named'}"] += 1
        if not named:
            print(f"{wrong} at {place}, bit {bit}: {how}; named {found}", flush=True)
        if (i + 1) % 50 == 0:
            print(f"{i + 1} in {time.monotonic() - began:.0f} s: {dict(tally)}", flush=True)
    print(f"{count} faults in {len(planted.number)} primitives: {dict(tally)}")
    return int(any("NOT" in name for name in tally))


if __name__ == "__main__":
    sys.exit(main())
