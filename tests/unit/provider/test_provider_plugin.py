"""The plugin protocol as a host sees it: a process, its stdin, stdout and exit code (spec/provider.md 1)."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from provider_kairos.provider import plugin
from provider_kairos.provider.events import EVENTS

EMPTY = {"state": "", "data": "", "error": "", "log": ""}


def start(event, document, *, code="", env=None):
    """Run the plugin in a process of its own; ``code`` may change handlers before."""
    program = f"import sys; from provider_kairos.provider import plugin; {code}\nsys.exit(plugin.run({event!r}))"
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    return subprocess.run([sys.executable, "-c", program], input=text, capture_output=True, env=env, timeout=60)


def event(data="null", file="", name="agent.boot"):
    return {"name": name, "data": data, "file": file}


@pytest.mark.parametrize("name", sorted(EVENTS - {"agent.bootstrap"}))
def test_known_events_without_a_handler_are_answered_with_four_empty_texts(name):
    assert vars_of(plugin.answer(name, json.dumps(event()).encode(), {})) == EMPTY


def vars_of(response):
    return json.loads(response.encode())


def test_stdout_holds_the_answer_and_nothing_else():
    done = start("agent.boot", event())
    assert done.returncode == 0
    assert json.loads(done.stdout) == EMPTY
    assert done.stdout == json.dumps(EMPTY).encode()


NOISY = """
import os, subprocess
def noisy(payload, context):
    print("printed"); os.write(1, b"written\\n"); os.write(2, b"to stderr\\n")
    subprocess.run(["sh", "-c", "echo from a child; echo child error >&2"])
    return plugin.Response(data=payload["a"])
plugin.HANDLERS["agent.boot"] = noisy
"""


def test_what_a_handler_and_its_children_print_is_the_log():
    done = start("agent.boot", event('{"a": "x"}'), code=NOISY.replace("\n", "\n"))
    answer = json.loads(done.stdout)
    assert answer["data"] == "x"
    for text in ("printed", "written", "to stderr", "from a child", "child error"):
        assert text in answer["log"]
    assert done.stderr == b""


def test_a_detached_handler_keeps_nothing():
    code = """
import os
def endless(payload, context):
    context.detach()
    for _ in range(1000): os.write(1, b"x" * 1000)
    return plugin.Response(error="ended")
plugin.HANDLERS["agent.boot"] = endless
"""
    answer = json.loads(start("agent.boot", event(), code=code).stdout)
    assert answer == EMPTY | {"error": "ended"}


def test_an_exception_is_an_error_without_a_traceback_and_without_its_text():
    code = """
def failing(payload, context):
    raise KeyError("secret-token")
plugin.HANDLERS["agent.boot"] = failing
"""
    done = start("agent.boot", event(), code=code)
    answer = json.loads(done.stdout)
    assert done.returncode == 0
    assert answer["error"].startswith("internal error: KeyError at ")
    assert b"secret-token" not in done.stdout
    assert b"Traceback" not in done.stdout + done.stderr


def test_our_own_errors_keep_their_words():
    code = """
def failing(payload, context):
    from provider_kairos.errors import HostError
    raise HostError("no TUN device", hint="load the module")
plugin.HANDLERS["agent.boot"] = failing
"""
    assert json.loads(start("agent.boot", event(), code=code).stdout)["error"] == "no TUN device (load the module)"


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b'{"data": 3}', b'{"file": 3}', b"\xff\xfe"])
def test_what_is_no_event_is_exit_code_1_with_the_reason_on_stdout(raw):
    done = start("agent.boot", raw)
    assert done.returncode == 1
    assert done.stdout.startswith(b"failed reading the event from stdin")


def test_the_side_file_wins_over_data(tmp_path):
    side = tmp_path / "payload"
    side.write_text('{"config": "from the file"}')
    raw = json.dumps(event('{"config": "from data"}', str(side))).encode()
    assert plugin.read_event(raw) == {"config": "from the file"}


def test_a_side_file_that_is_gone_is_exit_code_1():
    done = start("agent.boot", event("", "/nowhere/at/all"))
    assert done.returncode == 1
    assert b"/nowhere/at/all" in done.stdout


def test_a_payload_of_many_kilobytes_comes_by_file(tmp_path):
    side = tmp_path / "payload"
    side.write_text(json.dumps({"config": "#" * 300_000}))
    assert len(plugin.read_event(json.dumps(event("", str(side))).encode())["config"]) == 300_000


@pytest.mark.parametrize("data", ["null", "", "[]", "3"])
def test_no_data_is_an_empty_payload(data):
    assert plugin.read_event(json.dumps(event(data)).encode()) == {}


def test_missing_keys_are_an_empty_payload():
    assert plugin.read_event(b"{}") == {}


def test_the_dispatch_imports_the_standard_library_alone():
    program = (
        "import sys; from provider_kairos.provider import plugin; "
        "plugin.answer('agent.boot', b'{}', {}); "
        "heavy = {'pydantic', 'yaml', 'trio', 'jinja2', 'subprocess', 'asyncio', 'logging', 'cryptography', 'typer'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "config", ["#cloud-config\nhostname: x\n", "", "users: [{name: k3s-admin}]\n", "image: a:k3s-v1\n"]
)
def test_a_bootstrap_with_nothing_to_do_reads_no_yaml(config):
    payload = json.dumps({"config": config, "api": "http://127.0.0.1:8080"})
    program = (
        f"import sys, json; from provider_kairos.provider import plugin; "
        f"r = plugin.answer('agent.bootstrap', json.dumps({{'data': {payload!r}}}).encode(), {{}});"
        "print(r.state, sorted({'pydantic', 'yaml'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "no P2P or kubernetes configured []"


@pytest.mark.parametrize("key", ["p2p", "k3s", "k3s-agent", "k0s", "k0s-worker"])
@pytest.mark.parametrize("form", ["{}:\n  a: 1\n", "a: 1\n{}: {{}}\n", '"{}": {{}}\n', "{{{}: {{}}}}", "'{}' : {{}}\n"])
def test_no_spelling_of_a_block_is_overlooked(key, form):
    assert plugin._KEYS.search(form.format(key))
