"""Writes the files beside it, with whichever real Keras is installed; and the probabilities that it gives itself.

- Python 3.6: pip install keras==2.2.4 theano 'h5py<3' 'numpy<1.17'; KERAS_BACKEND=theano python make.py
- Python 3.13: pip install keras==3.15.1 jax h5py; KERAS_BACKEND=jax python make.py
"""

from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

FOLDER = Path(__file__).parent
IMAGES = np.arange(7 * 16).reshape((7, 4, 4)) * 37 % 256
"""As in the tests: pixels of 0 to 255."""


def dense(units: int, activation: str) -> Any:
    return layers.Dense(units, activation=activation, bias_initializer="random_normal")


def write(model: Any, name: str, pixels: Any, *suffixes: str) -> None:
    for suffix in suffixes:
        save = model.save if suffix in (".h5", ".keras") else model.save_weights
        save(str(FOLDER / (name + suffix)))
    np.save(str(FOLDER / (name + ".npy")), model.predict(pixels))


np.random.seed(0)
hidden = [layers.Flatten(input_shape=(4, 4)), dense(6, "tanh"), layers.Dropout(0.5), dense(5, "tanh")]
sequential = keras.models.Sequential([*hidden, layers.Dropout(0.5), dense(3, "softmax")])
if keras.__version__.startswith("2."):
    write(sequential, "keras2", IMAGES / 255, ".h5", "_weights.h5")
else:
    write(sequential, "keras3", IMAGES / 255, ".h5", ".keras", ".weights.h5")
    images = keras.Input((4, 4))
    x = layers.Flatten()(layers.Rescaling(1 / 128)(images))
    x = layers.Activation("silu")(layers.Dense(6, use_bias=False)(x))
    functional = keras.Model(images, layers.Softmax()(dense(3, "linear")(x)))
    write(functional, "functional", IMAGES.astype("float32"), ".h5", ".keras")
