"""The agent fence: its table, its levels, and what counts as off; with a scripted runner (002-20, 002-38)."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest
import trio

from membership.fence.agent import AgentExit, AgentFence
from membership.fence.agent_plan import TABLE, Call, LevelPlan, Next, Outcome, Phase
from membership.fence.levels import Level, device_of
from membership.lease.records import HeartbeatSlot
from tests.sim.network import SimClock

pytestmark = pytest.mark.seed("002-20", "002-38")

TIMED_OUT = AgentExit(None, "", timed_out=True)
NOT_RUN = AgentExit(None, "/usr/sbin/fence_a: No such file or directory")
EXITS = {
    Outcome.ZERO: AgentExit(0, "fine"),
    Outcome.TWO: AgentExit(2, "two"),
    Outcome.OTHER: AgentExit(1, "no connection"),
    Outcome.TIMED_OUT: TIMED_OUT,
    Outcome.NOT_RUN: NOT_RUN,
}


def slot(name: str = "n1") -> HeartbeatSlot:
    return HeartbeatSlot(
        owner=b"C" * 16, address=66, incarnation=1, counter=1, hears=0, boot_id=b"b" * 16, machine_id=b"m" * 16,
        flags=0, pid=1, start_time=1, port=1, name=name, host="h", mount_pids=(), mount_starts=(),
        mount_incarnations=(),
    )  # fmt: skip


class Power:
    """Scripted agents: a switch per device, and answers that are used up before the switch answers."""

    def __init__(self) -> None:
        self.is_on: dict[str, bool] = {}
        self.script: dict[tuple[str, str], list[AgentExit]] = {}  # (agent, action)
        self.broken: set[str] = set()  # agents that say ok and switch nothing
        self.calls: list[tuple[str, str]] = []
        self.options: list[tuple[tuple[str, str], ...]] = []

    async def run(self, agent: str, options: Sequence[tuple[str, str]], timeout: float) -> AgentExit:
        await trio.lowlevel.checkpoint()
        assert options[0][0] == "action"
        assert [name for name, _ in options].count("action") == 1
        action = options[0][1]
        self.calls.append((agent, action))
        self.options.append(tuple(options))
        script = self.script.get((agent, action))
        if script:
            return script.pop(0)
        if action in ("on", "off"):
            if agent not in self.broken:
                self.is_on[agent] = action == "on"
            return AgentExit(0, f"Success: Powered {action.upper()}")
        if action == "status":
            return AgentExit(0, "Status: ON") if self.is_on.get(agent, True) else AgentExit(2, "Status: OFF")
        return AgentExit(0, "")


def level(*agents: str, retries: int = 1) -> Level:
    return Level(tuple(device_of(agent, ["ip=h", f"call_retries={retries}"]) for agent in agents))


def driver(power: Power, *levels: Level) -> AgentFence:
    return AgentFence(lambda name: levels if name == "n1" else (), power, SimClock())


# --- the table --------------------------------------------------------------------------------------------


def test_the_table_is_complete() -> None:
    assert set(TABLE) == set(itertools.product(Phase, Outcome))


@pytest.mark.parametrize(("phase", "outcome"), list(itertools.product(Phase, Outcome)))
def test_every_phase_and_outcome(phase: Phase, outcome: Outcome) -> None:
    """Two devices, one retry each; the plan is brought into ``phase`` at its first device."""
    on = phase in (Phase.ON, Phase.SEE_ON)
    plan = LevelPlan([1, 1], switch_on=on)
    if phase in (Phase.SEE_OFF, Phase.SEE_ON):
        plan.done(Outcome.ZERO)
        plan.done(Outcome.ZERO)
    first = "status" if phase in (Phase.SEE_OFF, Phase.SEE_ON) else phase.value
    assert plan.call == Call(0, first)
    plan.done(outcome)
    expected = {
        Next.FORWARD: Call(1, first),
        Next.REPEAT: Call(0, first),
        Next.BACK: Call(0, "on" if on else "off"),
        Next.GIVE_UP: None,
    }[TABLE[phase, outcome]]
    assert plan.call == expected
    assert not plan.is_confirmed
    assert plan.must_wait == (TABLE[phase, outcome] in (Next.REPEAT, Next.BACK))
    assert plan.failed == (0 if TABLE[phase, outcome] is Next.GIVE_UP else None)


@pytest.mark.parametrize("on", [False, True])
def test_only_one_way_confirms(on: bool) -> None:
    """Whatever the devices answer: it ends, and confirmed means P1."""
    rng = random.Random(38)
    confirmed = 0
    good = Outcome.ZERO if on else Outcome.TWO
    for _ in range(3000):
        retries = [rng.randrange(3) for _ in range(rng.randrange(1, 4))]
        plan = LevelPlan(retries, switch_on=on)
        log: list[tuple[Call, Outcome]] = []
        while (call := plan.call) is not None:
            right = Outcome.ZERO if call.action != "status" else good
            outcome = right if rng.random() < 0.8 else rng.choice(list(Outcome))
            log.append((call, outcome))
            plan.done(outcome)
        assert len(log) <= 2 * len(retries) + sum(retries) * (len(retries) + 2)
        switched = {call.device for call, outcome in log if call.action != "status" and outcome is Outcome.ZERO}
        last_switch = max(n for n, (call, _) in enumerate(log) if call.action != "status")
        tail = log[last_switch + 1 :]
        seen = [call.device for call, outcome in tail if outcome is good]
        is_proved = switched == set(range(len(retries))) and seen == list(range(len(retries)))
        assert plan.is_confirmed == is_proved, log
        assert plan.is_confirmed == (plan.failed is None)
        confirmed += plan.is_confirmed
    assert 300 < confirmed < 2700


# --- the driver -------------------------------------------------------------------------------------------


async def test_off_then_status_and_nothing_else(autojump_clock) -> None:
    power = Power()
    fence = driver(power, level("fence_a"))
    result = await fence.fence(slot(), 0.0)
    assert (result.confirmed, result.driver) == (True, "agent")
    assert result.detail == "fence_a (level 1): off, and status says so"
    assert power.calls == [("fence_a", "off"), ("fence_a", "status")]
    assert power.options[0] == (("action", "off"), ("ip", "h"))
    assert fence.is_gone(slot()) is None


async def test_ok_but_still_on_is_no_fence(autojump_clock) -> None:
    power = Power()
    power.broken = {"fence_a"}
    result = await driver(power, level("fence_a")).fence(slot(), 0.0)
    assert not result.confirmed
    assert result.detail == "level 1: fence_a: status says on after the agent had said it is done"
    assert power.calls == [("fence_a", "off"), ("fence_a", "status")] * 2


async def test_the_second_level_after_the_first(autojump_clock) -> None:
    power = Power()
    power.script["fence_a", "off"] = [EXITS[Outcome.OTHER], TIMED_OUT]
    result = await driver(power, level("fence_a"), level("fence_b")).fence(slot(), 0.0)
    assert result.confirmed
    assert "(level 2)" in result.detail
    assert power.calls == [("fence_a", "off")] * 2 + [("fence_b", "off"), ("fence_b", "status")]


async def test_no_level_confirms(autojump_clock) -> None:
    power = Power()
    power.script["fence_a", "off"] = [NOT_RUN]
    power.script["fence_b", "off"] = [TIMED_OUT] * 2
    result = await driver(power, level("fence_a"), level("fence_b")).fence(slot(), 0.0)
    assert not result.confirmed
    assert result.detail == (
        "level 1: fence_a: can't be run: /usr/sbin/fence_a: No such file or directory; "
        "level 2: fence_b: off did not end in 60 s"
    )


async def test_redundant_supplies_are_all_off_at_once(autojump_clock) -> None:
    power = Power()
    assert (await driver(power, level("fence_a", "fence_b")).fence(slot(), 0.0)).confirmed
    assert power.calls == [("fence_a", "off"), ("fence_b", "off"), ("fence_a", "status"), ("fence_b", "status")]


async def test_a_supply_that_somebody_switched_on_meanwhile_is_switched_off_again(autojump_clock) -> None:
    power = Power()
    power.script["fence_b", "status"] = [AgentExit(0, "Status: ON")]
    assert (await driver(power, level("fence_a", "fence_b")).fence(slot(), 0.0)).confirmed
    assert power.calls == [
        ("fence_a", "off"), ("fence_b", "off"), ("fence_a", "status"), ("fence_b", "status"),
        ("fence_b", "off"), ("fence_a", "status"), ("fence_b", "status"),
    ]  # fmt: skip


async def test_one_supply_that_stays_on_fails_the_level(autojump_clock) -> None:
    power = Power()
    power.broken = {"fence_b"}
    result = await driver(power, level("fence_a", "fence_b")).fence(slot(), 0.0)
    assert not result.confirmed
    assert "fence_b: status says on" in result.detail


async def test_a_repetition_waits_a_moment(autojump_clock) -> None:
    power = Power()
    power.script["fence_a", "off"] = [TIMED_OUT]
    began = trio.current_time()
    assert (await driver(power, level("fence_a")).fence(slot(), 0.0)).confirmed
    assert trio.current_time() - began == 1.0


async def test_without_configuration_nothing_is_confirmed() -> None:
    result = await driver(Power()).fence(slot("n9"), 0.0)
    assert (result.confirmed, result.detail) == (False, "no fence agent is configured for node n9")


async def test_secrets_of_the_output_are_hidden_and_it_is_short(autojump_clock) -> None:
    power = Power()
    power.script["fence_a", "off"] = [AgentExit(1, "x" * 5000 + "\n\nlogin with hunter2 failed")]
    secret = Level((device_of("fence_a", ["passwd=hunter2", "call_retries=0"]),))
    result = await driver(power, secret).fence(slot(), 0.0)
    assert result.detail.endswith("login with *** failed")
    assert len(result.detail) < 300
    assert power.options[0][1] == ("passwd", "hunter2")


async def test_unfence_switches_on_the_last_level_first(autojump_clock) -> None:
    power = Power()
    power.is_on = {"fence_a": False, "fence_b": False, "fence_c": False}
    result = await driver(power, level("fence_a"), level("fence_b", "fence_c")).unfence("n1")
    assert (result.confirmed, result.detail) == (True, "on, and status says so")
    assert power.calls == [
        ("fence_b", "on"), ("fence_c", "on"), ("fence_b", "status"), ("fence_c", "status"),
        ("fence_a", "on"), ("fence_a", "status"),
    ]  # fmt: skip


async def test_unfence_says_what_stays_off(autojump_clock) -> None:
    power = Power()
    power.is_on = {"fence_a": False, "fence_b": False}
    power.broken = {"fence_b"}
    result = await driver(power, level("fence_a"), level("fence_b")).unfence("n1")
    assert not result.confirmed
    assert result.detail == "level 2: fence_b: status says off after the agent had said it is done"
    assert power.is_on["fence_a"]
    assert not (await driver(power).unfence("n9")).confirmed


async def test_check_switches_nothing() -> None:
    power = Power()
    power.is_on = {"fence_b": False}
    power.script["fence_c", "monitor"] = [EXITS[Outcome.OTHER]]
    power.script["fence_d", "status"] = [TIMED_OUT]
    checks = await driver(power).check(level("fence_a", "fence_b", "fence_c", "fence_d"))
    assert [(c.monitor, c.power) for c in checks] == [
        (True, "on"), (True, "off"), (False, "unknown"), (True, "unknown"),
    ]  # fmt: skip
    assert checks[0].device == "fence_a ip=h"
    assert checks[2].detail == "fence_c: monitor failed with exit code 1: no connection"
    assert checks[3].detail == "fence_d: status did not end in 60 s"
    assert {action for _, action in power.calls} == {"monitor", "status"}
