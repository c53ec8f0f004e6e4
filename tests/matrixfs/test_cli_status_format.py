"""Golden output of ``matrixctl status`` from a fixed status (002-26, R4, R14)."""

from __future__ import annotations

import copy
from datetime import UTC

import pytest

from matrixfs.cli.status_format import format_status
from membership.label import DEFAULT_TIMING
from membership.status import timing_status

UUID = "5f0c1d9e-0000-4000-8000-000000000001"
FS = "77aa0000-0000-4000-8000-000000000002"


def node(number: int, **fields: object) -> dict:
    base = {
        "id": number, "name": f"n{number}", "host": f"10.0.0.{number}", "port": 7001, "incarnation": 2**63 + number,
        "state": "member", "is_self": number == 1, "link": "up", "slot_age": 0.25, "mounts": 1,
        "others": [], "path": "", "moves": 0, "trouble": "",
    }  # fmt: skip
    return base | fields


STATUS = {
    "cluster_name": "web", "cluster_uuid": UUID, "store": "/dev/sdb", "node": 1, "name": "n1", "host": "10.0.0.1",
    "others": [], "port": 7001, "incarnation": 2**63 + 1, "state": "member", "generation": 12, "administrator": 1,
    "coordinator": 1, "view": 5, "lease_left": 3.6, "timing": dict(timing_status(DEFAULT_TIMING)),
    "memberships": {"group": [1, 2], "san": [1, 2], "storage_groups": {FS: [1]}, "cluster": [1, 2, 3]},
    "nodes": [
        node(1, link="self"), node(2, mounts=0),
        node(3, state="fencing", link="gone", slot_age=6.5, host="fd00::3"),
    ],
    "links": "encrypted", "naming": {"version": 3, "step": "telling", "waiting_for": [2]},
    "disks": [
        {"uuid": "aa", "name": "d1", "path": "/dev/sdb", "path_here": "/dev/sdb", "state": "present", "failure": "",
         "size_bytes": 3 << 40, "filesystem": "web", "area": "yes", "area_failure": "", "traits": [0, 0, 0]},
        {"uuid": "bb", "name": "d2", "path": "/dev/sdc", "path_here": "", "state": "not found", "failure": "",
         "size_bytes": 600 << 20, "filesystem": "", "area": "coming", "area_failure": "is not found on this node",
         "traits": [5, (1 << 9) - 1, 0]},
    ],
    "filesystems": [
        {
            "uuid": FS, "name": "web", "attempt": 12 << 32 | 4, "phase": "replay", "waiting_for": [1],
            "phase_age": 0.31, "journals": 8, "error": "",
            "mounts": [
                {"node": 1, "incarnation": 5, "host": "10.0.0.1", "port": 40001, "journal": 0, "pid": 4711,
                 "mountpoint": "/srv/www"},
                {"node": 2, "incarnation": 6, "host": "10.0.0.2", "port": 40002, "journal": -1, "pid": 0,
                 "mountpoint": "/srv/www"},
            ],
            "dead": [{"node": 3, "incarnation": 255, "journal": 2}],
        }
    ],
    "recoveries": [
        {"fs": FS, "attempt": 11 << 32 | 1, "wall_ns": 1_795_000_000_000_000_000, "members": [1, 2, 3], "dead": [],
         "phases": [("suspend", 0.002), ("rebuild", 0.0104), ("resume", 0.001)], "seconds": 0.0134, "error": ""},
        {"fs": FS, "attempt": 12 << 32 | 3, "wall_ns": 1_795_000_100_999_000_000, "members": [1, 2], "dead": [3],
         "phases": [("suspend", 0.002), ("replay", 0.5)], "seconds": 0.502, "error": "journal 2: bad checksum"},
    ],
    "fences": [
        {"wall_ns": 1_795_000_100_000_000_000, "node": 3, "name": "n3", "incarnation": 9, "driver": "process",
         "confirmed": True, "detail": "killed 2 processes"}
    ],
    "events": [],
    "local_mounts": [{"filesystem": "web", "mountpoint": "/srv/www", "pid": 4711, "ending": False, "counters": {}}],
    "remote_mounts": [{"node": 2, "filesystem": "web", "mountpoint": "/srv/www", "pid": 815, "counters": None}],
}  # fmt: skip

GOLDEN = """\
Cluster web (5f0c1d9e-0000-4000-8000-000000000001)   generation 12   store /dev/sdb
This node: n1 (1), member, may write for 3.6 s more
Administrator: n1   coordinator: n1   group view 5

Nodes (* this one)
  ID  NODE  ADDRESS         STATE    LINK  LEASE     SLOT AGE  MOUNTS
   1  n1*   10.0.0.1:7001   member   self  3.6 s        0.2 s       1
   2  n2    10.0.0.2:7001   member   up    <= 3.2 s     0.2 s       0
   3  n3    [fd00::3]:7001  fencing  gone  none         6.5 s       1

Disks
  DISK       SIZE  FILESYSTEM  AREA                 FENCE              STATE HERE  PATH HERE
  d1      3.0 TiB  web         membership           time               present     /dev/sdb
  d2    600.0 MiB  -           membership (coming)  preempt-and-abort  not found   - (added as /dev/sdc)
  TROUBLE with d2: is not found on this node
  CHANGING to version 3: telling n2

Memberships
  group          n1 n2     processes that communicate
  san            n1 n2     may use the store
  storage group  n1        mount web
  cluster        n1 n2 n3  known to the disk

Filesystem web (77aa0000-0000-4000-8000-000000000002)   8 journals
  attempt 12.4, RECOVERING: replay for 0.3 s, waiting for n1
  n3 died (incarnation 0xff): journal 2 is not replayed yet
  NODE   JOURNAL  LOCK ADDRESS     PID  MOUNTED ON
  n1           0  10.0.0.1:40001  4711  /srv/www
  n2    none yet  10.0.0.2:40002   815  /srv/www (does not answer)

Recoveries, newest first (seconds)
  2026-11-18 11:08:20  web, attempt 12.3, after the death of n3: 0.502 s (suspend 0.002, replay 0.500); ISOLATED: journal 2: bad checksum
  2026-11-18 11:06:40  web, attempt 11.1, members changed, or it grew: 0.013 s (suspend 0.002, rebuild 0.010, resume 0.001)

Fencing, newest first
  2026-11-18 11:08:20  n3 (3) by process: confirmed, killed 2 processes

Timing: a silent node stops writing 3.5 s after its last renewal; peers act after lease 3.5 + write in flight 2 + margin 1 = 6.5 s unless a fence confirmed it earlier
"""  # noqa: E501 - the line as it is printed


@pytest.mark.seed("002-26")
def test_golden() -> None:
    assert format_status(STATUS, UTC) == GOLDEN


def changed(**fields: object) -> str:
    return format_status({**copy.deepcopy(STATUS), **fields}, UTC)


def test_a_node_past_its_lease_says_so() -> None:
    assert "joining, MAY NOT WRITE: its lease ended 1.5 s ago" in changed(lease_left=-1.5, state="joining")


def lease_of(state: str) -> str:
    text = changed(nodes=[node(1), node(2, state=state, slot_age=0.2)])
    line = next(line for line in text.splitlines() if " n2 " in line)
    return line.split("up ")[1].split("0.2 s")[0].strip()


def test_only_members_and_those_not_yet_fenced_have_a_lease() -> None:
    """One that was fenced, and beats again, may write only once it is admitted."""
    assert lease_of("member") == lease_of("fencing") == "<= 3.3 s"
    assert lease_of("alive") == lease_of("joining") == lease_of("dead") == lease_of("left") == "none"
    nodes = [node(1, is_self=True, state="fencing")]
    assert "3.6 s" in changed(nodes=nodes)
    assert "none" in changed(nodes=nodes, state="fenced").split("Nodes")[1].splitlines()[2]


def test_paths_are_shown_where_nodes_have_several() -> None:
    nodes = [
        node(1, link="self", others=["10.1.0.1"]), node(2, others=["10.1.0.2", "10.2.0.2"], path="10.1.0.2", moves=3),
        node(3, link="absent"),
    ]  # fmt: skip
    peers = {"peers": [{"node": 2, "path": "10.0.0.2", "moves": 0}]}
    text = changed(nodes=nodes, others=["10.1.0.1"], local_mounts=[{**STATUS["local_mounts"][0], "counters": peers}])
    assert """\
Paths of this node's links; its own further addresses: 10.1.0.1
  LINK OF   TO  IN USE    FURTHER ADDRESSES  MOVED
  matrixd   n2  10.1.0.2  10.1.0.2 10.2.0.2      3
  matrixd   n3  -         -                      0
  /srv/www  n2  10.0.0.2  10.1.0.2 10.2.0.2      0
""" in text


def test_why_there_is_no_link_is_told() -> None:
    nodes = [node(1, link="self"), node(2, link="absent", trouble="node 2 wants plain links")]
    assert "\n  NO LINK to n2: node 2 wants plain links\n" in changed(nodes=nodes)


def test_nothing_mounted() -> None:
    text = changed(filesystems=[], recoveries=[], fences=[], administrator=-1)
    assert "No filesystem is mounted." in text
    assert "Administrator: none" in text
    assert "Recoveries" not in text


def test_an_isolated_filesystem_and_a_silent_mount_are_told() -> None:
    filesystems = copy.deepcopy(STATUS["filesystems"])
    filesystems[0] |= {"phase": "error", "error": "journal 2: bad checksum", "journals": 0}
    silent = [{**STATUS["local_mounts"][0], "counters": None}]
    text = changed(filesystems=filesystems, local_mounts=silent)
    assert "  ERROR, isolated: journal 2: bad checksum\n" in text
    assert "/srv/www (does not answer)" in text


def test_long_waits_are_shown_with_their_reason() -> None:
    """R14: every wait has an owner, a reason and an age that matrixctl can print."""
    waits = [
        {"resource": "inode 4711", "wanted": 5, "held": 3, "seconds": 12.345, "reason": "a peer or recovery"},
        {"resource": "group 32768", "wanted": 3, "held": 0, "seconds": 0.6, "reason": "local holders"},
        {"resource": "inode 1", "wanted": 3, "held": 0, "seconds": 0.1, "reason": "local holders"},
    ]
    text = changed(local_mounts=[{**STATUS["local_mounts"][0], "counters": {"waits": waits}}])
    assert """\
Waiting on this node, longest first
  TREE      WAITS FOR    TO         SECONDS  BECAUSE OF
  /srv/www  inode 4711   change it     12.3  a peer or recovery
  /srv/www  group 32768  read it        0.6  local holders
""" in text
    assert "inode 1 " not in text


def test_names_from_the_disk_cannot_drive_the_terminal() -> None:
    text = changed(cluster_name="web\x1b[2J\nroot", nodes=[node(1, name="n\x071")])
    assert text.startswith("Cluster web?[2J?root (")
    assert "n?1*" in text
    assert all(c.isprintable() or c == "\n" for c in text)


def test_who_holds_it_frozen() -> None:
    freeze = {"frozen": True, "seconds": 12.34, "left": 47.66, "error": ""}
    mounts = [{**STATUS["remote_mounts"][0], "counters": {"freeze": freeze}}]
    text = changed(remote_mounts=mounts)
    assert "  FROZEN by n2 for 12.3 s: writers wait; it thaws by itself in 47.7 s\n" in text
    mounts[0]["counters"] = {"freeze": {**freeze, "frozen": False}}
    assert "  being frozen by n2 for 12.3 s: mounts bring home what they changed\n" in changed(remote_mounts=mounts)
    mounts[0]["counters"] = {"freeze": {**freeze, "frozen": False, "error": "it came to nothing"}}
    assert "frozen" not in changed(remote_mounts=mounts)
