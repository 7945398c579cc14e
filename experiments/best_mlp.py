"""An MLP without convolution on MNIST, with random turns, sizes, shifts and elastic distortions of its images.

    test accuracy 0.9914, standard deviation 0.0006, 0.9906 to 0.9926: n = 10, seeds 0 to 9, trained on 54,000 images
    held-out accuracy 0.9929, standard deviation 0.0004
    98 s of training one seed, on 2 cores (Intel Xeon with AMX); JAX and jaxlib 0.12.0.1, Python 3.13.0

The recipe is one of three that were trained for 5 epochs. Accuracy on the last 6,000 training images, which are held
out: 0.9785 with more distortion and dropout, 0.9882 with this recipe, 0.9885 with less distortion and a wider network,
which takes longer. The test images chose nothing.

    jaxmlp train best_mlp
    jaxmlp sweep best_mlp --seeds 0:10
"""

import sys

from jaxmlp import MLP, Adam, Cosine, CrossEntropy, DataConfig, Elastic, ExperimentConfig, Rotate, Scale, Shift

CONFIG = ExperimentConfig(
    name="best_mlp",
    model=MLP(hidden_sizes=(1024, 512), activation="relu", dropout_rate=0.0, batch_norm=True),
    data=DataConfig(name="mnist", validation=0.1),
    augmentation=(Rotate(degrees=10), Scale(part=0.1), Shift(pixels=1), Elastic(pixels=1.0, smoothness=5.0)),
    optimizer=Adam(learning_rate=0.002, schedule=Cosine(warmup_fraction=0.05)),
    loss=CrossEntropy(),
    batch_size=256,
    epochs=20,
)

if __name__ == "__main__":
    from jaxmlp.cli import main

    sys.exit(main(["train", __file__, *sys.argv[1:]]))
