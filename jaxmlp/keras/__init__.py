"""Networks that Keras trained, out of its files and into runs."""

from jaxmlp.keras.files import read_keras
from jaxmlp.keras.imported import import_network
from jaxmlp.keras.network import KerasNetwork

__all__ = ["KerasNetwork", "import_network", "read_keras"]
