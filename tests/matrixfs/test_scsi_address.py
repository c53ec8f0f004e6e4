"""URLs of LUNs, identities, and that a password is never shown."""

from __future__ import annotations

import os
import random

import pytest

from matrixfs.blockstore.scsi.address import Address, identity_of, parse_address
from matrixfs.blockstore.scsi.credentials import environment
from matrixfs.store_names import is_iscsi, public_name
from membership.errors import OperatorError

TARGET = "iqn.2026-11.com.example:san.x"
SECRET = {"LIBISCSI_CHAP_USERNAME": "joe", "LIBISCSI_CHAP_PASSWORD": "geheim"}


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (f"iscsi://h/{TARGET}/1", Address("h", 3260, TARGET, 1)),
        (f"iscsi://10.0.0.1:3999/{TARGET}/16383", Address("10.0.0.1", 3999, TARGET, 16383)),
        (f"iscsi://[fd00::1]/{TARGET}/0", Address("fd00::1", 3260, TARGET, 0)),
        (f"iscsi://joe%pw@h/{TARGET}/0", Address("h", 3260, TARGET, 0, "joe", "pw")),
        (f"iscsi://joe%p@w/x%:?y@h:1/{TARGET}/0", Address("h", 1, TARGET, 0, "joe", "p@w/x%:?y")),
        (f"iscsi://h/{TARGET}/0?header_digest=crc32c", Address("h", 3260, TARGET, 0, header_digest=True)),
        (f"iscsi://h/{TARGET}/0?header_digest=none", Address("h", 3260, TARGET, 0)),
        ("iscsi://h/naa.50000123456789ab/3", Address("h", 3260, "naa.50000123456789ab", 3)),
    ],
)
def test_addresses(url: str, expected: Address) -> None:
    found = parse_address(url, {})
    assert found == expected
    again = parse_address(str(found), {"LIBISCSI_CHAP_USERNAME": found.user, "LIBISCSI_CHAP_PASSWORD": found.password})
    assert again == found, "its text means the same"


@pytest.mark.parametrize(
    "url",
    [
        "iscsi://", "iscsi:///", "iscsi://h", f"iscsi://h/{TARGET}", f"iscsi://h/{TARGET}/", f"iscsi://h/{TARGET}/x",
        f"iscsi://h/{TARGET}/-1", f"iscsi://h/{TARGET}/16384", f"iscsi://h/{TARGET}/99999999", "iscsi://h/disk/1",
        f"iscsi:///{TARGET}/1", f"iscsi://h:/{TARGET}/1", f"iscsi://h:0/{TARGET}/1", f"iscsi://h:65536/{TARGET}/1",
        f"iscsi://h/{TARGET}/1?x=1", f"iscsi://h/{TARGET}/1?header_digest=md5", f"iscsi://h/{'iqn.2026-11.a' * 30}/1",
        f"iscsi://[fd00::1/{TARGET}/1", f"iscsi://a:b:c/{TARGET}/1", f"iscsi://h/{TARGET}/\u0661",
    ],
)  # fmt: skip
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(OperatorError, match="iscsi://"):
        parse_address(url, {})


def test_credentials_of_the_environment() -> None:
    found = parse_address(f"iscsi://h/{TARGET}/1", SECRET)
    assert (found.user, found.password) == ("joe", "geheim")
    found = parse_address(f"iscsi://ann@h/{TARGET}/1", SECRET)
    assert (found.user, found.password) == ("ann", "geheim")
    with pytest.raises(OperatorError, match="LIBISCSI_CHAP_PASSWORD"):
        parse_address(f"iscsi://ann@h/{TARGET}/1", {})


def test_a_password_is_never_shown() -> None:
    found = parse_address(f"iscsi://joe%geheim@h/{TARGET}/1", {})
    assert "geheim" not in f"{found} {found!r} {public_name(f'iscsi://joe%geheim@h/{TARGET}/1')}"
    for rest in ("", f"h/{TARGET}/x", f"h:0/{TARGET}/1", f"h/{TARGET}/1?x", f":/{TARGET}", "h/x/1"):
        with pytest.raises(OperatorError) as refused:
            parse_address(f"iscsi://joe%geheim@{rest}", {})
        assert "geheim" not in str(refused.value)


def test_any_text_is_an_address_or_a_clear_error() -> None:
    rng = random.Random(3)
    for _ in range(3000):
        url = list(f"iscsi://joe%pw@[fd00::1]:3260/{TARGET}/1?header_digest=crc32c")
        for _ in range(rng.randrange(1, 6)):
            url[rng.randrange(len(url))] = rng.choice("/%@:[]?=&0 \0é")
        try:
            parse_address("iscsi://" + "".join(url).removeprefix("iscsi://"), {})
        except OperatorError as error:
            assert "\n" not in str(error)


def test_identities() -> None:
    one = identity_of("matrixd", "n1", {})
    assert one == identity_of("matrixd", "n1", {}), "the same for ever"
    assert one.initiator == "iqn.2026-11.org.matrixfs:n1"
    others = [identity_of("mount 1", "n1", {}), identity_of("matrixd", "n2", {}), identity_of("mount 2", "n1", {})]
    ports = {(each.isid_random, each.isid_qualifier) for each in (one, *others)}
    assert len(ports) == 4
    assert others[0].initiator == one.initiator, "one name a node, for the array's access list"
    assert one.isid_random < 1 << 24
    assert one.isid_qualifier < 1 << 16
    assert identity_of("x", "Ünix_host", {}).initiator == "iqn.2026-11.org.matrixfs:-nix-host"
    given = {"MATRIXFS_INITIATOR": "iqn.1993-08.org.debian:01:abc"}
    assert identity_of("matrixd", "n1", given).initiator == "iqn.1993-08.org.debian:01:abc"
    with pytest.raises(OperatorError, match="MATRIXFS_INITIATOR"):
        identity_of("matrixd", "n1", {"MATRIXFS_INITIATOR": "node1"})


def test_credentials_of_a_file(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SECRET:
        monkeypatch.delenv(name, raising=False)
    path = f"{tmp_path}/iscsi.env"
    assert "LIBISCSI_CHAP_USERNAME" not in environment(path)
    with open(path, "w") as file:
        file.write("# of the array\nLIBISCSI_CHAP_USERNAME=joe\nLIBISCSI_CHAP_PASSWORD='geheim'\nPATH=/nowhere\n")
    os.chmod(path, 0o604)
    with pytest.raises(OperatorError, match="chmod 600"):
        environment(path)
    os.chmod(path, 0o640)
    assert {name: environment(path)[name] for name in SECRET} == SECRET
    assert environment(path)["PATH"] == os.environ["PATH"], "nothing else is taken from it"
    monkeypatch.setenv("LIBISCSI_CHAP_USERNAME", "ann")
    assert environment(path)["LIBISCSI_CHAP_USERNAME"] == "ann"


def test_names() -> None:
    url = f"iscsi://joe%pw@h/{TARGET}/1"
    assert is_iscsi(url)
    assert not is_iscsi("./iscsi")
    assert public_name("store") == os.path.abspath("store")
