"""debug.matrixfs: every verb on a store with one of everything, as text and as JSON, and on hostile bytes."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import trio
from click.testing import CliRunner, Result

from matrixfs.cli.debug_cmd import main
from matrixfs.debug.structures import fields_of, structures
from matrixfs.ondisk.superblock import ROOT_INODE
from membership.label import BLOCK_BYTES
from membership.lease.area import write_slot
from membership.lease.records import FLAG_LEFT, HeartbeatSlot, slot_block
from membership.records import Record
from tests.damage.build import Built
from tests.damage.fuzz import Change, Image, Values
from tests.damage.images import PLOTS, Plot, build

DAMAGED, OPERATOR = 5, 2
EVERYTHING = (
    ["stat"], ["label"], ["label", "--copy"], ["superblock"], ["superblock", "--copy"], ["map"], ["group", "0"],
    ["journal", "1", "--frames"], ["orphans"], ["block", "1"], ["inode", "/many"], ["tree", "/deep"],
    ["extents", "/many"], ["directory", "/deep"], ["path", "/dir/sub/linked three"], ["ls", "/", "-R"],
)  # fmt: skip
WALKS = (
    ["ls", "/", "-R"], ["tree", "/many"], ["directory", "/deep"], ["orphans"],
    ["cat", "/many", "--length", "300000"],
)  # fmt: skip


class Made:
    """A store in a file, and the command on it."""

    def __init__(self, built: Built, path: Path) -> None:
        self.built = built
        self.path = path

    def save(self) -> None:
        """What is on the simulated disk goes to the file; pages of zeros stay holes."""
        disk = self.built.volume.disk
        with self.path.open("wb") as file:
            file.truncate(disk.size_bytes)
            for page, content in disk.media._visible._pages.items():
                file.seek(page * 4096)
                file.write(content)

    def run(self, *words: str | int) -> Result:
        options, words = ([words[0]], words[1:]) if words[:1] == ("--replay",) else ([], words)
        result = CliRunner().invoke(main, [*map(str, options), str(self.path), *map(str, words)])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
        return result

    def items(self, *words: str | int) -> list[dict[str, Any]]:
        result = self.run(*words, "--json")
        document = json.loads(result.stdout)
        assert document["problems"] == sum(len(item["problems"]) for item in document["items"])
        assert result.exit_code == (DAMAGED if document["problems"] else 0)
        items: list[dict[str, Any]] = document["items"]
        return items


def make(tmp_path: Path, plant: Plot | None = None) -> Made:
    """The store with one of everything, and with what ``plant`` does to it."""

    async def planted() -> Built:
        built = await build()
        if plant is not None:
            await plant(built)
        return built

    store = Made(trio.run(planted), tmp_path / "store")
    store.save()
    return store


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return make(tmp_path)


@pytest.mark.parametrize("words", EVERYTHING, ids=" ".join)
def test_every_verb_prints_text_and_json(made: Made, words: list[str]) -> None:
    before = made.path.read_bytes()
    text = made.run(*words)
    assert (text.exit_code, text.stderr) == (0, "")
    assert all(line.isprintable() for line in text.stdout.splitlines())
    assert len(made.items(*words)) <= len(text.stdout.splitlines())
    assert made.path.read_bytes() == before


def test_every_declared_field_is_printed_with_its_meaning(made: Made) -> None:
    """D2."""
    superblock = made.built.superblock
    where = {
        "MXFSLABL": ["label"], "MXFSSUPR": ["superblock"], "MXFSGRUP": ["group", 0], "MXFSINOD": ["inode", "/small"],
        "MXFSJRNL": ["journal", 1], "MXFSJFRM": ["block", superblock.journal_block(1) + 1],
    }  # fmt: skip
    for magic, kind in structures().items():
        if magic.decode() in where:
            text = made.run(*where[magic.decode()]).stdout
            assert kind.__name__ in text
            for name, field in kind.FIELDS.items():
                assert f"  {name} " in text and field.doc in text, (kind, name)


@pytest.mark.parametrize("kind", structures().values(), ids=lambda kind: kind.__name__)
def test_fields_are_what_the_decoder_says(kind: type[Record]) -> None:
    values: dict[str, Any] = {}
    for name, field in kind.FIELDS.items():
        if field.kind == "int":
            values[name] = 7
        elif field.kind == "bytes":
            values[name] = b"\x05" * field.size
        elif field.kind == "text":
            values[name] = "name"
    record = kind(owner=b"o" * 16, address=3, generation=4, **values)
    found = fields_of(kind, record.encode())
    assert {name: found[name] for name in values} == values
    assert (found["owner"], found["address"], found["generation"]) == (b"o" * 16, 3, 4)


def test_what_is_printed_is_true(made: Made) -> None:
    inodes, superblock = made.built.inodes, made.built.superblock
    (head, *journals) = made.items("stat")
    assert (head["filesystem"], head["blocks"], head["groups"]) == ("web", superblock.blocks_total, superblock.groups)
    assert [item["state"] for item in journals] == ["clean", "dirty"]
    assert made.items("inode", "/small")[0]["fields"]["size"] == 5
    flags = next(line for line in made.run("inode", "/empty").stdout.splitlines() if line.split()[:1] == ["flags"])
    assert flags.split()[1:3] == ["0x14", "id"]
    assert made.items("inode", inodes["small"]) == made.items("inode", "/small")
    assert made.items("inode", hex(inodes["small"])) == made.items("inode", "/small")
    assert [item["length"] for item in made.items("extents", "/extents")[:-1]] == [1, 2, 3]
    assert len(made.items("extents", "/many")) == 41
    names = {item["path"] for item in made.items("ls", "-R")}
    assert {"/deep/down", "/dir/sub/linked three", "/deep/file-0039"} <= names
    assert [item["path"] for item in made.items("ls", "/dir/sub")] == ["/dir/sub/linked three"]
    steps = made.items("path", "/dir/sub")
    assert [item["inode"] for item in steps[:2]] == [inodes["dir"], inodes["dir/sub"]]
    assert {item["level"] for item in made.items("tree", "/deep")} == {2, 1, 0}
    assert [item["orphans"] for item in made.items("orphans") if item["kind"] == "orphans"] == [1, 1]
    frames = made.items("journal", 1, "--frames")
    assert [item["fields"]["images"] for item in frames if item.get("structure") == "FrameRecord"] == [2, 4]
    assert {"InodeRecord", "IndexRecord", "GroupRecord", "data"} <= {
        item["structure"] for item in frames if item["kind"] == "image"
    }
    free = [item["free"] for item in made.items("map")[:-1]]
    assert sum(free) == head["blocks_free"]


def test_secrets_stay_secret(made: Made) -> None:
    assert "secret: not shown" in made.run("label").stdout
    assert made.items("label")[0]["fields"]["cluster_key"] is None


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (lambda superblock: 0, "the superblock"), (lambda superblock: ROOT_INODE, "the root directory"),
        (lambda superblock: 3, "the orphan directory of journal 1"), (lambda superblock: 100, "not used"),
        (lambda superblock: superblock.journal_block(1) + 5, "journal 1, position 5"),
        (lambda superblock: superblock.group_block(1), "the bitmap of group 1"),
        (lambda superblock: superblock.group_block(1) - 1, "in group 0, which says it is"),
        (lambda superblock: superblock.blocks_total - 1, "the superblock's copy"),
    ],
)  # fmt: skip
def test_what_a_block_is_for(made: Made, number: Callable[[Any], int], says: str) -> None:
    result = made.run("block", number(made.built.superblock))
    assert says in result.stdout.splitlines()[0]


def test_cat(tmp_path: Path) -> None:
    content = random.Random(1).randbytes(3 * BLOCK_BYTES)

    async def fill(built: Built) -> None:
        inode = await built.inode("extents")
        at = int.from_bytes(inode.tail[32:40], "little")  # the second extent: blocks 1 and 2 of the file
        await built.volume.write(at, content[BLOCK_BYTES:])
        await built.change("extents", size=6 * BLOCK_BYTES - 10)

    made = make(tmp_path, fill)
    assert made.run("cat", "/small").stdout_bytes == b"hello"
    assert made.run("cat", "/symlink").stdout_bytes == b"small"
    whole = made.run("cat", "/extents").stdout_bytes
    assert len(whole) == 6 * BLOCK_BYTES - 10
    assert whole[BLOCK_BYTES : 3 * BLOCK_BYTES] == content[BLOCK_BYTES:]
    part = made.run("cat", "/extents", "--offset", BLOCK_BYTES + 7, "--length", 5000).stdout_bytes
    assert part == whole[BLOCK_BYTES + 7 :][:5000]
    many = made.run("cat", "/many").stdout_bytes
    assert many == bytes(79 * BLOCK_BYTES), "holes are zeros"
    assert made.run("cat", "/many", "--offset", 1 << 40).stdout_bytes == b""


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["inode", "/none"], "/: holds no none"), (["inode", "/dir/none"], "/dir: holds no none"),
        (["inode", "/small/x"], "/small: holds no x"), (["inode", "0"], "0 is no number that an inode can have"),
        (["inode", "what"], "give a path that begins with / or the number of an inode"),
        (["group", "99"], "there is no group 99"), (["journal", "2"], "there is no journal 2: they are 0 to 1"),
        (["block", "99999999"], "no block of the filesystem"), (["block", "-1"], "No such option"),
        (["path", "dir"], "give a path that begins with /"), (["extents", "/dir"], "is a directory"),
        (["directory", "/small"], "is no directory"), (["cat", "/dir"], "is a directory: see ls"),
        (["nothing"], "No such command 'nothing'"), ([], "Missing command"), (["group"], "Missing argument"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_wrong_words_are_refused_in_one_line(made: Made, words: list[str], says: str) -> None:
    result = made.run(*words)
    assert result.exit_code == OPERATOR
    assert result.stdout == ""
    assert result.stderr.startswith("debug.matrixfs: ") and says in result.stderr, result.stderr
    assert result.stderr.count("\n") == 1


def test_what_is_no_store(tmp_path: Path) -> None:
    path = tmp_path / "thing"
    for content, says in ((b"", "too small"), (bytes(8 << 20), "no MatrixFS cluster disk")):
        path.write_bytes(content)
        result = CliRunner().invoke(main, [str(path), "stat"])
        assert (result.exit_code, result.stdout) == (OPERATOR, "")
        assert says in result.stderr and result.stderr.count("\n") == 1


def test_help(made: Made) -> None:
    text = CliRunner().invoke(main, ["--help"]).stdout
    verbs = {words[0] for words in EVERYTHING} | {"cat"}
    assert all(f"\n  {verb} " in text for verb in verbs)
    assert set(main.commands) == verbs
    assert "NUMBER" in made.run("journal", "--help").stdout


def test_a_node_that_may_be_writing_is_told(tmp_path: Path) -> None:
    """D4."""

    async def write_slots(built: Built) -> None:
        owner = (await built.volume.disk.read(0, BLOCK_BYTES))[16:32]
        for node, flags in ((3, 0), (4, FLAG_LEFT)):
            name = f"n{node}"
            slot = HeartbeatSlot(
                owner=owner, address=slot_block(node), incarnation=9, counter=1, name=name, flags=flags
            )
            await write_slot(built.volume.disk, slot)

    made = make(tmp_path, write_slots)
    result = made.run("stat")
    assert result.exit_code == 0
    assert result.stderr == "debug.matrixfs: note: node 'n3' may be writing: what is shown may be torn or old\n"
    assert json.loads(made.run("stat", "--json").stdout)["may_be_writing"] == ["node 'n3'"]


def test_replay_shows_what_a_mount_would_find(made: Made) -> None:
    old = made.items("inode", "/many")[0]["fields"]["generation"]
    document = json.loads(made.run("--replay", "inode", "/many", "--json").stdout)
    assert document["items"][0]["fields"]["generation"] == old + 1


# --- damage (D3) -----------------------------------------------------------------------------------------------


def test_a_damaged_structure_is_printed_with_what_is_wrong(made: Made) -> None:
    built, disk, first = made.built, made.built.volume.disk, made.built.volume.first
    disk.corrupt((first + built.inodes["small"]) * BLOCK_BYTES + 64)
    disk.corrupt(first * BLOCK_BYTES + 60)
    made.save()
    result = made.run("inode", "/small")
    assert result.exit_code == DAMAGED
    assert "bad checksum" in result.stderr
    assert "the superblock is damaged (bad checksum" in result.stderr
    assert "DAMAGED" in result.stdout and "  size                  4 " in result.stdout
    disk.corrupt((first + built.superblock.blocks_total - 1) * BLOCK_BYTES + 60)
    made.save()
    result = made.run("stat")
    assert result.exit_code == OPERATOR and "only the verbs label and superblock work" in result.stderr
    assert made.run("superblock").exit_code == DAMAGED
    for block in (0, disk.size_bytes // BLOCK_BYTES - 1):
        disk.corrupt(block * BLOCK_BYTES + 100)
    made.save()
    result = made.run("label")
    assert result.exit_code == DAMAGED and "both labels are damaged" in result.stderr


@pytest.mark.parametrize("plant", PLOTS, ids=lambda plant: plant.__name__)
def test_every_verb_ends_on_every_damage(plant: Plot, tmp_path: Path) -> None:
    look_at(make(tmp_path, plant), WALKS)


def look_at(made: Made, verbs: Iterable[list[str]]) -> None:
    for words in verbs:
        result = made.run(*words)
        assert result.exit_code in {0, OPERATOR, DAMAGED}, (words, result.stderr)
        assert all(line.isprintable() for line in result.stderr.splitlines())
        if words[0] != "cat":
            assert len(result.stdout) < 1 << 21, words


def test_every_verb_ends_on_changed_fields(made: Made) -> None:
    disk = made.built.volume.disk
    base = disk.snapshot()
    rng = random.Random(4)

    async def changes() -> tuple[Image, list[Change]]:
        image = await Image(disk).scan()
        return image, [change for place in image.places for change in await image.changes(place, Values(1), rng)]

    image, found = trio.run(changes)
    for _ in range(4):
        for change in rng.sample(found, 5):
            trio.run(image.spoil, change)
        made.save()
        look_at(made, EVERYTHING)
        disk.restore(base)
