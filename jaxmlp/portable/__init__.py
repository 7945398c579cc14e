"""What makes a function's bits the same on every machine? `portable(f)`, a transformation like `jit`.

This package needs only JAX and NumPy, and nothing else from jaxmlp. docs/portable.md explains it.
"""

from jaxmlp.portable.conversions import Refused
from jaxmlp.portable.rules import RULES
from jaxmlp.portable.transform import portable

__all__ = ["RULES", "Refused", "portable"]
