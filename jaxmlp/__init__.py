"""Networks in JAX: faithful to Keras, compiled by the epoch, the same bits every time.

Importing the package loads no other module. Each name loads its module on first use. So the command line can set up
JAX before JAX starts, and the pytest plugin costs a suite nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxmlp.api import evaluate as evaluate
    from jaxmlp.api import load_model as load_model
    from jaxmlp.api import predict as predict
    from jaxmlp.augmentations import CutOut as CutOut
    from jaxmlp.augmentations import Elastic as Elastic
    from jaxmlp.augmentations import Noise as Noise
    from jaxmlp.augmentations import Rotate as Rotate
    from jaxmlp.augmentations import Scale as Scale
    from jaxmlp.augmentations import Shift as Shift
    from jaxmlp.config import DataConfig as DataConfig
    from jaxmlp.config import ExperimentConfig as ExperimentConfig
    from jaxmlp.controllers import EMA as EMA
    from jaxmlp.controllers import Budget as Budget
    from jaxmlp.controllers import EarlyStopping as EarlyStopping
    from jaxmlp.controllers import ReduceOnPlateau as ReduceOnPlateau
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
    from jaxmlp.fields import named as named
    from jaxmlp.fields import ranged as ranged
    from jaxmlp.fitting import fit as fit
    from jaxmlp.losses import ClippedCrossEntropy as ClippedCrossEntropy
    from jaxmlp.losses import CrossEntropy as CrossEntropy
    from jaxmlp.losses import MeanSquaredError as MeanSquaredError
    from jaxmlp.metrics import F1 as F1
    from jaxmlp.metrics import Accuracy as Accuracy
    from jaxmlp.metrics import BrierScore as BrierScore
    from jaxmlp.metrics import CalibrationError as CalibrationError
    from jaxmlp.metrics import MeanAbsoluteError as MeanAbsoluteError
    from jaxmlp.metrics import Precision as Precision
    from jaxmlp.metrics import Recall as Recall
    from jaxmlp.metrics import TopK as TopK
    from jaxmlp.mixing import Mixup as Mixup
    from jaxmlp.mlp import MLP as MLP
    from jaxmlp.network import summary as summary
    from jaxmlp.optax_parts import from_optax as from_optax
    from jaxmlp.optax_schedules import optax_schedule as optax_schedule
    from jaxmlp.optimizers import SGD as SGD
    from jaxmlp.optimizers import Adam as Adam
    from jaxmlp.optimizers import AdamW as AdamW
    from jaxmlp.optimizers import LayerRates as LayerRates
    from jaxmlp.optimizers import RMSprop as RMSprop
    from jaxmlp.parts import Augmentation as Augmentation
    from jaxmlp.parts import Controller as Controller
    from jaxmlp.parts import Loss as Loss
    from jaxmlp.parts import Metric as Metric
    from jaxmlp.parts import Model as Model
    from jaxmlp.parts import Optimizer as Optimizer
    from jaxmlp.parts import Schedule as Schedule
    from jaxmlp.proof.bits import assert_same_bits as assert_same_bits
    from jaxmlp.proof.reproduce import reproduce as reproduce
    from jaxmlp.proof.verify import verify as verify
    from jaxmlp.run.digest import digest as digest
    from jaxmlp.runtime import configure as configure
    from jaxmlp.schedules import Constant as Constant
    from jaxmlp.schedules import Cosine as Cosine
    from jaxmlp.schedules import CosineRestarts as CosineRestarts
    from jaxmlp.schedules import Exponential as Exponential
    from jaxmlp.schedules import InverseTime as InverseTime
    from jaxmlp.schedules import Piecewise as Piecewise
    from jaxmlp.train import TrainState as TrainState
    from jaxmlp.train import train_step as train_step
else:  # Hidden from type checkers, which would accept every misspelt name.

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(_HOMES[name]), name)


__version__ = "0.1.0"

_ROOMS = {
    "api": "evaluate load_model predict",
    "augmentations": "CutOut Elastic Noise Rotate Scale Shift",
    "config": "DataConfig ExperimentConfig",
    "controllers": "EMA Budget EarlyStopping ReduceOnPlateau",
    "errors": "CheckFailed ConfigError DataError DeviceError DiskError DivergedError JaxmlpError PeerLostError RunError"
    " UsageError",
    "fields": "named ranged",
    "fitting": "fit",
    "losses": "ClippedCrossEntropy CrossEntropy MeanSquaredError",
    "metrics": "F1 Accuracy BrierScore CalibrationError MeanAbsoluteError Precision Recall TopK",
    "mixing": "Mixup",
    "mlp": "MLP",
    "network": "summary",
    "optax_parts": "from_optax",
    "optax_schedules": "optax_schedule",
    "optimizers": "SGD Adam AdamW LayerRates RMSprop",
    "parts": "Augmentation Controller Loss Metric Model Optimizer Schedule",
    "proof.bits": "assert_same_bits",
    "proof.reproduce": "reproduce",
    "proof.verify": "verify",
    "run.digest": "digest",
    "runtime": "configure",
    "schedules": "Constant Cosine CosineRestarts Exponential InverseTime Piecewise",
    "train": "TrainState train_step",
}
"""The public names of each module, loaded on first use. Type checkers read the imports above instead."""
_HOMES = {name: f"jaxmlp.{room}" for room, names in _ROOMS.items() for name in names.split()}

__all__ = [*_HOMES]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
