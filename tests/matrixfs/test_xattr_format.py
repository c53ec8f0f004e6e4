"""ondisk/xattr.py and ondisk/acl.py: what is written is read; bytes that can't be are refused."""

from __future__ import annotations

import contextlib
import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrixfs.ondisk.acl import (
    GROUP,
    GROUP_OBJ,
    MASK,
    OTHER,
    USER,
    USER_OBJ,
    AclEntry,
    pack_acl,
    unpack_acl_untrusted,
)
from matrixfs.ondisk.xattr import (
    ACL_ACCESS,
    BODY_BYTES,
    CHAIN_BLOCKS_MAX,
    LIST_BYTES_MAX,
    NAME_BYTES_MAX,
    PACKED_BYTES_MAX,
    VALUE_BYTES_MAX,
    AttributeRecord,
    is_known_name,
    pack_attributes,
    packed_bytes,
    unpack_attributes_untrusted,
)
from membership.errors import CorruptRecord
from membership.label import BLOCK_BYTES

OWNER = b"0123456789abcdef"
SPACES = (b"user.", b"trusted.", b"security.")
NAMES = st.builds(
    lambda space, rest: (space + rest)[:NAME_BYTES_MAX],
    st.sampled_from(SPACES),
    st.binary(min_size=1, max_size=250).filter(lambda name: b"\0" not in name),
) | st.just(ACL_ACCESS)
ATTRIBUTES = st.dictionaries(NAMES, st.binary(max_size=600), max_size=20)


@given(ATTRIBUTES)
def test_what_is_packed_is_unpacked(attributes: dict[bytes, bytes]) -> None:
    packed = pack_attributes(attributes)
    assert len(packed) == packed_bytes(attributes)
    found = unpack_attributes_untrusted(packed, "t")
    assert found == attributes
    assert all(a < b for a, b in pairwise(found))


@given(ATTRIBUTES.filter(bool), st.data())
def test_any_changed_byte_gives_attributes_or_one_error(attributes: dict[bytes, bytes], draw: st.DataObject) -> None:
    packed = bytearray(pack_attributes(attributes))
    packed[draw.draw(st.integers(0, len(packed) - 1))] ^= draw.draw(st.integers(1, 255))
    for data in (bytes(packed), bytes(packed[: draw.draw(st.integers(0, len(packed)))])):
        with contextlib.suppress(CorruptRecord):
            assert pack_attributes(unpack_attributes_untrusted(data, "t")) == data


@given(st.binary(max_size=4000))
def test_any_bytes_give_attributes_or_one_error(data: bytes) -> None:
    with contextlib.suppress(CorruptRecord):
        assert pack_attributes(unpack_attributes_untrusted(data, "t")) == data


def test_the_limits_of_linux_fit_and_no_more() -> None:
    largest = {b"user." + b"n" * (NAME_BYTES_MAX - 5): b"v" * VALUE_BYTES_MAX}
    assert unpack_attributes_untrusted(pack_attributes(largest), "t") == largest
    assert CHAIN_BLOCKS_MAX == -(-PACKED_BYTES_MAX // BODY_BYTES) == 33
    many = {b"user.%0240d" % number: b"" for number in range(LIST_BYTES_MAX // 246)}
    assert unpack_attributes_untrusted(pack_attributes(many), "t") == many
    for wrong in (
        {b"user.a": b"v" * (VALUE_BYTES_MAX + 1)},
        {b"user.%0240d" % number: b"" for number in range(LIST_BYTES_MAX // 246 + 1)},
        {b"user.a": b"v" * 65_536, b"user.b": b"v" * 65_536},
    ):
        with pytest.raises(CorruptRecord):
            unpack_attributes_untrusted(pack_attributes(wrong), "t")


@pytest.mark.parametrize("name", [b"", b"user", b"user.", b"trusted.", b"system.other", b"x.y", b"posix_acl_access"])
def test_names_of_no_namespace(name: bytes) -> None:
    assert not is_known_name(name)
    with pytest.raises(CorruptRecord):
        unpack_attributes_untrusted(pack_attributes({name: b""}), "t")


def block(**wrong: int) -> bytes:
    fields = {"owner": OWNER, "address": 300, "generation": 4, "inode": 77, "next": 301, "used": BODY_BYTES, **wrong}
    return AttributeRecord(body=b"b" * BODY_BYTES, **fields).encode()


def checked(data: bytes) -> AttributeRecord:
    found = AttributeRecord.decode_untrusted(data, "t", owner=OWNER, address=300)
    found.check_untrusted("t", 77)
    return found


@pytest.mark.parametrize("wrong", [{"inode": 78}, {"used": 0}, {"used": BODY_BYTES - 1}, {"used": BODY_BYTES + 1}])
def test_a_block_that_is_no_part_of_the_chain_is_corrupt(wrong: dict[str, int]) -> None:
    assert checked(block()).next == 301
    assert checked(block(next=0, used=1)).used == 1
    with pytest.raises(CorruptRecord):
        checked(block(**wrong))


def test_fuzzed_blocks_raise_only_corrupt_record() -> None:
    rng = random.Random(5)
    good = block()
    for _ in range(200):
        data = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(BLOCK_BYTES)] ^= rng.randrange(1, 256)
        with pytest.raises(CorruptRecord):
            checked(bytes(data))


MINIMAL = [AclEntry(USER_OBJ, 6), AclEntry(GROUP_OBJ, 4), AclEntry(OTHER, 0)]
NAMED = [*MINIMAL[:1], AclEntry(USER, 7, 5), AclEntry(USER, 7, 6), *MINIMAL[1:2], AclEntry(GROUP, 1, 9)]
FULL = [*NAMED, AclEntry(MASK, 5), *MINIMAL[2:]]


@pytest.mark.parametrize("entries", [MINIMAL, FULL, [*MINIMAL[:2], AclEntry(MASK, 1), *MINIMAL[2:]]])
def test_access_control_lists_are_unpacked_as_packed(entries: list[AclEntry]) -> None:
    assert unpack_acl_untrusted(pack_acl(entries), "t") == entries


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\2\0\0",
        pack_acl([]),
        pack_acl(MINIMAL)[:-1],
        b"\3" + pack_acl(MINIMAL)[1:],
        pack_acl(MINIMAL[:2]),
        pack_acl([*NAMED, *MINIMAL[2:]]),  # named, and no mask
        pack_acl([*MINIMAL, MINIMAL[2]]),
        pack_acl([*MINIMAL[:2], AclEntry(MASK, 1), AclEntry(MASK, 1), *MINIMAL[2:]]),
        pack_acl([MINIMAL[1], MINIMAL[0], MINIMAL[2]]),  # out of order
        pack_acl([AclEntry(USER_OBJ, 8), *MINIMAL[1:]]),
        pack_acl([AclEntry(3, 6), *MINIMAL[1:]]),
        pack_acl([FULL[0], AclEntry(USER, 7), *FULL[2:]]),  # a user without a number
        pack_acl([FULL[0], *[AclEntry(USER, 7, 5)] * 1024, *FULL[2:]]),
    ],
)
def test_what_is_no_access_control_list(data: bytes) -> None:
    with pytest.raises(CorruptRecord):
        unpack_acl_untrusted(data, "t")


@given(st.binary(max_size=200) | st.binary(max_size=64).map(lambda rest: b"\2\0\0\0" + rest))
def test_any_bytes_give_a_list_or_one_error(data: bytes) -> None:
    with contextlib.suppress(CorruptRecord):
        assert pack_acl(unpack_acl_untrusted(data, "t")) == data
