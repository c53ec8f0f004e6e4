"""Commands on join tokens: how a new server gets the cluster's credentials (002-46; R11).

A token is made by the administrator and known to all nodes with the next version of the naming, so the new server may
call any of them.  Whoever it calls brings its request here, for a token works once.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from membership.commands.nodes import name_of
from membership.control_wire import take, take_natural
from membership.database.schema import tokens
from membership.enrol.exchange import Desk, Enrolled, EnrolRequest
from membership.enrol.grants import Grants
from membership.enrol.token import CONTACTS_MAX, Contact, describe, encode
from membership.label import PLAIN_LINKS

if TYPE_CHECKING:
    from membership.administration import Administration
    from membership.control_wire import Message
    from membership.database.store import MembershipDatabase
    from membership.naming import Naming

_BILLION = 10**9


def _now(admin: Administration) -> tuple[int, float]:
    clock = admin.node.clock
    return clock.wall_ns() // _BILLION, clock.monotonic()


def _contacts(admin: Administration) -> list[Contact]:
    """Where members listen, ourselves first."""
    core = admin.node.membership
    addresses = [core.me, *(a for node, a in sorted(core.group.view.members.items()) if node != core.me.node)]
    hosts = [Contact(host, address.port) for address in addresses for host in address.hosts]
    return hosts[:CONTACTS_MAX]


async def add(admin: Administration, arguments: Message) -> Any:
    """Expect a node of this name, and make the token that it joins with."""
    name, lifetime = name_of(arguments), take_natural(arguments, "seconds", 32)
    token = grant = None

    def change(database: MembershipDatabase, naming: Naming) -> Naming:
        nonlocal token, grant
        if admin.grants is None:
            admin.grants = Grants(database.grants(), *_now(admin))
        cluster = admin.node.label.owner
        issued = admin.grants.issue(cluster, name, lifetime, _contacts(admin), admin.node.rng, *_now(admin))
        token, grant, dropped = issued
        for old in dropped:
            database.remove(tokens, id=old.token_id.hex())
        database.put_grant(grant)
        admin.say(name, "expected", database)
        keys = tuple((each.token_id, each.key) for each in database.grants())
        return dataclasses.replace(naming, tokens=keys)

    await admin.change_naming(change)
    assert token is not None
    admin.log("node", f"a join token was made for {name}")
    return {"token": encode(token), "text": describe(token)}


async def redeem(admin: Administration, arguments: Message) -> Any:
    """A server that holds a token asks to be let in; what it is answered, as bytes.  Its bytes are hostile."""
    token_id, request = take(arguments, "token", bytes), take(arguments, "request", bytes)
    async with admin.keeper.changing() as database:  # durable before the answer goes (G3 of enrol/grants.py)
        if admin.grants is None:
            admin.grants = Grants(database.grants(), *_now(admin))
        desk = Desk(admin.grants, _enrolled(admin), lambda asked: _objection(admin, asked))
        reply = desk.answer_untrusted(token_id, request, *_now(admin))
        if reply.changed is not None:
            database.put_grant(reply.changed)
        if reply.request is not None:
            admin.say(reply.request.node, "known", database)
    if reply.alert:
        admin.log("alert", reply.alert)
    if reply.request is not None:
        admin.log("node", f"{reply.request.node} joined with its token and has the cluster's credentials")
    return {"answer": reply.data}


def _enrolled(admin: Administration) -> Enrolled:
    label, naming = admin.node.label, admin.naming()
    disks = [disk for uuid in naming.areas if (disk := naming.by_uuid(uuid)) is not None]
    return Enrolled(
        cluster_name=label.cluster_name,
        cluster=label.owner,
        cluster_key=label.cluster_key,
        encrypt=label.links != PLAIN_LINKS,
        node="?",
        stores=tuple(disk.path for disk in disks),
    )


def _objection(admin: Administration, asked: EnrolRequest) -> str:
    """Why a server can't join under this name, or from there."""
    core = admin.node.membership
    word = admin.roster().get(asked.node, "")
    if word in ("fenced", "removed"):
        return f"node {asked.node} was {word}: see matrixctl node list"
    for node in core.admin.header.members:
        slot = core.watch.sights[node].slot if node in core.watch.sights else None
        if asked.node == (slot.name if slot is not None else core.admin.own_name if node == core.me.node else ""):
            return f"a node called {asked.node} is a member already"
        address = core.group.view.members.get(node)
        if address is not None and any((host, port) == (address.host, address.port) for host, port in asked.addresses):
            return f"{address.host}, port {address.port}, is the address of another node"
    return ""
