"""The fewest seconds to the tutorial's accuracy: a mean test accuracy of 0.9805 with an MLP on MNIST's 60,000 images.

    0.307 s (IQR 0.019), from the first step to the end of the last; compile 1.6 s
    mean test accuracy 0.9811 +- 0.0009, n = 50 seeds, p = 8e-6 for a mean of 0.9805 or less
    with --verify, which draws fresh seeds: 0.303 s (IQR 0.010), 0.9809 +- 0.0008, n = 50, p = 2e-4
    2 cores (Intel Xeon with AMX), JAX and jaxlib 0.12.0.1, Python 3.13.0

Trained from scratch on the training images alone, data on the device and programs compiled. The recipe was chosen by
the accuracy on 10,000 held-out training images after training on the other 50,000: of some 260 settings, with 2 to 8
seeds each, the fastest with a mean above 0.979. The test images chose nothing.

    python experiments/speedrun.py [--seeds 50] [--verify] [--out DIR] [--beside-seeds 5]
"""

import sys

from jaxmlp import MLP, AdamW, Cosine, CrossEntropy, DataConfig, ExperimentConfig

CONFIG = ExperimentConfig(
    model=MLP(hidden_sizes=(160,), activation="silu", dropout_rate=0.0, kernel_init="he_normal"),
    data=DataConfig(name="mnist", validation=None),
    optimizer=AdamW(learning_rate=0.03, b1=0.8, b2=0.95, weight_decay=0.05, schedule=Cosine(warmup_fraction=0.15)),
    loss=CrossEntropy(label_smoothing=0.1),
    batch_size=448,
    epochs=2,
    precision="bfloat16",
)

if __name__ == "__main__":
    from jaxmlp.cli import main

    sys.exit(main(["speedrun", __file__, "--beside", "relu_rmsprop", *sys.argv[1:]]))
