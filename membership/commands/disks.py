"""Commands on disks: add, remove, and which of them have the membership areas (002-43, 002-46; Figure 12)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from membership.control_wire import take, take_natural
from membership.errors import BadMessage, OperatorError
from membership.label import NAME_BYTES_MAX
from membership.naming import Disk, check_areas, check_new_disk

if TYPE_CHECKING:
    from membership.administration import Administration
    from membership.control_wire import Message
    from membership.database.store import MembershipDatabase
    from membership.naming import Naming


def disk_to_map(disk: Disk) -> dict[str, Any]:
    """Plain data for messages."""
    fields: dict[str, Any] = dataclasses.asdict(disk)
    return fields | {"traits": list(disk.traits)}


def disk_of_untrusted(fields: Message) -> Disk:
    """The reverse.  Raises BadMessage."""
    traits = take(fields, "traits", list)
    if len(traits) != 3 or not all(type(each) is int and 0 <= each < 1 << 32 for each in traits):
        raise BadMessage("disk: traits are three numbers")
    disk = Disk(
        uuid=take(fields, "uuid", bytes),
        name=take(fields, "name", str),
        path=take(fields, "path", str),
        size_bytes=take_natural(fields, "size_bytes", 63),
        fs_uuid=take(fields, "fs_uuid", bytes),
        fs_name=take(fields, "fs_name", str),
        traits=(traits[0], traits[1], traits[2]),
    )
    if len(disk.uuid) != 16 or len(disk.fs_uuid) not in (0, 16):
        raise BadMessage("disk: a uuid has 16 bytes")
    if not 0 < len(disk.name.encode(errors="replace")) <= NAME_BYTES_MAX:
        raise BadMessage("disk: its name is empty or too long")
    return disk


async def add(admin: Administration, arguments: Message) -> Any:
    """A labelled disk becomes one of the cluster; again: that it is."""
    disk = disk_of_untrusted(take(arguments, "disk", dict))

    def change(_: MembershipDatabase, naming: Naming) -> Naming:
        check_new_disk(naming, disk)
        return dataclasses.replace(naming, disks=(*naming.disks, disk))

    known = admin.naming().by_uuid(disk.uuid)
    if known is None:
        await admin.change_naming(change)
        admin.log("disk", f"{disk.name} ({disk.path}) was added to the cluster")
    elif known.name != disk.name:
        raise OperatorError(f"this disk is in the cluster already, as {known.name}")
    return {"naming": admin.naming().version}


async def remove(admin: Administration, arguments: Message) -> Any:
    """A disk that nobody uses is none of the cluster any more; again: that it is none."""
    disk = admin.naming().by_uuid(take(arguments, "uuid", bytes))
    if disk is None:
        return {}
    name, filesystems = disk.name, admin.node.membership.filesystems
    mounted = filesystems.by_uuid.get(disk.fs_uuid) if filesystems is not None and disk.fs_uuid else None
    if mounted is not None and (mounted.members or mounted.dead):
        raise OperatorError(f"{name} holds {disk.fs_name}, which is mounted: unmount it everywhere first")
    locks = admin.node.membership.disk_locks
    if locks is None or not locks.is_open:
        raise OperatorError("it is not known yet who has locked the disk: try again in a few seconds")
    user = next((row.lock.owner for row in locks.rows() if row.lock.disk == disk.uuid), None)
    if user is not None:
        raise OperatorError(f"{name} is locked by an application ({user}): see matrixctl disk locks")

    def change(_: MembershipDatabase, naming: Naming) -> Naming:
        if disk.uuid in (*naming.areas, *naming.areas_before):
            raise OperatorError(f"{name} has a membership area: move it with matrixctl disk areas first")
        return dataclasses.replace(naming, disks=tuple(each for each in naming.disks if each.uuid != disk.uuid))

    await admin.change_naming(change)
    admin.log("disk", f"{name} was removed from the cluster")
    return {}


async def move_areas(admin: Administration, arguments: Message) -> Any:
    """Keep the membership areas on these disks from now on: first on the old ones as well, then on these alone."""
    names = [str(name) for name in take(arguments, "names", list)]

    if set(check_areas(admin.naming(), names)) == set(admin.naming().areas):
        return {"naming": admin.naming().version}  # so they are: also when a command is carried out again

    def change(_: MembershipDatabase, naming: Naming) -> Naming:
        areas = check_areas(naming, names)
        missing = [name for name in names if admin.node.disks.device(naming.by_name(name).uuid) is None]
        if missing:
            raise OperatorError(f"the administrator's node does not have {', '.join(missing)}: see matrixctl disk list")
        joint = dataclasses.replace(naming, areas=areas, areas_before=naming.areas)
        admin.use_areas(joint)
        return joint

    await admin.change_naming(change)
    await admin.finish_areas()
    admin.log("disk", f"the membership areas are on {', '.join(names)} now")
    return {"naming": admin.naming().version}
