"""images/install.sh: what it lays into a root works from there, without the source tree."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

TREE = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    target = tmp_path_factory.mktemp("root")
    path = os.pathsep.join([str(TREE / ".tools/bin"), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path}
    subprocess.run([TREE / "images/install.sh", target], env=environment, check=True, timeout=300)
    return target


def test_the_overlay_lies_where_kairos_looks(root):
    plugin = root / "system/providers/agent-provider-kairos-p2p"
    assert plugin.readlink() == Path("/usr/lib/kairos-p2p/bin/agent-provider-kairos-p2p")
    assert (root / "usr/lib/kairos-p2p/bin/agent-provider-kairos-p2p").stat().st_mode & 0o111
    assert (root / "usr/bin/kairos-p2p").readlink() == Path("/usr/lib/kairos-p2p/bin/kairos-p2p")


def test_the_plugin_answers_from_there(root, tmp_path):
    event = {"name": "agent.boot", "data": json.dumps({"config": ""}), "file": ""}
    done = subprocess.run(
        [root / "usr/lib/kairos-p2p/bin/agent-provider-kairos-p2p", "agent.boot"],
        input=json.dumps(event),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
        timeout=60,
    )
    assert json.loads(done.stdout) == {"state": "", "data": "", "error": "", "log": ""}


def test_it_does_not_depend_on_the_tree(root):
    program = root / "usr/lib/kairos-p2p/bin/python"
    code = "import provider_kairos, sys; print(provider_kairos.__file__)"
    where = subprocess.run([program, "-I", "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    assert where.startswith(str(root))
    assert str(TREE) not in where


def test_usage_is_said():
    done = subprocess.run([TREE / "images/install.sh"], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert "usage" in done.stderr
