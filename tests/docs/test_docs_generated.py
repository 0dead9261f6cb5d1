"""The generated parts of the reference are what the code says today; a new row without words is an error."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

from provider_kairos.daemon.settings import all_without_effect
from provider_kairos.provider import daemon_unit, disk, journal, status

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs/generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pages_are_up_to_date(generate: ModuleType):
    stale = [path.name for path, old, new in generate.pages() if old != new]
    assert not stale, "run `python docs/generate.py`"


def test_every_part_stands_in_exactly_one_page(generate: ModuleType):
    found = [name for _, text, _ in generate.pages() for name in generate.parts_of(text)]
    assert sorted(found) == sorted(generate.PARTS)


def test_every_marker_is_one_of_a_pair(generate: ModuleType):
    for path, text, _ in generate.pages():
        assert text.count("<!-- generated: ") == text.count("<!-- end of ") == len(generate.parts_of(text)), path


def test_the_reasons_table_names_every_reason_of_the_code(generate: ModuleType):
    page = (ROOT / "docs/reference/reasons.md").read_text()
    for kind in generate.waiting_classes():
        assert f"| `{kind.code}` |" in page


def test_every_flag_and_variable_that_edgevpn_has_is_on_the_page():
    page = (ROOT / "docs/reference/settings.md").read_text()
    for version in ("035", "030"):
        document = json.loads((ROOT / f"tests/interop/recordings/cli-help-{version}.json").read_text())
        for flag in [*document["commands"]["(main)"], *document["common"]]:
            for name in (*flag["flags"][:1], *flag["env"]):
                assert f"`{name}`" in page or name in {"--help", "--version"}, name


def test_settings_without_effect_are_all_named():
    page = (ROOT / "docs/reference/settings.md").read_text()
    assert [row for row in all_without_effect() if f"`{row.name or row.flag}`" not in page] == []


def test_the_files_page_names_the_files_of_the_code():
    page = (ROOT / "docs/reference/files.md").read_text()
    paths = (
        disk.SENTINEL,
        disk.ROLE_FILE,
        status.STATUS_FILE,
        daemon_unit.ENV_FILE,
        f"{daemon_unit.LEASE_DIR}/",
        str(journal.LOG_FILE),
    )
    assert [path for path in paths if path not in page] == []


def test_decisions_are_listed_and_numbered_once():
    folder = ROOT / "docs/decisions"
    records = sorted(path.name for path in folder.glob("[0-9]*.md"))
    numbers = [name[:4] for name in records]
    assert len(set(numbers)) == len(numbers)
    listed = re.findall(r"\[\d{4}\]\((\S+)\)", (folder / "README.md").read_text())
    assert listed == records
    for name in records:
        assert (folder / name).read_text().startswith(f"# {name[:4]} ")
