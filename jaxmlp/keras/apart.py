"""A Keras file is read by a process of its own, held to little memory and time: HDF5's library trusts what it reads.

One damaged byte can make the library loop for ever, where Python hears no signal, or crash.
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

import numpy as np

from jaxmlp.errors import RunError, UsageError
from jaxmlp.keras.files import parse_keras
from jaxmlp.keras.network import Dense, KerasNetwork

SECONDS = 60.0
"""That reading a file may take."""
MEMORY = 1 << 30
"""Bytes that it may take, besides three times the file's."""


def read_keras(path: Path) -> KerasNetwork:
    """The network in a file that Keras wrote, as `parse_keras` reads it.

    Raises:
        RunError: It is not there, no such file, damaged, or of a network that is no stack of Dense layers.
        UsageError: h5py is not installed.
    """
    if not path.is_file():
        raise RunError(f"{path} is not there, or is no file.")
    command = [sys.executable, "-P", "-m", "jaxmlp.keras.apart", str(path.absolute()), str(path)]
    # So that it finds what this process finds, whatever its current folder holds.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(each for each in sys.path if each)}
    try:
        done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        raise RunError(f"{path} cannot be imported: it is damaged (not read after {SECONDS:g} s).") from None
    except OSError as error:
        raise RunError(f"{path} cannot be imported: no process can be started for it ({error.strerror}).") from error
    if done.returncode < 0:
        raise RunError(f"{path} cannot be imported: it is damaged (HDF5's library ended by signal {-done.returncode}).")
    text, _, numbers = done.stdout.partition(b"\n")
    if done.returncode or not text:
        raise RuntimeError(f"reading {path} apart failed: {done.stderr.decode(errors='replace')}")
    told = json.loads(text)
    if problem := told.get("refused"):
        raise RunError(problem)
    if problem := told.get("missing"):
        raise UsageError(problem)
    layers, array = [], np.frombuffer(numbers, "<f4")
    for inputs, units in told["layers"]:
        kernel, bias, array = np.split(array, [inputs * units, (inputs + 1) * units])
        layers.append(Dense(kernel.reshape(inputs, units), bias))
    return KerasNetwork(**told["about"] | {"layers": tuple(layers), "notes": tuple(told["about"]["notes"])})


def limit_memory(size: int) -> None:
    """In the process apart: take no more than a file of this size may need, nor than the system allows already."""
    limit, (_, hard) = MEMORY + 3 * size, resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def answer(path: Path, shown: str, out: BinaryIO) -> None:
    """In the process apart: write a line of JSON, and behind it the layers' numbers.

    Args:
        path: The file.
        shown: Its name, for people.
        out: Takes the answer.
    """
    layers: tuple[Dense, ...] = ()
    try:
        network = parse_keras(path)
        layers = network.layers
        about = {item.name: getattr(network, item.name) for item in dataclasses.fields(network)}
        told = {"layers": [layer.kernel.shape for layer in layers], "about": about | {"layers": ()}}
    except RunError as error:
        told = {"refused": str(error).replace(str(path), shown, 1)}
    except UsageError as error:
        told = {"missing": str(error)}
    except MemoryError:
        told = {"refused": f"{shown} cannot be imported: it is damaged (it takes too much memory)."}
    out.write(json.dumps(told).encode() + b"\n")
    for layer in layers:
        out.writelines([np.ascontiguousarray(layer.kernel, "<f4").data, np.ascontiguousarray(layer.bias, "<f4").data])


if __name__ == "__main__":
    limit_memory(Path(sys.argv[1]).stat().st_size)
    answer(Path(sys.argv[1]), sys.argv[2], sys.stdout.buffer)
