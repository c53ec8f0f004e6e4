"""The tables of docs/format say what the code says (R12): scripts/docs-from-tables has nothing to do."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import pkgutil
from pathlib import Path
from types import ModuleType

import pytest

import matrixfs.ondisk
from membership.records import Record

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("docs_from_tables", str(ROOT / "scripts" / "docs-from-tables.py"))
    spec = importlib.util.spec_from_loader("docs_from_tables", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def test_the_pages_are_up_to_date(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["--check"]) == 0, capsys.readouterr().out


def test_every_record_of_the_filesystem_is_described() -> None:
    page = (ROOT / "docs" / "format" / "filesystem.md").read_text()
    for module in pkgutil.iter_modules(matrixfs.ondisk.__path__):
        for value in vars(importlib.import_module(f"matrixfs.ondisk.{module.name}")).values():
            if isinstance(value, type) and issubclass(value, Record) and value is not Record:
                assert f"<!-- record {value.__module__}.{value.__name__} -->" in page


def test_a_stale_table_is_noticed(script: ModuleType) -> None:
    places = (("format/filesystem", "| 136 | 4 |", "| 132 | 8 |"), ("operator/fsck", "group-free", "fee"))
    for name, sound, stale in places:
        page = (ROOT / "docs" / f"{name}.md").read_text()
        assert script.render(page) == page
        assert sound in page
        assert script.render(page.replace(sound, stale)) == page
