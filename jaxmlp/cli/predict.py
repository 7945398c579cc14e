"""`jaxmlp predict`: which classes does a run's model see in images?"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxmlp.cli import Answer, flags, say
from jaxmlp.errors import DataError, printable
from jaxmlp.experiment.fields import ranged
from jaxmlp.run import files
from jaxmlp.system import runtime

if TYPE_CHECKING:
    import numpy as np

SHADES = " .:-=+*#%@"
"""Characters from the darkest to the brightest."""


@dataclass(frozen=True, kw_only=True)
class PredictFlags(flags.ModelFlags):
    """The likeliest classes of images: PNG and JPEG, .npy with one image or many, IDX, and folders of these.

    Photographs and scans of digits may have any size and colours: they are prepared as MNIST was. Each picture must
    show one upright digit. Files that cannot be read are named at the end, the others are answered, and the exit code
    is 4.
    """

    top: int = ranged(3, "[1, 1000]")
    """Number of classes to show for each image."""
    show: flags.Switch = False
    """Draw each image in characters, as the model sees it."""
    csv: Path | None = None
    """File to write the answers to, as CSV."""


def run(argv: Sequence[str]) -> Answer:
    """Predict the classes of the images in FILEs with the model of RUN."""
    chosen, (name, *names) = flags.parse(PredictFlags(), argv, "predict", "RUN", "FILE...")
    runtime.configure(chosen.device)
    import numpy as np

    from jaxmlp.run.find import find_run
    from jaxmlp.run.opening import open_run
    from jaxmlp.trained.images import read_images
    from jaxmlp.trained.inference import load_model, predict

    run = open_run(find_run(name), chosen.experiment)
    model = load_model(run, chosen.checkpoint)
    digits = model.image_shape == (28, 28, 1) and model.config.data.name in ("mnist", "mnist_5k")
    skipped: list[tuple[Path, DataError]] = []
    found = [
        each
        for name in names
        for each in read_images(
            Path(name), model.image_shape, digits=digits, skip=lambda file, error: skipped.append((file, error))
        )
    ]
    if not found:
        raise DataError("\n".join(str(error) for _, error in skipped))
    places = [(str(each.file), index) for each in found for index in range(len(each.images))]
    images = np.concatenate([each.images for each in found])
    predictions: list[dict[str, Any]] = []
    for (file, index), image, answer in zip(places, images, predict(model, images, chosen.top), strict=True):
        top = [{"label": label, "probability": probability} for label, probability in answer.top]
        likeliest = {"label": answer.label, "probability": answer.probability, "numbers": list(answer.numbers)}
        predictions.append({"file": file, "index": index, **likeliest, "top": top})
        ranked = ", ".join(f"{label}: {probability:.4f}" for label, probability in answer.top)
        said = f"{answer.label} ({ranked})" if answer.top else " ".join(f"{number:g}" for number in answer.numbers)
        say(f"{printable(file, lines=False)}[{index}]: {said}")
        if chosen.show:
            say(_drawn(image))
    warned = [{"file": str(each.file), "warning": each.warning} for each in found if each.warning]
    for each in warned:
        say(f"{printable(each['file'], lines=False)} {each['warning']}")
    if chosen.csv:
        _write(chosen.csv, predictions)
    document = {
        "predictions": predictions,
        "warnings": warned,
        "skipped": [{"file": str(file), "problem": str(error)} for file, error in skipped],
        "code_changed": [each._asdict() for each in run.code_changed],
    }
    if not skipped:
        return Answer(document)
    message = "\n".join(
        [
            *(str(error) for _, error in skipped),
            f"files without an answer: {len(skipped)}; with an answer: {len(found)}",
        ]
    )
    return Answer(document, DataError.exit_code, message)


def _drawn(image: np.ndarray[Any, Any]) -> str:
    """The image as text, one line per row. Each pixel is two characters, which are about twice as high as wide."""
    brightness = image.mean(axis=-1).clip(min=0)
    shades = brightness / max(float(brightness.max()), 1.0) * (len(SHADES) - 1)
    return "\n".join("".join(2 * SHADES[shade] for shade in row).rstrip() for row in shades.round().astype(int))


def _write(path: Path, predictions: Sequence[Mapping[str, Any]]) -> None:
    with (
        files.trying_to(f"write {path}"),
        path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["file", "index", "label", "probability", "top", "numbers"])
        for each in predictions:
            top = " ".join(f"{one['label']}:{one['probability']}" for one in each["top"])
            numbers = " ".join(map(str, each["numbers"]))
            writer.writerow([each["file"], each["index"], each["label"], each["probability"], top, numbers])
