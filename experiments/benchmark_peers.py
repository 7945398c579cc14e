"""The relu experiment with jaxmlp, Keras 3 on JAX, and PyTorch eager, compiled and in bfloat16: in turns, in one call.

Prints seconds an epoch with the evaluation of the test split (median, interquartile range, ratio to jaxmlp), whole
runs from the start of a process to its end, peak memory, and the accuracies the epochs came to.

    pip install '.[peers]'
    python experiments/benchmark_peers.py [--python-torch PATH] [--epochs 20]
"""

import sys

import relu_rmsprop

CONFIG = relu_rmsprop.CONFIG

if __name__ == "__main__":
    from jaxmlp.cli import main

    sys.exit(main(["peers", __file__, *sys.argv[1:]]))
