"""How is a Keras file read safely? By a process with little memory and time, because HDF5's library trusts its input.

One damaged byte can make the library crash, or loop forever where Python receives no signal.
"""

from __future__ import annotations

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
"""Largest time, in seconds, to read a file."""
MEMORY = 1 << 30
"""Largest memory of the process, in bytes, besides three times the size of the file."""


def read_keras(path: Path) -> KerasNetwork:
    """The network in a file that Keras wrote. See `parse_keras`.

    Raises:
        RunError: The file does not exist, is not a Keras file, is damaged, or its network is not a stack of Dense
            layers.
        UsageError: h5py is not installed.
    """
    if not os.path.isfile(path):
        raise RunError(f"{path} does not exist, or is not a file.")
    command = [sys.executable, "-P", "-m", "jaxmlp.keras.apart", str(path.absolute()), str(path)]
    # The child finds the same modules as this process, whatever its current folder holds.
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
    answer = json.loads(text)
    if problem := answer.get("refused"):
        raise RunError(problem)
    if problem := answer.get("missing"):
        raise UsageError(problem)
    layers, array = [], np.frombuffer(numbers, "<f4")
    for inputs, units in answer["layers"]:
        kernel, bias, array = np.split(array, [inputs * units, (inputs + 1) * units])
        layers.append(Dense(kernel.reshape(inputs, units), bias))
    return KerasNetwork(**answer["about"] | {"layers": tuple(layers), "notes": tuple(answer["about"]["notes"])})


def limit_memory(size: int) -> None:
    """In the child process: limit the memory to what a file of this size may need, or to the system's lower limit."""
    limit, (_, hard) = MEMORY + 3 * size, resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def answer(path: Path, shown: str, out: BinaryIO) -> None:
    """In the child process: write a line of JSON, followed by the numbers of the layers.

    Args:
        path: The file.
        shown: Name of the file for people.
        out: Stream for the answer.
    """
    layers: tuple[Dense, ...] = ()
    try:
        network = parse_keras(path)
        layers = network.layers
        answer = {"layers": [layer.kernel.shape for layer in layers], "about": vars(network) | {"layers": ()}}
    except RunError as error:
        answer = {"refused": str(error).replace(str(path), shown, 1)}
    except UsageError as error:
        answer = {"missing": str(error)}
    except MemoryError:
        answer = {"refused": f"{shown} cannot be imported: it is damaged (it needs too much memory)."}
    out.write(json.dumps(answer).encode() + b"\n")
    for layer in layers:
        out.writelines([np.ascontiguousarray(layer.kernel, "<f4").data, np.ascontiguousarray(layer.bias, "<f4").data])


if __name__ == "__main__":
    limit_memory(Path(sys.argv[1]).stat().st_size)
    answer(Path(sys.argv[1]), sys.argv[2], sys.stdout.buffer)
