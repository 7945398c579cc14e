"""The relu network on 4,000 real MNIST digits that come with a package: trains at once, without a download."""

import sys

from jaxmlp import DataConfig, ExperimentConfig, MLP, RMSprop

CONFIG = ExperimentConfig(
    model=MLP(hidden_sizes=(512, 512), activation="relu", dropout_rate=0.2),
    data=DataConfig(name="mnist_5k", validation="test"),
    optimizer=RMSprop(learning_rate=0.001),
    batch_size=128,
    epochs=20,
)

if __name__ == "__main__":
    from jaxmlp.cli import main

    sys.exit(main(["train", __file__, *sys.argv[1:]]))
