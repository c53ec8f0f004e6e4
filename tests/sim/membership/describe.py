"""The state of a simulated cluster in words, for a seed that failed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from tests.sim.membership.machines import Machine
    from tests.sim.membership.world import World


def describe(world: World) -> str:
    """Everything."""
    lines = [f"t={trio.current_time():.3f} journals={world.journals} cuts={world.net._cuts}"]
    for machine in world.machines.values():
        lines += _machine(machine)
    return "\n".join(lines)


def _machine(machine: Machine) -> list[str]:
    core = machine.node.core
    lines = [f"{machine.name}: running={machine.running} frozen={machine.freezer.is_frozen} error={machine.error}"]
    lines += [f"   {path}" for path in machine.paths if not path.is_healthy]
    if core is None:
        return lines
    admin, group, now = core.admin, core.group, trio.current_time()
    peers = {n: p.state.value for n, p in group.peers.items()}
    lines.append(f"   node {core.me.node}: {core.lease.state} until {core.lease.deadline:.3f} {admin.role}")
    lines.append(f"   view {group.view.number} {sorted(group.view.members)} accepted={group._accepted} peers={peers}")
    settled, alive = group.is_settled(core.watch.alive(now)), sorted(core.watch.alive(now))
    lines.append(f"   settled={settled} alive={alive} sighted={sorted(group.sighted())} busy={admin._busy}")
    header = admin.header
    text = f"   header g{header.generation} by {header.administrator} members {sorted(header.members)}"
    lines.append(f"{text} fencing {sorted(header.fencing)}")
    if core.filesystems is not None:
        lines += [
            f"   fs {fs.phase.value} waiting={fs.waiting} members={sorted(fs.members)} dead={list(fs.dead)}"
            f" unfenced={fs._unfenced} error={fs.error}"
            for fs in core.filesystems.by_uuid.values()
        ]
        lines.append(f"   reports missing: {core.filesystems.reports_missing}")
    lines += [
        f"      {e['wall_ns'] / 1e9 - 1.7e9:.3f} {e['kind']}: {e['text']}" for e in list(machine.node.book.events)[-25:]
    ]
    lines += [
        f"   mount pid {m.pid}: alive={m.alive} granting={m.granting} journal={m.journal} attempt={m.attempt}"
        f" gate={m.gate.fenced} until {m.gate.deadline:.3f}"
        for m in machine.mounts
    ]
    return lines
