"""Every example of the documentation: shell commands run or parse, YAML loads, links resolve, named files exist.

In a ``console`` block a line that begins with ``$ `` or ``# `` is a command (of a user, of root), everything else is what
it prints. Commands that need neither root nor a lab nor a network are run, in order, in an empty folder for each page. Of all
others programs, sub-commands, options, make targets, modules and routes have to exist.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer

from provider_kairos.api.native import native_routes
from provider_kairos.api.routes import edgevpn_routes
from provider_kairos.api.testing import FakeBackend
from provider_kairos.cli.app import app, spell_out
from provider_kairos.config import load
from provider_kairos.lab.cli import app as lab_app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BIN = Path(sys.prefix, "bin")

RUN = {"generate-token", "create-config", "validate", "token", "version", "--version", "--help"}
"""First words of ``kairos-p2p`` commands that are run."""

KNOWN = {
    "cat",
    "curl",
    "docker",
    "export",
    "ip",
    "kubectl",
    "ln",
    "mkdir",
    "ping",
    "python3",
    "pip",
    "systemctl",
    "umask",
    "uv",
}
"""Programs that are not ours; whoever uses another one in an example thinks about who has it."""


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


every_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


@dataclass(frozen=True)
class Block:
    line: int
    language: str
    text: str


def blocks(page: Path) -> Iterator[Block]:
    """Fenced blocks, those of list items without their indent."""
    text = page.read_text("utf-8")
    for match in re.finditer(r"(?ms)^( *)```([a-z]*)\n(.*?)^\1```$", text):
        indent = len(match[1])
        body = "\n".join(line[indent:] for line in match[3].splitlines())
        yield Block(text.count("\n", 0, match.start()) + 1, match[2], body)


def prose(page: Path) -> str:
    return re.sub(r"(?ms)^( *)```.*?^\1```$", "", page.read_text("utf-8"))


def commands(page: Path) -> list[tuple[str, str]]:
    """``(page:line, command)`` of all console blocks."""
    found = []
    for block in blocks(page):
        if block.language != "console":
            continue
        for number, line in enumerate(block.text.splitlines()):
            if line.startswith(("$ ", "# ")):
                found.append((f"{name_of(page)}:{block.line + 1 + number}", line[2:].strip()))
    return found


def segments(command: str) -> list[list[str]]:
    """The simple commands of a line, without redirections, variables before them, and comments."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
    lexer.commenters = "#"
    lexer.whitespace_split = True
    found: list[list[str]] = [[]]
    words = iter(lexer)
    for word in words:
        if word in {"|", ";", "&&", "||", "(", ")"}:
            found.append([])
        elif word in {">", ">>", "<"}:
            next(words)
        elif found[-1] or not re.fullmatch(r"[A-Z_0-9]+=.*", word):
            found[-1].append(word)
    return [words for words in found if words]


# --- what a command line names has to exist ---------------------------------------------------------------------------


def parse(command: Any, name: str, arguments: list[str]) -> None:
    """Parse as the program would, without running anything. Raises what the parser raises."""
    if not arguments and command.no_args_is_help:
        return
    context = command.make_context(name, list(arguments))
    while hasattr(command, "commands"):
        rest = [*context._protected_args, *context.args]
        name, command, rest = command.resolve_command(context, rest)
        if not rest and command.no_args_is_help:
            return
        context = command.make_context(name, rest, parent=context)
    inner = context.params.get("command")
    if command.name == "exec" and inner:
        check(list(inner)[1:] if inner[0] == "--" else list(inner))


def check(words: list[str]) -> None:
    """One simple command."""
    program, arguments = words[0].rpartition("/")[2], words[1:]
    if program == "kairos-p2p":
        if arguments[:1] == ["lab"]:
            parse(typer.main.get_command(lab_app), "lab", arguments[1:])
        elif not {"--help", "--version"} & set(arguments):
            parse(typer.main.get_command(app), "kairos-p2p", spell_out(arguments))
    elif program == "make":
        makefile = (ROOT / "Makefile").read_text()
        for target in arguments:
            assert re.search(rf"(?m)^{re.escape(target)}:", makefile), f"make has no target {target}"
    elif program in {"python", "python3"} and arguments[:1] == ["-m"] and arguments[1] not in {"venv", "pytest"}:
        assert (
            importlib.util.find_spec(arguments[1]) or Path(ROOT, *arguments[1].split(".")).with_suffix(".py").exists()
        )
    elif program == "python" and arguments:
        assert (ROOT / arguments[0]).exists()
    else:
        assert program in KNOWN, f"{program} is not a program that examples use"
        if program == "curl":
            check_route(arguments[-1])


def check_route(url: str) -> None:
    path = re.sub(r"^http://[^/]+|\?.*$", "", url)
    backend = FakeBackend()
    patterns = [route.pattern for route in [*edgevpn_routes(backend), *native_routes(backend)]]
    assert any(re.fullmatch(re.sub(r":\w+", "[^/]+", pattern), path) for pattern in patterns), f"no route {path}"


COMMANDS = [pytest.param(command, id=place) for page in PAGES for place, command in commands(page)]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_exist(command: str):
    for words in segments(command):
        check(words)


def test_a_wrong_example_is_found():
    for wrong in (
        "kairos-p2p stats",
        "kairos-p2p lab up --boxs 3",
        "kairos-p2p lab exec box1 -- kairos-p2p x",
        "make x",
    ):
        with pytest.raises(Exception, match=r"(?i)no such|no target"):
            check(shlex.split(wrong))
    with pytest.raises(AssertionError, match="no route"):
        check(["curl", "--unix-socket", "/run/edgevpn-kairos.sock", "http://unix/api/machine"])


# --- what can run is run ------------------------------------------------------------------------------------------------


def runs(command: str) -> bool:
    """Whether every program of the line is ours and needs nothing."""
    parts = segments(command)
    return bool(parts) and all(words[0] == "kairos-p2p" and words[1] in RUN for words in parts)


@every_page
def test_commands_run(page: Path, tmp_path: Path):
    environment = {"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(tmp_path), "LANG": "C.UTF-8"}
    for place, command in commands(page):
        if runs(command):
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", command],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                stdin=subprocess.DEVNULL,
            )
            assert done.returncode == 0, f"{place}: {command}\n{done.stdout}{done.stderr}"


def test_enough_is_run():
    run = [command for page in PAGES for _, command in commands(page) if runs(command)]
    assert {segments(command)[0][1] for command in run} >= {"create-config", "validate", "token", "version"}


@every_page
def test_commands_in_the_text_parse(page: Path):
    for span in re.findall(r"`(kairos-p2p [^`]+)`", prose(page)):
        if not re.search(r"\.\.\.|\[", span):
            try:
                check(shlex.split(span))
            except typer.BadParameter as error:
                if "Missing" not in type(error).__name__:  # a command that is only named, without its arguments
                    raise


# --- documents, links, files ----------------------------------------------------------------------------------------


@every_page
def test_yaml_loads_without_remarks(page: Path):
    for block in blocks(page):
        if block.language == "yaml":
            found = load(block.text, f"{name_of(page)}:{block.line}")
            assert not found.warnings, [str(notice) for notice in found.warnings]
            assert block.text.startswith("#cloud-config")


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"(?m)^#+ (.+)$", prose(page))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@every_page
def test_links_resolve(page: Path):
    for target in re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", prose(page)):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{name_of(page)}: {target}"
        if anchor:
            assert anchor in anchors(there), f"{name_of(page)}: {target}"


OURS = re.compile(
    r"(?:provider_kairos|docs|tests|bench|spec|overlay|images|earthly|\.ci)/[\w./{},*@-]+|[\w-]+\.toml|uv\.lock"
)


@every_page
def test_files_that_are_named_exist(page: Path):
    for span in re.findall(r"`([^`\n]+)`", prose(page)):
        for word in span.split():
            if not OURS.fullmatch(word.partition("::")[0]):
                continue
            braces = re.fullmatch(r"(.*)\{(.*)\}(.*)", word)
            names = [braces[1] + each + braces[3] for each in braces[2].split(",")] if braces else [word]
            for name in names:
                assert list(ROOT.glob(name.rstrip("/"))), f"{name_of(page)}: {name}"
