"""How are Keras's three kinds of files read without Keras, and without running or unpickling anything in them?

- `.h5`, from Keras 2 and 3: config and weights; or only weights, from `save_weights`
- `.weights.h5`, from Keras 3: only weights
- `.keras`, from Keras 3: an archive of config.json and model.weights.h5
"""

from __future__ import annotations

import io
import json
import os
import re
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jaxmlp.errors import RunError, UsageError
from jaxmlp.keras.hdf5 import MAX_TEXT, H5Group, Refused
from jaxmlp.keras.network import KerasNetwork, assemble, checked_layers, parse_architecture

HDF5, ZIP = b"\x89HDF\r\n\x1a\n", b"PK\x03\x04"
"""First bytes of the files. File names may be wrong."""

_DENSE = re.compile(r"dense(?:_(\d+))?")


def parse_keras(path: Path) -> KerasNetwork:
    """The network in a file that Keras wrote. For a damaged file, HDF5's library may never return: see `apart`.

    Raises:
        RunError: The file does not exist, is not a Keras file, is damaged, or its network is not a stack of Dense
            layers.
        UsageError: h5py is not installed.
    """
    if not path.is_file():
        raise RunError(f"{path} does not exist, or is not a file.")
    try:
        with path.open("rb") as file:
            start = file.read(8)
            size = os.fstat(file.fileno()).st_size
            file.seek(0)
            if start == HDF5:
                return _read_hdf5(H5Group.of_file(file, size))
            if start.startswith(ZIP):
                return _read_archive(file, size)
            raise Refused("it is neither HDF5 nor a .keras archive")
    except Refused as error:
        raise RunError(f"{path} cannot be imported: {error}.") from error
    except (MemoryError, UsageError):
        raise
    except Exception as error:  # For a damaged file, h5py and zipfile raise various errors.
        raise RunError(f"{path} cannot be imported: it is damaged ({error}).") from error


def _read_archive(file: BinaryIO, size: int) -> KerasNetwork:
    with zipfile.ZipFile(file) as archive:
        config = _member(archive, "config.json", MAX_TEXT)
        weights = _member(archive, "model.weights.h5", size)
    root = H5Group.of_file(io.BytesIO(weights), len(weights))
    return assemble(checked_layers(_keras3_arrays(root)), parse_architecture(_json(config)))


def _member(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    """A member of the archive. zipfile checks its checksum."""
    if name not in archive.namelist():
        raise Refused(f"it has no {name}")
    info = archive.getinfo(name)
    # A stored member is no larger than the archive, so it cannot unpack into more.
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
        raise Refused(f"its {name} is compressed, but Keras stores it uncompressed")
    if info.file_size > limit:
        raise Refused(f"its {name} has {info.file_size} bytes, wanted at most {limit}")
    return archive.read(info)


def _read_hdf5(root: H5Group) -> KerasNetwork:
    if "layers" in root or "_layer_checkpoint_dependencies" in root:
        return assemble(checked_layers(_keras3_arrays(root)), None)
    config = root.text("model_config")
    layers = checked_layers(_keras2_arrays(root.group("model_weights") if "model_weights" in root else root))
    if config is None:
        return assemble(layers, None)
    compiled = root.text("training_config")
    plain = _json(config)
    if compiled and isinstance(plain, dict):
        plain |= {"compile_config": _json(compiled)}
    return assemble(layers, parse_architecture(plain))


def _json(text: str | bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Refused(f"its config is not JSON ({error})") from error


def _keras2_arrays(weights: H5Group) -> list[list[np.ndarray[Any, Any]]]:
    """Kernel and bias of each layer with weights, in the order of the layers."""
    found = []
    names = weights.texts("layer_names")
    if names is None:
        raise Refused("it has no layer_names: it is not a file of Keras")
    for name in names:
        layer = weights.group(name)
        if paths := layer.texts("weight_names"):
            parts = [path.rpartition("/")[2].removesuffix(":0") for path in paths]
            if parts not in (["kernel"], ["kernel", "bias"]):
                raise Refused(f"its layer {name!r} has the weights {', '.join(parts)}, wanted a Dense layer's")
            found.append([layer.array(path) for path in paths])
    return found


def _keras3_arrays(root: H5Group) -> list[list[np.ndarray[Any, Any]]]:
    """Kernel and bias of each Dense layer, in the order of the layers. Keras numbers layers by kind."""
    layers = root.group("layers" if "layers" in root else "_layer_checkpoint_dependencies")
    found: dict[int, list[np.ndarray[Any, Any]]] = {}
    for name in layers.names():
        layer = layers.group(name)
        variables = layer.group("vars") if "vars" in layer else None
        if not variables or not (keys := variables.names()):
            continue
        dense = _DENSE.fullmatch(name)
        if not dense or keys not in (["0"], ["0", "1"]):
            raise Refused(f"its layer {name!r} has {len(keys)} weights, wanted a Dense layer's")
        found[int(dense[1] or 0)] = [variables.array(key) for key in keys]
    return [found[number] for number in sorted(found)]
