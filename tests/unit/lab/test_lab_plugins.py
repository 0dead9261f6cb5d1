"""Plugins found and run as the Kairos agent does it, and stages."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from provider_kairos.lab import plugins, stages
from provider_kairos.lab.plugins import Plugin, Response, find_plugins, publish, run_plugin


@pytest.fixture
def make_plugin(tmp_path):
    def make(body: str, name: str = "agent-provider-test", folder: str = "bin") -> Plugin:
        place = tmp_path / folder / name
        place.parent.mkdir(exist_ok=True)
        place.write_text(f"#!{sys.executable} -IS\nimport json, os, sys\n{body}\n", "utf-8")
        place.chmod(0o755)
        return Plugin(name.removeprefix("agent-provider-"), str(place))

    return make


ECHO = (
    "event = json.load(sys.stdin)\n"
    "side = open(event['file']).read() if event['file'] else ''\n"
    "print(json.dumps({'state': sys.argv[1] + ' ' + event['name'], 'data': event['data'] or side, 'error': '',"
    " 'log': event['file']}))"
)


def test_small_payloads_travel_inside_the_event(make_plugin):
    answer = run_plugin(make_plugin(ECHO), "agent.bootstrap", '{"a": 1}')
    assert answer == Response(state="agent.bootstrap agent.bootstrap", data='{"a": 1}')


def test_large_payloads_travel_in_a_private_side_file_that_is_removed(make_plugin):
    payload = json.dumps({"config": "x" * 9000})
    body = ECHO.replace("print(", "assert os.stat(event['file']).st_mode & 0o777 == 0o600\nprint(")
    answer = run_plugin(make_plugin(body), "agent.bootstrap", payload)
    assert answer.data == payload
    assert answer.log
    assert not Path(answer.log).exists()


@pytest.mark.parametrize("size", [8192, 8193])
def test_the_border_is_8_kib(make_plugin, size):
    answer = run_plugin(make_plugin(ECHO), "e", "x" * size)
    assert answer.data == "x" * size
    assert bool(answer.log) is (size > 8192)


def test_a_plugin_that_breaks_is_an_error(make_plugin):
    assert "exit status 3" in run_plugin(make_plugin("sys.exit(3)"), "e", "{}").error
    assert "not JSON" in run_plugin(make_plugin("print('hello')"), "e", "{}").error
    assert "error while executing plugin" in run_plugin(Plugin("x", "/nowhere"), "e", "{}").error


def test_the_search_order_decides_and_names_are_unique(make_plugin, tmp_path, monkeypatch):
    monkeypatch.setattr(plugins, "PLUGIN_FOLDERS", (str(tmp_path / "system"),))
    first = make_plugin("", folder="path")
    make_plugin("", folder="system")
    other = make_plugin("", name="agent-provider-other", folder="system")
    make_plugin("", name="provider-nothing", folder="system")
    assert find_plugins(f"{tmp_path}/path:", str(tmp_path / "cwd")) == [first, other]


def test_every_plugin_gets_the_event(make_plugin):
    heard: list[tuple[str, str]] = []
    both = [make_plugin(ECHO, "agent-provider-a"), make_plugin(ECHO, "agent-provider-b")]
    publish(both, "e", "{}", lambda plugin, answer: heard.append((plugin.name, answer.state)))
    assert heard == [("a", "e e"), ("b", "e e")]


def test_stages_run_in_order_and_are_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "RECORD", tmp_path / "log" / "stages.log")
    config = tmp_path / "oem"
    config.mkdir()
    out = tmp_path / "out"
    (config / "a.yaml").write_text(
        f"stages:\n"
        f"  boot.before:\n  - commands: ['echo one >>{out}']\n"
        f"  boot:\n"
        f"  - if: 'test -e /'\n    commands: ['echo two >>{out}', 'false']\n"
        f"  - if: 'test -e /nowhere'\n    commands: ['echo never >>{out}']\n"
        f"  - files:\n    - {{path: {out}.d/f, content: text, permissions: 0600}}\n"
        f"  - users: {{}}\n",
        "utf-8",
    )
    (config / "broken.yaml").write_text("stages: [", "utf-8")
    assert stages.run_stages(["boot", "other"], [str(config)]) == 1
    assert out.read_text() == "one\ntwo\n"
    assert (tmp_path / "out.d/f").read_text() == "text"
    assert (tmp_path / "out.d/f").stat().st_mode & 0o777 == 0o600
    record = (tmp_path / "log/stages.log").read_text()
    assert "stage boot" in record
    assert "stage other" in record
    assert "users is not done in a lab" in record
