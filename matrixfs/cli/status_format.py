"""``matrixctl status`` for people: a status (membership/status.py) as text (pure; 002-26, R4, R14).

Invariants:
- F1. All that was written by others (names, hosts, texts) is made printable before it is laid out.
- F2. What is wrong or waits is said in words where it stands, with whom it waits for and since when (R14).

The golden test is tests/matrixfs/test_cli_status_format.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from matrixfs.cli.common import local_time, printable, table
from matrixfs.cli.disks_format import disk_lines

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import tzinfo

Fields = dict[str, Any]

_RECOVERIES_SHOWN: Final = 5
_WAIT_SECONDS_SHOWN: Final = 0.5
_CHANGING: Final = (2, 5)  # dlm/modes.py: CW, EX
_FENCES_SHOWN: Final = 5
_MEANINGS: Final = {
    "group": "processes that communicate",
    "san": "may use the store",
    "cluster": "known to the disk",
}


def format_status(status: Mapping[str, Any], zone: tzinfo | None = None) -> str:
    """The whole text, with a newline at the end.

    Args:
        status: what matrixd answered: ``membership.status.Status`` plus ``local_mounts`` and ``remote_mounts``.
        zone: time zone of the times shown, by default the machine's.
    """
    clean: Fields = _clean(status)
    names = {node["id"]: node["name"] for node in clean["nodes"]}
    blocks = [_head(clean, names), _nodes(clean), _paths(clean, names), disk_lines(clean), _memberships(clean, names)]
    blocks += [_filesystem(fs, clean, names) for fs in clean["filesystems"]] or [["No filesystem is mounted."]]
    blocks += [_waits(clean), _recoveries(clean, names, zone), _fences(clean, zone)]
    blocks.append([f"Timing: {clean['timing']['formula']}"])
    return "\n".join("\n".join(lines) + "\n" for lines in blocks if lines)


def _clean(value: Any) -> Any:
    """``value`` with every text in it printable (F1)."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {_clean(key): _clean(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clean(item) for item in value]
    return value


def _head(status: Fields, names: Mapping[int, str]) -> list[str]:
    left = status["lease_left"]
    right = f"may write for {left:.1f} s more" if left > 0 else f"MAY NOT WRITE: its lease ended {-left:.1f} s ago"
    cluster = f"Cluster {status['cluster_name']} ({status['cluster_uuid']})"
    administrator, coordinator = (_name(status[role], names) for role in ("administrator", "coordinator"))
    return [
        f"{cluster}   generation {status['generation']}   store {status['store']}",
        f"This node: {status['name']} ({status['node']}), {status['state']}, {right}",
        f"Administrator: {administrator}   coordinator: {coordinator}   group view {status['view']}",
    ]


def _nodes(status: Fields) -> list[str]:
    rows: list[Sequence[object]] = [("ID", "NODE", "ADDRESS", "STATE", "LINK", "LEASE", "SLOT AGE", "MOUNTS")]
    for node in status["nodes"]:
        rows.append(
            (
                node["id"],
                node["name"] + ("*" if node["is_self"] else ""),
                _address(node["host"], node["port"]),
                node["state"],
                node["link"],
                _lease(node, status),
                f"{node['slot_age']:.1f} s",
                node["mounts"],
            )
        )
    troubles = [f"  NO LINK to {node['name']}: {node['trouble']}" for node in status["nodes"] if node["trouble"]]
    return ["Nodes (* this one)", *table(rows, right={0, 6, 7}), *troubles]


def _paths(status: Fields, names: Mapping[int, str]) -> list[str]:
    """Which path each link of this node uses, where nodes have several addresses."""
    others = {node["id"]: node["others"] for node in status["nodes"]}
    if not any(others.values()):
        return []
    rows: list[Sequence[object]] = [("LINK OF", "TO", "IN USE", "FURTHER ADDRESSES", "MOVED")]
    links = [("matrixd", node["id"], node) for node in status["nodes"] if not node["is_self"]]
    for mount in status.get("local_mounts", []):
        links += [(mount["mountpoint"], link["node"], link) for link in (mount["counters"] or {}).get("peers", [])]
    for whose, node, link in links:
        addresses = " ".join(others.get(node, [])) or "-"
        rows.append((whose, _name(node, names), link["path"] or "-", addresses, link["moves"]))
    own = " ".join(status["others"]) or "none"
    return [f"Paths of this node's links; its own further addresses: {own}", *table(rows, right={4})]


def _lease(node: Fields, status: Fields) -> str:
    """How long the node may still write: exact for this one, at most for others, whose slot we saw move (R3)."""
    if node["is_self"] and status["state"] == "fenced":
        return "none"
    if node["is_self"]:
        return f"{max(status['lease_left'], 0.0):.1f} s"
    left = status["timing"]["lease"] - node["slot_age"]
    may_write = node["state"] in ("member", "fencing")  # others' slots may be fresh, too: fenced and not yet back
    return f"<= {left:.1f} s" if left > 0 and may_write else "none"


def _memberships(status: Fields, names: Mapping[int, str]) -> list[str]:
    memberships = status["memberships"]
    filesystems = {fs["uuid"]: fs["name"] for fs in status["filesystems"]}
    rows = [(kind, _names(memberships[kind], names), meaning) for kind, meaning in _MEANINGS.items()]
    groups = [
        ("storage group", _names(nodes, names), f"mount {filesystems.get(uuid, uuid)}")
        for uuid, nodes in sorted(memberships["storage_groups"].items())
    ]
    return ["Memberships", *table([*rows[:2], *groups, *rows[2:]])]


def _filesystem(fs: Fields, status: Fields, names: Mapping[int, str]) -> list[str]:
    journals = f"   {fs['journals']} journals" if fs["journals"] else ""
    lines = [f"Filesystem {fs['name']} ({fs['uuid']}){journals}", f"  {_phase(fs, names)}"]
    if fs["error"]:
        lines.append(f"  ERROR, isolated: {fs['error']}")
    lines += [
        f"  {_name(dead['node'], names)} died (incarnation {dead['incarnation']:#x}): "
        f"journal {dead['journal']} is not replayed yet"
        for dead in fs["dead"]
    ]
    known = {(status["node"], mount["filesystem"]): mount for mount in status.get("local_mounts", [])}
    known |= {(mount["node"], mount["filesystem"]): mount for mount in status.get("remote_mounts", [])}
    for (node, name), mount in known.items():
        freeze = (mount["counters"] or {}).get("freeze")
        if name == fs["name"] and freeze and not freeze["error"]:
            lines.append(_frozen(freeze, _name(node, names)))
    rows: list[Sequence[object]] = [("NODE", "JOURNAL", "LOCK ADDRESS", "PID", "MOUNTED ON")]
    for mount in fs["mounts"]:
        process = known.get((mount["node"], fs["name"]), {"pid": mount["pid"], "counters": {}})
        place = mount["mountpoint"] + (" (does not answer)" if process["counters"] is None else "")
        rows.append(
            (
                _name(mount["node"], names),
                mount["journal"] if mount["journal"] >= 0 else "none yet",
                _address(mount["host"], mount["port"]),
                process["pid"] or "-",
                place or "-",
            )
        )
    return lines + (table(rows, right={1, 3}) if fs["mounts"] else ["  not mounted"])


def _frozen(freeze: Fields, node: str) -> str:
    """Who holds it still, since when and for how long (R14)."""
    if not freeze["frozen"]:
        return f"  being frozen by {node} for {freeze['seconds']:.1f} s: mounts bring home what they changed"
    since, left = freeze["seconds"], freeze["left"]
    return f"  FROZEN by {node} for {since:.1f} s: writers wait; it thaws by itself in {left:.1f} s"


def _phase(fs: Fields, names: Mapping[int, str]) -> str:
    """Attempt and phase; who is waited for, and since when (F2)."""
    attempt = _attempt(fs["attempt"])
    if fs["phase"] == "idle":
        return f"attempt {attempt}, running"
    waiting = f", waiting for {_names(fs['waiting_for'], names)}" if fs["waiting_for"] else ""
    return f"attempt {attempt}, RECOVERING: {fs['phase']} for {fs['phase_age']:.1f} s{waiting}"


def _waits(status: Fields) -> list[str]:
    """Who on this node has waited for a lock for long enough that somebody may ask why (R14)."""
    rows: list[Sequence[object]] = [("TREE", "WAITS FOR", "TO", "SECONDS", "BECAUSE OF")]
    for mount in status.get("local_mounts", []):
        for wait in (mount["counters"] or {}).get("waits", []):
            if wait["seconds"] >= _WAIT_SECONDS_SHOWN:
                use = "change it" if wait["wanted"] in _CHANGING else "read it"
                rows.append((mount["mountpoint"], wait["resource"], use, f"{wait['seconds']:.1f}", wait["reason"]))
    return ["Waiting on this node, longest first", *table(rows, right={3})] if len(rows) > 1 else []


def _recoveries(status: Fields, names: Mapping[int, str], zone: tzinfo | None) -> list[str]:
    filesystems = {fs["uuid"]: fs["name"] for fs in status["filesystems"]}
    lines = []
    for recovery in reversed(status["recoveries"][-_RECOVERIES_SHOWN:]):
        phases = ", ".join(f"{phase} {seconds:.3f}" for phase, seconds in recovery["phases"])
        cause = "members changed, or it grew"
        if recovery["dead"]:
            cause = f"after the death of {_names(recovery['dead'], names)}"
        lines.append(
            f"  {local_time(recovery['wall_ns'], zone)}  {filesystems.get(recovery['fs'], recovery['fs'])}, "
            f"attempt {_attempt(recovery['attempt'])}, {cause}: {recovery['seconds']:.3f} s ({phases})"
            + (f"; ISOLATED: {recovery['error']}" if recovery["error"] else "")
        )
    return ["Recoveries, newest first (seconds)", *lines] if lines else []


def _fences(status: Fields, zone: tzinfo | None) -> list[str]:
    lines = [
        f"  {local_time(fence['wall_ns'], zone)}  {fence['name']} ({fence['node']}) by {fence['driver']}: "
        f"{'confirmed' if fence['confirmed'] else 'NOT CONFIRMED'}, {fence['detail']}"
        for fence in reversed(status["fences"][-_FENCES_SHOWN:])
    ]
    return ["Fencing, newest first", *lines] if lines else []


def _attempt(attempt: int) -> str:
    """Generation and counter of an attempt, which is generation << 32 | counter."""
    return f"{attempt >> 32}.{attempt & 0xFFFF_FFFF}"


def _address(host: str, port: int) -> str:
    if not host:
        return "-"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _name(node: int, names: Mapping[int, str]) -> str:
    return "none" if node < 0 else names.get(node, f"node {node}")


def _names(nodes: Sequence[int], names: Mapping[int, str]) -> str:
    return " ".join(_name(node, names) for node in nodes) or "none"
