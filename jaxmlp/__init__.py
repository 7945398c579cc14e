"""Multilayer perceptrons in JAX: faithful to Keras, compiled by the epoch, the same bits every time.

Importing this starts no JAX: a name that needs it loads its module when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from jaxmlp.config import (
    SGD,
    Adam,
    AdamW,
    ClippedCrossEntropy,
    Constant,
    Cosine,
    CrossEntropy,
    DataConfig,
    ExperimentConfig,
    Exponential,
    InverseTime,
    MeanSquaredError,
    ModelConfig,
    Piecewise,
    RMSprop,
)
from jaxmlp.errors import (
    CheckFailed,
    ConfigError,
    DataError,
    DeviceError,
    DiskError,
    DivergedError,
    JaxmlpError,
    PeerLostError,
    RunError,
    UsageError,
)

if TYPE_CHECKING:
    from jaxmlp.api import evaluate as evaluate
    from jaxmlp.api import load_model as load_model
    from jaxmlp.api import predict as predict
    from jaxmlp.fitting import fit as fit
    from jaxmlp.network import summary as summary
    from jaxmlp.proof.bits import assert_same_bits as assert_same_bits
    from jaxmlp.proof.reproduce import reproduce as reproduce
    from jaxmlp.proof.verify import verify as verify
    from jaxmlp.run.digest import digest as digest
    from jaxmlp.runtime import configure as configure
    from jaxmlp.train import TrainState as TrainState
    from jaxmlp.train import train_step as train_step
else:  # Hidden from type checkers, which would take every misspelt name to be known.

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(_HOMES[name]), name)


__version__ = "0.1.0"

_HOMES = {
    "TrainState": "jaxmlp.train",
    "assert_same_bits": "jaxmlp.proof.bits",
    "configure": "jaxmlp.runtime",
    "digest": "jaxmlp.run.digest",
    "evaluate": "jaxmlp.api",
    "fit": "jaxmlp.fitting",
    "load_model": "jaxmlp.api",
    "predict": "jaxmlp.api",
    "reproduce": "jaxmlp.proof.reproduce",
    "summary": "jaxmlp.network",
    "train_step": "jaxmlp.train",
    "verify": "jaxmlp.proof.verify",
}
"""The modules of the names that load when they are used; type checkers read the imports above instead."""

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "CheckFailed",
    "ClippedCrossEntropy",
    "ConfigError",
    "Constant",
    "Cosine",
    "CrossEntropy",
    "DataConfig",
    "DataError",
    "DeviceError",
    "DiskError",
    "DivergedError",
    "ExperimentConfig",
    "Exponential",
    "InverseTime",
    "JaxmlpError",
    "MeanSquaredError",
    "ModelConfig",
    "PeerLostError",
    "Piecewise",
    "RMSprop",
    "RunError",
    "UsageError",
    *_HOMES,
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
