"""What Keras 3's EarlyStopping and ReduceLROnPlateau do on random sequences: writes keras_callbacks.json beside it.

    pip install keras jax; KERAS_BACKEND=jax python tests/record_keras_callbacks.py

Tests read the file and need no Keras. Learning rates are set on a stub, so that no model is trained.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras

CASES, EPOCHS, RATE = 100, 24, 0.5


class Stub:
    """What both callbacks touch of a model."""

    def __init__(self) -> None:
        self.optimizer = SimpleNamespace(learning_rate=RATE)
        self.stop_training = False
        self.weights: Any = None

    def get_weights(self) -> Any:
        return self.weights

    def set_weights(self, weights: Any) -> None:
        self.weights = weights


def record(draw: random.Random) -> dict[str, Any]:
    """One sequence, the settings of both callbacks, and what came of it."""
    figures, value = [], 1.0
    for _ in range(EPOCHS):
        value = max(0.0, value + draw.choice([-0.125, -0.0625, 0.0, 0.0, 0.0625, 0.125]))  # Exact, with many ties.
        figures.append(value)
    direction = draw.choice(["min", "max"])
    stopping = {"patience": draw.randrange(6), "min_delta": draw.choice([0.0, 0.03125, 0.0625])}
    plateau = {
        "patience": draw.randrange(4),
        "min_delta": draw.choice([0.0, 0.03125]),
        "cooldown": draw.randrange(4),
        "factor": draw.choice([0.5, 0.25]),
        "min_factor": draw.choice([0.0, 0.125]),
    }
    model = Stub()
    early = keras.callbacks.EarlyStopping("val", mode=direction, restore_best_weights=True, **stopping)
    others = {name: each for name, each in plateau.items() if name != "min_factor"}
    reduce = keras.callbacks.ReduceLROnPlateau("val", mode=direction, min_lr=plateau["min_factor"] * RATE, **others)
    for callback in (early, reduce):
        callback.set_model(model)
        callback.on_train_begin()
    rates, stopped = [], None
    for epoch, figure in enumerate(figures):
        rates.append(model.optimizer.learning_rate)
        model.weights = epoch + 1
        reduce.on_epoch_end(epoch, {"val": figure})
        if stopped is None:
            early.on_epoch_end(epoch, {"val": figure})
            stopped = epoch + 1 if model.stop_training else None
    early.on_train_end()
    return {
        "direction": direction,
        "figures": figures,
        "stopping": stopping,
        "plateau": plateau,
        "stopped_after": stopped,
        "restored": model.weights,
        "factors": [rate / RATE for rate in rates],
    }


def main() -> None:
    draw = random.Random(0)
    found = {"keras": keras.__version__, "cases": [record(draw) for _ in range(CASES)]}
    lines = ",\n".join(json.dumps(case) for case in found["cases"])
    text = f'{{"keras": "{found["keras"]}", "cases": [\n{lines}\n]}}\n'
    Path(__file__).with_name("keras_callbacks.json").write_text(text)


if __name__ == "__main__":
    main()
