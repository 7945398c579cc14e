"""Multilayer perceptrons in JAX: faithful to Keras, compiled by the epoch, the same bits every time.

Importing this loads no other module: a name loads its module when it is first used. So the command line sets up JAX
before JAX starts, and the pytest plugin costs a suite nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxmlp.api import evaluate as evaluate
    from jaxmlp.api import load_model as load_model
    from jaxmlp.api import predict as predict
    from jaxmlp.config import SGD as SGD
    from jaxmlp.config import Adam as Adam
    from jaxmlp.config import AdamW as AdamW
    from jaxmlp.config import ClippedCrossEntropy as ClippedCrossEntropy
    from jaxmlp.config import Constant as Constant
    from jaxmlp.config import Cosine as Cosine
    from jaxmlp.config import CrossEntropy as CrossEntropy
    from jaxmlp.config import DataConfig as DataConfig
    from jaxmlp.config import ExperimentConfig as ExperimentConfig
    from jaxmlp.config import Exponential as Exponential
    from jaxmlp.config import InverseTime as InverseTime
    from jaxmlp.config import MeanSquaredError as MeanSquaredError
    from jaxmlp.config import ModelConfig as ModelConfig
    from jaxmlp.config import Piecewise as Piecewise
    from jaxmlp.config import RMSprop as RMSprop
    from jaxmlp.errors import CheckFailed as CheckFailed
    from jaxmlp.errors import ConfigError as ConfigError
    from jaxmlp.errors import DataError as DataError
    from jaxmlp.errors import DeviceError as DeviceError
    from jaxmlp.errors import DiskError as DiskError
    from jaxmlp.errors import DivergedError as DivergedError
    from jaxmlp.errors import JaxmlpError as JaxmlpError
    from jaxmlp.errors import PeerLostError as PeerLostError
    from jaxmlp.errors import RunError as RunError
    from jaxmlp.errors import UsageError as UsageError
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
    "SGD": "jaxmlp.config",
    "Adam": "jaxmlp.config",
    "AdamW": "jaxmlp.config",
    "ClippedCrossEntropy": "jaxmlp.config",
    "Constant": "jaxmlp.config",
    "Cosine": "jaxmlp.config",
    "CrossEntropy": "jaxmlp.config",
    "DataConfig": "jaxmlp.config",
    "ExperimentConfig": "jaxmlp.config",
    "Exponential": "jaxmlp.config",
    "InverseTime": "jaxmlp.config",
    "MeanSquaredError": "jaxmlp.config",
    "ModelConfig": "jaxmlp.config",
    "Piecewise": "jaxmlp.config",
    "RMSprop": "jaxmlp.config",
    "CheckFailed": "jaxmlp.errors",
    "ConfigError": "jaxmlp.errors",
    "DataError": "jaxmlp.errors",
    "DeviceError": "jaxmlp.errors",
    "DiskError": "jaxmlp.errors",
    "DivergedError": "jaxmlp.errors",
    "JaxmlpError": "jaxmlp.errors",
    "PeerLostError": "jaxmlp.errors",
    "RunError": "jaxmlp.errors",
    "UsageError": "jaxmlp.errors",
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

__all__ = [*_HOMES]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
