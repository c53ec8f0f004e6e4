"""Who we are to a target, and how we prove it: from the environment, or from a file that mounts at boot find."""

from __future__ import annotations

from pathlib import Path

import pytest

from matrixfs.blockstore.scsi.credentials import environment
from membership.errors import OperatorError

NAMES = ("LIBISCSI_CHAP_USERNAME", "LIBISCSI_CHAP_PASSWORD", "MATRIXFS_INITIATOR")
LINES = "# ours\nLIBISCSI_CHAP_USERNAME=web\nLIBISCSI_CHAP_PASSWORD='se=cret'\nMATRIXFS_INITIATOR=iqn.a:b\nPATH=/evil\n"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "iscsi.env"
    path.write_text(LINES)
    path.chmod(0o600)
    return path


def found(path: Path) -> list[str | None]:
    return [environment(str(path)).get(name) for name in NAMES]


def test_the_file_completes_the_environment(file: Path) -> None:
    assert found(file) == ["web", "se=cret", "iqn.a:b"]
    assert environment(str(file))["PATH"] != "/evil"
    assert found(file.with_name("absent")) == [None, None, None]


def test_user_and_password_are_of_one_place(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIBISCSI_CHAP_USERNAME", "other")
    assert found(file) == ["other", None, "iqn.a:b"]
    monkeypatch.setenv("MATRIXFS_INITIATOR", "iqn.mine:x")
    file.chmod(0o644)
    assert found(file) == ["other", None, "iqn.mine:x"]  # nothing is wanted of it


def test_a_file_that_everybody_may_read_is_refused(file: Path) -> None:
    file.chmod(0o604)
    with pytest.raises(OperatorError, match="chmod 600"):
        environment(str(file))
