"""How is a benchmark written as log lines for MLPerf's tools?

Source: MLCommons, `mlperf_logging` 4.0: `:::MLLOG` and a JSON object with namespace, time, kind, key, value, metadata.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any


def mllog_lines(document: Mapping[str, Any]) -> Iterator[str]:
    """Log lines for a document of `run_suite`: submission, start, each row's throughput and median, end."""
    began, ended = document["began_unix_s"], document["ended_unix_s"]
    binding = document["manifest"]["binding"]
    yield _line(began, "POINT_IN_TIME", "submission_benchmark", f"jaxmlp-{document['suite']}")
    yield _line(
        began,
        "POINT_IN_TIME",
        "submission_platform",
        f"{document['manifest']['not_binding']['devices']}x{binding['device_kind']}",
    )
    yield _line(began, "INTERVAL_START", "run_start", None)
    for row in document["rows"]:
        sizes = {name: row[name] for name in ("key", "batch_size", "width", "precision", "devices", "grad_shards")}
        figures = {"median_s": row["median_s"], "iqr_s": row["iqr_s"], "flops_per_s": row["flops_per_s"]}
        if row["examples"]:
            figures["throughput"] = row["examples_per_s"]
        yield _line(ended, "POINT_IN_TIME", "tracked_stats", figures, sizes)
    yield _line(ended, "INTERVAL_END", "run_stop", None, {"status": "success"})


def _line(unix_s: float, event_type: str, key: str, value: Any, metadata: Mapping[str, Any] | None = None) -> str:
    event = {
        "namespace": "",
        "time_ms": int(unix_s * 1000),
        "event_type": event_type,
        "key": key,
        "value": value,
        "metadata": {"file": "jaxmlp/bench/mllog.py", "lineno": 0, **(metadata or {})},
    }
    return f":::MLLOG {json.dumps(event)}"
