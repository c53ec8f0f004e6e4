"""A status as Prometheus text, version 0.0.4 (pure; the metrics are declared in metrics_table.py).

Every metric has its HELP and TYPE once, then its samples; none without samples.  Names and texts in label values come
from others and are escaped; what is no finite number is left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final

from matrixfs.cli.metrics_table import HISTOGRAM, METRICS, NODE, PEER, Metric

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_ESCAPES: Final = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})
_LABEL_MAX: Final = 200  # characters of a value

Sample = tuple[tuple[str, ...], Any]  # values of the labels, value


def metrics_text(status: dict[str, Any]) -> str:
    """All metrics of a node: of itself and of its mounts.

    Args:
        status: what matrixd answers to ``status``.
    """
    lines: list[str] = []
    node = str(status.get("name", ""))
    prepared = _prepare(status)
    for metric in METRICS:
        samples = [line for values, value in _samples(metric, prepared, node) for line in _lines(metric, values, value)]
        if samples:
            lines += [f"# HELP {metric.name} {metric.help}", f"# TYPE {metric.name} {metric.kind}", *samples]
    return "\n".join(lines) + "\n"


def _prepare(status: dict[str, Any]) -> dict[str, Any]:
    """The status with what the table names and the status has in another form."""
    states: dict[str, int] = {}
    names: dict[int, str] = {}
    for node in status.get("nodes", []):
        states[node["state"]] = states.get(node["state"], 0) + 1
        names[node["id"]] = node["name"]
    newest = {recovery["fs"]: recovery for recovery in status.get("recoveries", [])}
    found = dict(status)
    found["node_states"] = states
    found["recovery"] = {fs: _sums(recovery["phases"]) for fs, recovery in newest.items()}
    found["recovery_end"] = {fs: recovery["wall_ns"] for fs, recovery in newest.items()}
    found["mounts"] = [
        (mount["filesystem"], _prepare_mount(mount["counters"], names))
        for mount in status.get("local_mounts", [])
        if isinstance(mount.get("counters"), dict)
    ]
    return found


def _sums(phases: list[tuple[str, float]]) -> dict[str, float]:
    """By phase: one that failed is gone through again."""
    found: dict[str, float] = {}
    for phase, seconds in phases:
        found[phase] = found.get(phase, 0.0) + seconds
    return found


def _prepare_mount(counters: dict[str, Any], names: dict[int, str]) -> dict[str, Any]:
    peers = {
        names.get(peer["node"], f"node {peer['node']}"): {**peer, "up": int(peer.get("phase") == "up")}
        for peer in counters.get("peers", [])
    }
    waits = counters.get("waits", [])
    return {**counters, "peers": peers, "waits": {"length": len(waits), **({"0": waits[0]} if waits else {})}}


def _samples(metric: Metric, status: dict[str, Any], node: str) -> Iterator[Sample]:
    path = metric.path.split(".")
    if metric.labels == PEER:
        path.insert(1, "*")
    if metric.labels[:1] == NODE and path[0] in status:
        yield from (((node, *values), value) for values, value in _walk(status, path))
    for filesystem, counters in status["mounts"]:
        if path[0] in counters:
            yield from (((node, filesystem, *values), value) for values, value in _walk(counters, path))


def _walk(fields: Any, path: list[str]) -> Iterator[Sample]:
    if not path:
        yield (), fields
        return
    if not isinstance(fields, dict):
        return
    step, *rest = path
    if not step.endswith("*"):
        if step in fields:
            yield from _walk(fields[step], rest)
        return
    prefix = step[:-1]
    for key in sorted(map(str, fields)):
        if key.startswith(prefix):
            yield from (((key[len(prefix) :], *values), value) for values, value in _walk(fields[key], rest))


def _lines(metric: Metric, values: tuple[str, ...], value: Any) -> list[str]:
    labels = [f'{name}="{_escape(text)}"' for name, text in zip(metric.labels, values, strict=True)]
    if metric.kind == HISTOGRAM:
        return _histogram(metric.name, labels, value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return []
    return [f"{metric.name}{{{','.join(labels)}}} {_number(value * metric.scale if metric.scale != 1 else value)}"]


def _histogram(name: str, labels: list[str], value: Any) -> list[str]:
    """``value``: by bound, what was counted below it (``matrixfs.locks.counters.Histogram``), and its ``sum``."""
    buckets = {bound: count for bound, count in value.items() if bound != "sum"}
    joined = ",".join(labels)
    lines = [f'{name}_bucket{{{joined},le="{bound}"}} {count}' for bound, count in buckets.items()]
    return [*lines, f"{name}_sum{{{joined}}} {_number(value['sum'])}", f"{name}_count{{{joined}}} {buckets['+Inf']}"]


def _number(value: float) -> str:
    return repr(value)


def _escape(text: str) -> str:
    return text[:_LABEL_MAX].encode(errors="replace").decode().translate(_ESCAPES)
