"""``matrixctl fence``: the devices that switch a node off when it must be fenced (002-20, 002-38)."""

from __future__ import annotations

from typing import Final

import click

from matrixfs.cli.common import MatrixCommand, echo_json, json_option, own_state_option, printable, table
from membership.errors import OperatorError

_AND: Final = "and"  # between the devices of one level, as they are shown
_ASKED: Final = "-"  # the value of an option that is asked for


@click.group()
def fence() -> None:
    """Configure fence agents, which switch nodes off; without any, reservations or time fence them."""


@fence.command(cls=MatrixCommand, name="set", context_settings={"ignore_unknown_options": True})
@click.argument("node")
@click.argument("level", type=click.IntRange(1, 8))
@click.argument("agent")
@click.argument("settings", nargs=-1, metavar="[NAME=VALUE]...")
@own_state_option
def set_level(node: str, level: int, agent: str, settings: tuple[str, ...], state: str) -> None:
    """Set LEVEL of NODE: AGENT (such as fence_ipmilan) with its options.

    Levels are tried in order.  For a server with two power supplies write the second device after "and": all of a
    level must be off.  NAME=- asks for the value, so that a password is in no history.  `call_timeout` (seconds) and
    `call_retries` are MatrixFS's own; the others are the agent's, see its man page.
    """
    from matrixfs.cli.administer import administer
    from membership.fence.levels import Level, device_of

    words = [_asked(word) for word in (agent, *settings)]
    devices = []
    while words:
        end = words.index(_AND) if _AND in words else len(words)
        if not end:
            raise OperatorError(f"no agent before or after {_AND!r}")
        devices.append(device_of(words[0], words[1:end]))
        if end == len(words) - 1:
            raise OperatorError(f"no agent after {_AND!r}")
        words = words[end + 1 :]
    done = administer(state, "fence.set", name=node, level=level, devices=Level(tuple(devices)).to_dict())
    _show({node: done["levels"]})
    click.echo(f"Try it now:  matrixctl fence test {printable(node)}", err=True)


def _asked(word: str) -> str:
    name, equals, value = word.partition("=")
    if equals and value == _ASKED:
        return f"{name}={click.prompt(name, hide_input=True, err=True)}"
    return word


@fence.command(cls=MatrixCommand, name="clear")
@click.argument("node")
@click.argument("level", type=click.IntRange(1, 8), required=False)
@own_state_option
def clear(node: str, level: int | None, state: str) -> None:
    """Forget LEVEL of NODE, or all its levels."""
    from matrixfs.cli.administer import administer

    done = administer(state, "fence.clear", name=node, level=level or 0)
    _show({node: done["levels"]})


@fence.command(cls=MatrixCommand, name="list")
@own_state_option
@json_option
def list_levels(state: str, as_json: bool) -> None:
    """All levels of all nodes, passwords hidden."""
    from matrixfs.cli.administer import administer

    found = administer(state, "fence.list")
    if as_json:
        echo_json(found)
        return
    _show(found)


def _show(levels: dict[str, dict[str, str]]) -> None:
    rows = [(printable(node), level, printable(text)) for node, each in levels.items() for level, text in each.items()]
    click.echo("\n".join(table([("NODE", "LEVEL", "DEVICES"), *rows])) if rows else "No fence agent is configured.")


@fence.command(cls=MatrixCommand, name="test")
@click.argument("node")
@own_state_option
@json_option
@click.pass_context
def test(context: click.Context, node: str, state: str, as_json: bool) -> None:
    """Ask the devices of NODE whether it has power; nothing is switched.  Exit code 3 when one does not answer."""
    from matrixfs.cli.administer import administer
    from membership.errors import PeerError

    found = administer(state, "fence.test", name=node)
    if as_json:
        echo_json(found)
    else:
        rows = [(each["level"], each["power"], printable(each["device"]), printable(each["detail"])) for each in found]
        click.echo("\n".join(table([("LEVEL", "POWER", "DEVICE", "DETAIL"), *rows])))
    if any(each["power"] not in ("on", "off") for each in found):
        context.exit(PeerError.exit_code)
