"""What is written for systemd and OpenRC means exactly what was given.

The parsers here are small models of systemd's own (ExecStart= words with quotes, C escapes, specifiers and variables;
EnvironmentFile= lines), written from its manual pages and independent of the code under test. Shells read the env
files too, so a real one is asked.
"""

from __future__ import annotations

import re
import subprocess

from hypothesis import example, given, settings
from hypothesis import strategies as st

from provider_kairos.config import InvalidConfigError, load
from provider_kairos.errors import ConfigError, ProviderError
from provider_kairos.kubernetes import (
    InitKind,
    NodeFacts,
    NodeRole,
    render,
)
from provider_kairos.kubernetes.arguments import parse_flags, read_args
from provider_kairos.quoting import openrc_command_args, parse_env_file, systemd_env_file, systemd_exec

SIMPLE = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v", "s": " "}


def exec_words(line: str) -> list[str]:
    """systemd's view of a command line."""
    words: list[str] = []
    word: str | None = None
    quote = ""
    at = 0
    while at < len(line):
        c = line[at]
        at += 1
        if c == "\\":
            assert at < len(line), "a lone backslash at the end"
            escaped = line[at]
            at += 1
            if escaped == "x":
                word = (word or "") + chr(int(line[at : at + 2], 16))
                at += 2
            elif escaped in SIMPLE:
                word = (word or "") + SIMPLE[escaped]
            else:
                assert escaped in "\\\"'", f"unknown escape {escaped!r}"
                word = (word or "") + escaped
        elif quote:
            if c == quote:
                quote = ""
            else:
                word = (word or "") + c
        elif c in "'\"":
            quote = c
            word = word or ""
        elif c in " \t\n\r":
            assert line[at - 3 : at - 1] != " ;", "a second command would begin"
            if word is not None:
                words.append(word)
            word = None
        else:
            word = (word or "") + c
    assert not quote, "an open quote"
    if word is not None:
        words.append(word)
    return [expanded(w) for w in words]


def expanded(word: str) -> str:
    """Specifiers and variables of a unit: here only their doubled forms may occur."""
    for sign in "%$":
        parts = word.split(sign * 2)
        assert not any(sign in part for part in parts), f"{sign} would be expanded"
        word = sign.join(parts)
    return word


def env_lines(text: str) -> dict[str, str]:
    """systemd's view of an env file: double quotes, backslash before four characters."""
    found = {}
    at = 0
    while at < len(text):
        if text[at] in "#;":
            at = text.index("\n", at) + 1
            continue
        equals = text.index("=", at)
        name = text[at:equals]
        assert text[equals + 1] == '"'
        at = equals + 2
        value = ""
        while text[at] != '"':
            if text[at] == "\\" and text[at + 1] in '"\\`$':
                at += 1
            value += text[at]
            at += 1
        assert text[at + 1] == "\n"
        at += 2
        found[name] = value
    return found


ARGUMENT = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=20) | st.text(
    st.sampled_from(list("ab -=%$\"'\\;#{}`!\n\t\r\x7f|&<>*")), max_size=12
)
NAME = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True)
VALUE = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=20) | st.text(
    st.sampled_from(list("ab 0#;=%$\"'\\`!\n\t")), max_size=12
)


@given(st.lists(ARGUMENT, max_size=6))
@example(["", "$", "%", "$$", "%%", "${A}", "%h", "\\", '"', "'", ";", "#", "a\\", "a b", "\n"])
@example(["--a=%i %n %%", "--b=$HOME ${X} $$", "--c=two words", "a\nb\tc\r", "--token=p!s*s~#"])
def test_a_command_line_means_its_arguments(arguments):
    line = systemd_exec(["/usr/bin/k3s", *arguments])
    assert "\n" not in line
    assert "\r" not in line
    assert not line.endswith("\\")
    assert exec_words(line) == ["/usr/bin/k3s", *arguments]


@given(st.dictionaries(NAME, VALUE, max_size=5))
@example({"A": 'pa!ss$wo`rd"\\', "B": "0600", "C": "", "D": "a\nB=c", "E": " x ", "F": "#", "G": "'"})
@example(
    {
        "DOLLAR": "$HOME ${HOME} $(id) `id`",
        "PERCENT": "100%i",
        "QUOTES": "'single' \"double\" \\back\\slash\\",
        "LINES": "one\ntwo\n",
        "HASH": "#no comment; really",
        "UNICODE": "Grüße 🦭",
        "BACKSLASH_BANG": "\\!",
    }
)
def test_an_env_file_means_its_variables(environment):
    text = systemd_env_file(environment)
    assert env_lines(text) == environment
    assert parse_env_file(text) == environment
    assert list(env_lines(text)) == sorted(environment)


@given(st.text(max_size=200))
@example("A='x y'\n#B=c\n;C=d\nD=a\\\nb\nE = f \nno line\n=x\nF=\"open")
def test_any_env_file_is_read(text):
    for name, value in parse_env_file(text).items():
        assert name.isascii()
        assert isinstance(value, str)


@given(st.dictionaries(st.text(max_size=4), st.text(max_size=8), max_size=2))
def test_what_no_env_file_holds_is_refused(environment):
    try:
        text = systemd_env_file(environment)
    except ConfigError:
        return
    assert env_lines(text) == environment


@settings(max_examples=40, deadline=None)
@given(st.lists(VALUE, min_size=1, max_size=4), st.lists(VALUE, max_size=4))
@example(
    ["p!ss", "$HOME ${HOME} $(id) `id`", "'s' \"d\" \\b\\", "one\ntwo\n", "  both sides  ", "", "Grüße 🦭", "\\!"],
    ["--a=%i %n %%", "--b=$HOME ${X} $$", "", ";", "'", '"', "\\", "--token=p!s*s~#"],
)
def test_a_shell_reads_the_same(tmp_path_factory, values, arguments):
    folder = tmp_path_factory.mktemp("sh")
    path = folder / "k3s.env"
    environment = {f"TEST_{index}": value for index, value in enumerate(values)}
    log = folder / "out.log"
    path.write_text(
        systemd_env_file(environment) + openrc_command_args(arguments, str(log)), encoding="utf-8", newline=""
    )
    # as an OpenRC script does: source the file, then evaluate the command line once more
    names = " ".join(f'"$TEST_{index}"' for index in range(len(values)))
    script = f"printf '%s\\0' {names}; eval \"printf '%s\\\\0' end $command_args\""
    done = subprocess.run(
        ["/bin/sh", "-c", f'. "{path}"; {script}'], capture_output=True, check=True, env={"LC_ALL": "C"}
    )
    assert done.stdout.decode().split("\0")[:-1] == values
    assert log.read_bytes().decode().split("\0")[:-1] == ["end", *arguments]


ELEMENT = st.text(max_size=15) | st.lists(
    st.sampled_from(
        [
            "--server",
            "-s",
            "--token",
            "--cluster-init",
            "--disable",
            "--node-ip=1.2.3.4",
            "--x",
            "=",
            "false",
            "traefik",
            "'",
            '"',
            "-",
            "--",
            "a=b",
        ]
    ),
    max_size=4,
).map(" ".join)


@given(st.lists(ELEMENT, max_size=5))
def test_any_arguments_are_read_or_refused_and_k3s_sees_all_of_them(elements):
    try:
        flags, notices = read_args("k3s.args", elements)
    except InvalidConfigError:
        return  # a flag without its value; what is said about it has unit tests
    texts = [flag.text() for flag in flags]
    assert all(text.startswith("-") for text in texts)
    assert sum(map(len, parse_flags(texts).values())) == len(texts)
    assert all(notice.key.startswith("k3s.args") for notice in notices)
    # reading our own result again changes nothing, but for quotes and white space around values
    if not any(re.search(r"['\"]|=\s|\s$", text) for text in texts):
        assert [flag.text() for flag in read_args("k3s.args", texts)[0]] == texts


@given(
    st.sampled_from(NodeRole),
    st.sampled_from(InitKind),
    st.lists(ELEMENT, max_size=4),
    st.dictionaries(NAME, VALUE, max_size=3),
)
def test_rendering_then_reading_gives_back_the_command_and_the_environment(role, init, elements, env):
    config = load("p2p: {network_token: T}").settings
    block = {"args": elements, "env": env}
    made_settings = config.model_validate({"p2p": {"network_token": "T"}, "k3s": block, "k3s-agent": block})
    facts = NodeFacts(role, "/usr/bin/k3s", init, "10.1.0.2", master_address="10.1.0.1", join_token="K10aa::server:pw")
    try:
        made = render(made_settings, facts)
    except ProviderError:
        return
    variables = parse_env_file(made.env_file.content)
    if made.drop_in is None:
        assert variables.pop("command_args")
    else:
        (line,) = [text for text in made.drop_in.content.split("\n") if text.startswith("ExecStart=/")]
        assert tuple(exec_words(line.removeprefix("ExecStart="))) == made.argv
        assert env_lines(made.env_file.content) == made.environment
    assert variables == made.environment
