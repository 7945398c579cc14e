"""How near does each row come to its device's peak, as measured here and as the maker states?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxmlp.compile.targets import CHIPS

MIB = 1 << 20
KINDS = {
    "TPU v4": "tpu-v4",
    "TPU v5 lite": "tpu-v5e",
    "TPU v5e": "tpu-v5e",
    "TPU v6 lite": "tpu-v6e",
    "TPU v6e": "tpu-v6e",
    "TPU v5p": "tpu-v5p",
    "TPU v5": "tpu-v5p",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H200": "h200",
    "NVIDIA B200": "b200",
}
"""Names of chips in `compile.targets`, by JAX's `device_kind`."""


def peaks(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The best rate over all samples of the device's own rows.

    Returns:
        `flops_per_s` by precision; `bytes_per_s` of the largest copy; `copies`, bytes per second by MiB of the copy.
    """
    rates: dict[str, float] = {}
    for row in rows:
        if row["what"] in ("product", "products"):
            rates[row["precision"]] = max(row["flops"] / min(row["seconds"]), rates.get(row["precision"], 0.0))
    copies = {row["mib"]: row["bytes"] / min(row["seconds"]) for row in rows if row["what"] == "copy"}
    return {"flops_per_s": rates, "bytes_per_s": copies[max(copies)], "copies": copies}


def add_utilisation(rows: Sequence[dict[str, Any]], found: Mapping[str, Any], device_kind: str = "") -> None:
    """Add to each row its fraction of the roof at its number of FLOPs per byte: 1 is the roof.

    The memory roof is the fastest copy of arrays that are at least as large as the row's `resident` bytes, because
    caches hold smaller arrays.

    Args:
        rows: Rows of `timing.document`, which are changed. Rows of known work get `of_peak_flops`, `of_peak_bytes` and
            `of_roof`. Steps whose products were timed alone also get `of_products`, the fraction of the step's time
            that the products take. If the maker's peak is known, rows get `mfu`, their fraction of it.
        found: Result of `peaks`.
        device_kind: JAX's name of the device.
    """
    chip = CHIPS.get(KINDS.get(device_kind, ""))
    own = {(row["batch_size"], row["width"], row["precision"]): row for row in rows if row["what"] == "products"}
    for row in rows:
        if not (row["flops"] and row["bytes"]):
            continue
        devices, precision = row["devices"], row["precision"]
        large = [rate for mib, rate in found["copies"].items() if mib * MIB >= row["resident"]]
        bytes_per_s = max(large, default=found["bytes_per_s"])
        product_s = row["flops"] / (devices * found["flops_per_s"][precision])
        bytes_s = row["bytes"] / (devices * bytes_per_s)
        row["of_peak_flops"] = product_s / row["median_s"]
        row["of_peak_bytes"] = bytes_s / row["median_s"]
        row["of_roof"] = max(product_s, bytes_s) / row["median_s"]
        alone = own.get((row["batch_size"], row["width"], precision))
        if row["what"] == "step" and alone and devices == row["grad_shards"] == 1:
            row["of_products"] = alone["median_s"] / row["median_s"]
        if chip and precision in chip.flops:
            row["mfu"] = row["flops_per_s"] / (devices * chip.flops[precision])
