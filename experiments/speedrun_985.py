"""The fewest seconds to a mean test accuracy of 0.985 with an MLP on MNIST's 60,000 images, without augmentation.

    0.959 s (IQR 0.041), from the first step to the end of the last; compile 1.1 s
    mean test accuracy 0.9860 +- 0.0006, n = 50 seeds, p = 3e-16 for a mean of 0.985 or less
    with --verify, which draws fresh seeds: 0.887 s (IQR 0.041), 0.9859 +- 0.0007, n = 50, p = 9e-13
    2 cores (Intel Xeon with AMX), JAX and jaxlib 0.12.0.1, Python 3.13.0

Chosen as in speedrun.py: the fastest with a mean held-out accuracy above 0.985. The fastest above 0.984 was tried first
(384 units, batches of 384): 0.82 s, and 0.9849 +- 0.0006 on the test images, n = 50, which is not above 0.985.

    python experiments/speedrun_985.py [--seeds 50] [--verify] [--out DIR]
"""

import sys

from jaxmlp import MLP, AdamW, Cosine, CrossEntropy, DataConfig, ExperimentConfig

CONFIG = ExperimentConfig(
    model=MLP(hidden_sizes=(384,), activation="silu", dropout_rate=0.0, kernel_init="he_normal"),
    data=DataConfig(name="mnist", validation=None),
    optimizer=AdamW(learning_rate=0.012, b1=0.8, b2=0.95, weight_decay=0.05, schedule=Cosine(warmup_fraction=0.15)),
    loss=CrossEntropy(label_smoothing=0.1),
    batch_size=256,
    epochs=3,
    precision="bfloat16",
)

if __name__ == "__main__":
    from jaxmlp.cli import main

    sys.exit(main(["speedrun", __file__, "--target", "0.985", *sys.argv[1:]]))
