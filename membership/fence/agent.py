"""The agent fence: power off through fence agents, confirmed by their ``status`` (002-20, 002-38).

The agents are those of Pacemaker and their like (fence-agents API): options as ``name=value`` lines on standard input,
**no argument at all**, for with any argument an agent ignores its input, and its default action is ``reboot``.  Exit 0
of ``off`` alone is no fence; what counts stands in ``agent_plan`` (P1).  Levels are tried in order until one confirms.

The driver is thin: ``agent_plan`` decides, ``AgentRunner`` runs processes (``agent_process``), the clock is injected.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Protocol

from membership.fence.agent_plan import LevelPlan, Outcome
from membership.san.fence import FenceResult

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from membership.fence.levels import Device, Level
    from membership.lease.records import HeartbeatSlot
    from membership.seams import Clock

PAUSE_SECONDS: Final = 1.0  # before a call is repeated: management cards refuse a second session for a moment
SAID_CHARACTERS_MAX: Final = 200  # of an agent's words in one detail
ACTIONS: Final = frozenset({"on", "off", "status", "monitor"})
EXIT_OFF: Final = 2  # of status


class AgentExit(NamedTuple):
    """How a run ended."""

    code: int | None  # exit code, negative: ended by that signal; None: it never ran, or was killed when time was over
    output: str  # printable, bounded
    timed_out: bool = False

    @property
    def outcome(self) -> Outcome:
        """As ``agent_plan`` sees it."""
        if self.code is None:
            return Outcome.TIMED_OUT if self.timed_out else Outcome.NOT_RUN
        return {0: Outcome.ZERO, EXIT_OFF: Outcome.TWO}.get(self.code, Outcome.OTHER)


class AgentRunner(Protocol):
    """Runs agents; the real one is ``agent_process.ProcessRunner``."""

    async def run(self, agent: str, options: Sequence[tuple[str, str]], timeout: float) -> AgentExit:
        """Run it once, with these lines on its input, and end it after ``timeout`` seconds.  Raises nothing."""
        ...


@dataclass(frozen=True, slots=True)
class DeviceCheck:
    """What ``AgentFence.check`` found out about one device."""

    device: str  # described, without secrets
    monitor: bool  # the device answered
    power: Literal["on", "off", "unknown"]
    detail: str  # what the agent said, or why nothing is known


class AgentFence:
    """Fence driver over the configured levels of a node; also what ``matrixctl node fence|unfence`` and tests use."""

    name = "agent"

    def __init__(self, levels_of: Callable[[str], Sequence[Level]], runner: AgentRunner, clock: Clock) -> None:
        """Args: levels_of: the levels of a node by its name, in order; empty when none are configured."""
        self._levels_of = levels_of
        self._runner = runner
        self._clock = clock

    def is_gone(self, target: HeartbeatSlot) -> bool | None:
        """Nobody knows without asking a device, which takes long."""
        return None

    async def fence(self, target: HeartbeatSlot, evicted_at: float) -> FenceResult:
        """Try the levels of the target in order until one is off for certain."""
        levels = self._levels_of(target.name)
        if not levels:
            return self._result(False, f"no fence agent is configured for node {target.name}")
        reasons: list[str] = []
        for number, level in enumerate(levels, 1):
            reason = await self._switch(level, on=False)
            if reason is None:
                agents = " and ".join(device.agent for device in level.devices)
                return self._result(True, f"{agents} (level {number}): off, and status says so")
            reasons.append(f"level {number}: {reason}")
        return self._result(False, "; ".join(reasons))

    async def unfence(self, node_name: str) -> FenceResult:
        """Switch on all devices of all levels, the last level first: an outlet feeds the management card before it.

        Returns:
            ``confirmed``: status of each says on.
        """
        levels = self._levels_of(node_name)
        if not levels:
            return self._result(False, f"no fence agent is configured for node {node_name}")
        reasons: list[str] = []
        for number, level in reversed(list(enumerate(levels, 1))):
            reason = await self._switch(level, on=True)
            if reason is not None:
                reasons.append(f"level {number}: {reason}")
        return self._result(not reasons, "; ".join(reasons) or "on, and status says so")

    async def check(self, level: Level) -> tuple[DeviceCheck, ...]:
        """Ask each device for ``monitor`` and ``status``, once; nothing is switched."""
        return tuple([await self._check(device) for device in level.devices])

    # -- internals ---------------------------------------------------------------------------------------------

    def _result(self, confirmed: bool, detail: str) -> FenceResult:
        return FenceResult(confirmed=confirmed, driver=self.name, detail=detail)

    async def _switch(self, level: Level, *, on: bool) -> str | None:
        """None when the level is off (on) for certain, else why not."""
        plan = LevelPlan([device.retries for device in level.devices], switch_on=on)
        reason = ""
        while (call := plan.call) is not None:
            if plan.must_wait:
                await self._clock.sleep(PAUSE_SECONDS)
            device = level.devices[call.device]
            ended = await self._run(device, call.action)
            reason = _reason(device, call.action, ended)
            plan.done(ended.outcome)
        return None if plan.is_confirmed else reason

    async def _run(self, device: Device, action: str) -> AgentExit:
        assert action in ACTIONS
        return await self._runner.run(device.agent, (("action", action), *device.options), device.timeout)

    async def _check(self, device: Device) -> DeviceCheck:
        monitor = await self._run(device, "monitor")
        if monitor.outcome is not Outcome.ZERO:
            return DeviceCheck(device.described(), False, "unknown", _reason(device, "monitor", monitor))
        status = await self._run(device, "status")
        if status.outcome is Outcome.ZERO:
            return DeviceCheck(device.described(), True, "on", _said(device, status))
        if status.outcome is Outcome.TWO:
            return DeviceCheck(device.described(), True, "off", _said(device, status))
        return DeviceCheck(device.described(), True, "unknown", _reason(device, "status", status))


def _said(device: Device, ended: AgentExit) -> str:
    """The end of what the agent said, on one line and without secrets."""
    text = " ".join(device.without_secrets(ended.output).split())
    return text if len(text) <= SAID_CHARACTERS_MAX else "..." + text[-SAID_CHARACTERS_MAX:]


def _reason(device: Device, action: str, ended: AgentExit) -> str:
    """Why a call was not enough."""
    said = _said(device, ended)
    tail = f": {said}" if said else ""
    if ended.timed_out:
        return f"{device.agent}: {action} did not end in {device.timeout:g} s{tail}"
    if ended.code is None:
        return f"{device.agent}: can't be run{tail}"
    if action == "status" and ended.code in (0, EXIT_OFF):
        return f"{device.agent}: status says {'on' if ended.code == 0 else 'off'} after the agent had said it is done"
    return f"{device.agent}: {action} failed with exit code {ended.code}{tail}"
