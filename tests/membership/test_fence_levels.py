"""Fence devices as operators write them: one clear line per mistake, secrets never shown, hostile plain data."""

from __future__ import annotations

import json
import random

import pytest

from membership.errors import BadMessage, OperatorError
from membership.fence.levels import (
    DEVICES_MAX,
    LEVELS_MAX,
    OPTIONS_MAX,
    VALUE_CHARACTERS_MAX,
    Device,
    Level,
    device_of,
    levels_from_list_untrusted,
)

pytestmark = pytest.mark.seed("002-20", "002-38")

IPMI = device_of("fence_ipmilan", ["ip=10.0.0.7", "username=admin", "password=a=b c", "lanplus=1", "call_timeout=20"])


def test_what_an_operator_writes() -> None:
    assert IPMI.agent == "fence_ipmilan"
    assert IPMI.options == (("ip", "10.0.0.7"), ("username", "admin"), ("password", "a=b c"), ("lanplus", "1"))
    assert (IPMI.timeout, IPMI.retries) == (20.0, 2)
    assert device_of("/opt/ours/fence_x", ["empty=", "call_retries=0"]) == Device(
        "/opt/ours/fence_x", (("empty", ""),), 60.0, 0
    )


@pytest.mark.parametrize(
    ("agent", "settings", "message"),
    [
        ("ipmilan", [], "'ipmilan': no fence agent; give a name like fence_ipmilan, or an absolute path"),
        ("", [], "'': no fence agent"),
        ("fence_x -o", [], "no fence agent"),
        ("fence_../x", [], "no fence agent"),
        ("/usr/sbin/../bin/sh", [], "write the plain absolute path"),
        ("/usr/sbin/fence_x\n", [], "write the plain absolute path"),
        ("//usr/sbin/", [], "write the plain absolute path"),
        ("fence_x", ["ip"], "'ip': not NAME=VALUE"),
        ("fence_x", ["=5"], "'=5': not NAME=VALUE"),
        ("fence_x", ["ip=1", "ip=2"], "ip: given twice"),
        ("fence_x", ["power-wait=1", "power_wait=2"], "power_wait: given twice"),
        ("fence_x", ["action=reboot"], "action: what an agent does is not configured"),
        ("fence_x", ["Action=reboot"], "Action: what an agent does is not configured"),
        ("fence_x", ["option=reboot"], "option: what an agent does is not configured"),
        ("fence_x", ["help=1"], "help: what an agent does is not configured"),
        ("fence_x", ["version=1"], "version: what an agent does is not configured"),
        ("fence_x", ["#ip=1"], "'#ip': no option name"),
        ("fence_x", [" action=on"], "' action': no option name"),
        ("fence_x", ["a\nction=on"], "no option name"),
        ("fence_x", ["x" * 65 + "=1"], "no option name"),
        ("fence_x", ["ip=1\naction=reboot"], "ip: the value holds a line end"),
        ("fence_x", ["ip=1\raction=reboot"], "ip: the value holds a line end"),
        ("fence_x", ["ip=1\x85action=reboot"], "ip: the value holds a line end"),
        ("fence_x", ["ip=1\u2028action=reboot"], "ip: the value holds a line end"),
        ("fence_x", ["ip=\0"], "ip: the value holds a line end"),
        ("fence_x", ["ip= 1"], "begins or ends with a space"),
        ("fence_x", ["ip=" + "1" * (VALUE_CHARACTERS_MAX + 1)], "ip: the value has 1025 characters, at most 1024"),
        ("fence_x", [f"o{n}=1" for n in range(OPTIONS_MAX + 1)], "65 options, at most 64"),
        ("fence_x", ["call_timeout=0"], "call_timeout: 0 is not from 1 to 600"),
        ("fence_x", ["call_timeout=601"], "call_timeout: 601 is not from 1 to 600"),
        ("fence_x", ["call_timeout=nan"], "call_timeout: 'nan' is no number"),
        ("fence_x", ["call_timeout=2", "call_timeout=3"], "call_timeout: given twice"),
        ("fence_x", ["call_retries=11"], "call_retries: 11 is not from 0 to 10"),
        ("fence_x", ["call_retries=1.5"], "call_retries: 1.5 is no whole number"),
        ("fence_x", ["call_retries=-1"], "call_retries: '-1' is no number"),
    ],
)
def test_each_mistake_has_one_clear_line(agent: str, settings: list[str], message: str) -> None:
    with pytest.raises(OperatorError) as caught:
        device_of(agent, settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["passwd", "password", "passwd_script", "PASSWORD", "client-secret", "key", "token"])
def test_secrets_are_never_shown(name: str) -> None:
    device = device_of("fence_x", ["ip=h", f"{name}=hunter2", "plug=1"])
    level = Level((device,))
    for shown in (device.described(), level.described(), repr(device), repr(level), str(level)):
        assert "hunter2" not in shown
    assert device.described() == f"fence_x ip=h {name}=*** plug=1"
    # fence agents print options that they don't know, with the value
    assert device.without_secrets(f"Ignoring unknown option '{name}=hunter2'") == (
        f"Ignoring unknown option '{name}=***'"
    )


def test_a_secret_within_another_leaves_no_rest() -> None:
    device = device_of("fence_x", ["passwd=ab", "token=abcd"])
    assert device.without_secrets("abcd ab") == "*** ***"


def test_a_level_has_devices() -> None:
    for count in (0, DEVICES_MAX + 1):
        with pytest.raises(OperatorError, match="1 to 8 devices"):
            Level((IPMI,) * count)


def test_plain_data_round_trip() -> None:
    levels = (Level((IPMI,)), Level((device_of("fence_apc", ["plug=1"]), device_of("fence_apc", ["plug=2"]))))
    plain = json.loads(json.dumps([level.to_dict() for level in levels]))
    assert levels_from_list_untrusted(plain) == levels
    assert levels_from_list_untrusted([]) == ()


def mutations() -> list[object]:
    good = Level((IPMI,)).to_dict()
    device = good["devices"][0]
    wrong: list[object] = [None, 5, "x", {}, [5], [[]], [{"devices": []}], [{"devices": [device] * 9}], [good] * 9]
    for change in (
        {"agent": "sh"}, {"agent": 5}, {"timeout": 0}, {"timeout": "5"}, {"timeout": float("nan")},
        {"timeout": 10**400},
        {"timeout": True}, {"retries": 1.5}, {"retries": 99}, {"options": [["action", "on"]]}, {"options": [["a"]]},
        {"options": [["a", 5]]}, {"options": [["a", "b\n"]]}, {"options": {"a": "b"}}, {"options": [["a", "b"]] * 65},
        {"options": ["ab"]}, {"more": 1},
    ):  # fmt: skip
        wrong.append([{"devices": [{**device, **change}]}])
    wrong += [[{"devices": [{k: v for k, v in device.items() if k != name}]}] for name in device]
    return wrong


@pytest.mark.parametrize("data", mutations(), ids=lambda data: repr(data)[:60])
def test_wrong_plain_data_is_refused(data: object) -> None:
    with pytest.raises(BadMessage):
        levels_from_list_untrusted(data)


def test_hostile_plain_data_raises_one_error() -> None:
    rng = random.Random(20)
    text = json.dumps([Level((IPMI, IPMI)).to_dict()] * LEVELS_MAX)
    decoded = refused = 0
    for _ in range(2000):
        changed = list(text)
        for _ in range(rng.randrange(1, 4)):
            changed[rng.randrange(len(changed))] = rng.choice('{}[]",:0159aefn\u00e9 -')
        try:
            data = json.loads("".join(changed))
        except ValueError:
            continue
        decoded += 1
        try:
            levels_from_list_untrusted(data)
        except BadMessage:
            refused += 1
    assert decoded > 200
    assert 0 < refused < decoded
