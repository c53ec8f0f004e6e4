"""STATE/credentials: durable, secret, and one clear line for each defect (R11)."""

from __future__ import annotations

import json
import os
import random

import pytest

from membership.enrol import credentials as module
from membership.enrol.credentials import NodeCredentials, decode_untrusted, load, save, wipe
from membership.enrol.token import Contact
from membership.errors import BadMessage, OperatorError

GOOD = NodeCredentials(
    "web", b"C" * 16, b"\xab" * 32, True, "n4", ("/dev/x", "iscsi://10.0.0.9/iqn.x/0"), (Contact("10.0.0.4", 7001),)
)


@pytest.fixture
def state(tmp_path):
    save(str(tmp_path), GOOD)
    return tmp_path


def error_of(directory, cluster: bytes | None = None) -> str:
    with pytest.raises(OperatorError) as caught:
        load(str(directory), cluster)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"{directory}/credentials: ")
    return text


def test_round_trip(state) -> None:
    assert load(str(state)) == load(str(state), GOOD.cluster) == GOOD
    assert (state / "credentials").stat().st_mode & 0o777 == 0o600
    assert os.listdir(state) == ["credentials"]
    other = NodeCredentials("x", b"D" * 16, b"k" * 32, False, "m", ("/dev/y",), (Contact("fd00::1", 1),))
    save(str(state), other)
    assert load(str(state)) == other


def test_the_umask_opens_nothing_and_closes_nothing(tmp_path) -> None:
    old = os.umask(0o777)
    try:
        save(str(tmp_path), GOOD)
    finally:
        os.umask(old)
    assert (tmp_path / "credentials").stat().st_mode & 0o777 == 0o600


def test_a_save_that_fails_leaves_what_was_there(state, monkeypatch) -> None:
    other = NodeCredentials("x", b"D" * 16, b"k" * 32, False, "m", ("/dev/y",), (Contact("fd00::1", 1),))
    order: list[str] = []

    def full(fd: int) -> None:
        order.append("fsync")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OperatorError, match="can't be written: No space left on device"):
            save(str(state), other)
    assert order == ["fsync"]
    assert load(str(state)) == GOOD
    assert os.listdir(state) == ["credentials"]


def test_the_file_is_durable_before_its_name_is(tmp_path, monkeypatch) -> None:
    order: list[str] = []
    fsync, rename = os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append("fsync"), fsync(fd)))
    monkeypatch.setattr(os, "rename", lambda a, b: (order.append("rename"), rename(a, b)))
    save(str(tmp_path), GOOD)
    assert order == ["fsync", "rename", "fsync"]


def test_each_defect_has_its_line(state) -> None:
    path = state / "credentials"
    assert "is for cluster web (43434343" in error_of(state, b"D" * 16)
    path.chmod(0o640)
    assert "has mode 0640" in error_of(state)
    path.chmod(0o600)
    os.chown(path, 4711, -1)
    assert "belongs to user 4711, not to 0" in error_of(state)
    os.chown(path, 0, -1)
    text = path.read_text()
    path.write_text(text.replace("abab", "abac", 1))
    assert "is damaged or was edited (its checksum is wrong)" in error_of(state)
    path.write_text(text[:50])
    assert "is damaged (no JSON); join the cluster again with a new token" in error_of(state)
    path.write_bytes(b"")
    assert "is damaged (no JSON)" in error_of(state)
    path.write_text(json.dumps({**json.loads(text), "version": 9}))
    assert "has version 9, this MatrixFS knows 1" in error_of(state)
    path.write_bytes(b" " * 70000)
    assert "has more than 65536 bytes" in error_of(state)
    path.unlink()
    assert "there is none: this server has not joined a cluster" in error_of(state)
    path.mkdir()
    assert "is no plain file" in error_of(state)
    path.rmdir()
    (state / "real").write_text(text)
    path.symlink_to("real")
    assert "can't be opened" in error_of(state)
    path.unlink()
    os.mkfifo(path)
    assert "is no plain file" in error_of(state)


def test_a_directory_that_is_not_there(tmp_path) -> None:
    with pytest.raises(OperatorError, match="can't be written: No such file"):
        save(str(tmp_path / "no"), GOOD)


def test_wipe(state) -> None:
    os.link(state / "credentials", state / "other name")
    assert wipe(str(state))
    assert not any((state / "other name").read_bytes())
    assert not (state / "credentials").exists()
    assert not wipe(str(state))
    (state / "credentials").symlink_to("other name")
    with pytest.raises(OperatorError, match="can't be opened"):
        wipe(str(state))


def test_the_key_is_not_shown() -> None:
    assert "\\xab" not in repr(GOOD)


def checked(fields: dict) -> bytes:
    """As a foreign program could write it, with a right checksum."""
    return json.dumps({**fields, "check": module._check(fields)}).encode()


def test_a_right_checksum_makes_no_credentials(state) -> None:
    good = json.loads((state / "credentials").read_text())
    del good["check"]
    assert decode_untrusted(checked(good)) == GOOD
    for change in (
        {"cluster": "43"}, {"cluster": 5}, {"cluster": "x" * 32}, {"cluster_key": ""}, {"encrypt": 1}, {"node": ""},
        {"node": "n" * 65}, {"node": "a\nb"}, {"stores": []}, {"stores": "x"}, {"stores": [5]}, {"stores": ["x"] * 9},
        {"addresses": []}, {"addresses": [["h", 1]]}, {"addresses": [["10.0.0.1"]]}, {"addresses": ["10.0.0.1"]},
        {"addresses": [["10.0.0.1", "1"]]}, {"cluster_name": None}, {"more": 1}, {"addresses": [["10.0.0.1", 1]] * 9},
    ):  # fmt: skip
        with pytest.raises(BadMessage):
            decode_untrusted(checked({**good, **change}))


def test_hostile_files_raise_one_error(state) -> None:
    rng = random.Random(7)
    text = (state / "credentials").read_bytes()
    refused = 0
    for _ in range(2000):
        data = bytearray(text)
        for _ in range(rng.randrange(1, 5)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            assert decode_untrusted(bytes(data)) == GOOD  # another kind of white space
        except BadMessage:
            refused += 1
    assert refused > 1800
    for data in (b"[" * 60000, b'{"version": 1, "x": "\\ud800", "check": "00"}', b"1e999", b"\xff", b"[]", b"null"):
        with pytest.raises(BadMessage):
            decode_untrusted(data)
