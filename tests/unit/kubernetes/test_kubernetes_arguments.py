"""The user's arguments: what people write, what k3s must get, what is said about it."""

from __future__ import annotations

import pytest

from provider_kairos.config import InvalidConfigError
from provider_kairos.kubernetes.arguments import config_file_keys, critical_values, parse_flags, read_args


def argv(*elements: str) -> list[str]:
    return [flag.text() for flag in read_args("k3s.args", elements)[0]]


def said(*elements: str) -> list[str]:
    return [f"{n.key}: {n.message}" for n in read_args("k3s.args", elements)[1]]


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        (["--disable=traefik,servicelb"], ["--disable=traefik,servicelb"]),
        (["--cluster-init"], ["--cluster-init"]),
        (["--cluster-init=false"], ["--cluster-init=false"]),
        (["-v=3"], ["-v=3"]),
        (["-s=https://S1:6443"], ["--server=https://S1:6443"]),
        (["-disable=traefik"], ["--disable=traefik"]),
        (["--kubelet-arg=feature-gates=A=true,B=false"], ["--kubelet-arg=feature-gates=A=true,B=false"]),
        (["--tls-san="], ["--tls-san="]),
        (["--etcd-snapshot-schedule-cron=0 */12 * * *"], ["--etcd-snapshot-schedule-cron=0 */12 * * *"]),
        (["--node-label=a=b c"], ["--node-label=a=b c"]),
        (["", "  ", " --debug "], ["--debug"]),
        ([], []),
    ],
)
def test_what_needs_no_word(elements, expected):
    assert argv(*elements) == expected
    assert said(*elements) == []


@pytest.mark.parametrize(
    ("elements", "expected", "words"),
    [
        (
            ["--server https://S1:6443"],
            ["--server=https://S1:6443"],
            "k3s.args[0]: --server and its value are separated by a space",
        ),
        (["--debug", "--node-ip  10.1.0.2"], ["--debug", "--node-ip=10.1.0.2"], "k3s.args[1]: --node-ip and its value"),
        (["-s https://S1:6443"], ["--server=https://S1:6443"], "--server and its value"),
        (["--disable", "traefik"], ["--disable=traefik"], "the value of --disable is an element of its own"),
        (["--no-such", "x"], ["--no-such=x"], "the value of --no-such is an element of its own"),
        (
            ["--disable traefik --disable=servicelb --debug"],
            ["--disable=traefik", "--disable=servicelb", "--debug"],
            "holds 3 arguments",
        ),
        (["--cluster-init false"], ["--cluster-init=false"], "separated by a space"),
        (["--cluster-init", "false", "--debug"], ["--cluster-init=false", "--debug"], "separated by a space"),
        (
            ["--cluster-init", "what", "--debug"],
            ["--cluster-init", "--debug"],
            "k3s.args[1]: a word that is no flag is left out",
        ),
        (["server", "--debug"], ["--debug"], "`server` is left out"),
        (["--debug", "server", "--selinux"], ["--debug", "--selinux"], "k3s would ignore everything after it"),
        (['--node-label="a=b"'], ["--node-label=a=b"], "quotes around the value of --node-label"),
        (["--node-label='a=b c'"], ["--node-label=a=b c"], "quotes around"),
        (['--kubelet-arg="x --y"'], ["--kubelet-arg=x --y"], "quotes around"),
        (['--node-label "a=b"'], ["--node-label=a=b"], "separated by a space"),
    ],
)
def test_what_people_mean(elements, expected, words):
    assert argv(*elements) == expected
    assert any(words in text for text in said(*elements))


@pytest.mark.parametrize(
    "elements", [["--node-ip"], ["--node-ip", "--debug"], ["--debug --server"], ["--kubelet-arg", "--x=1"]]
)
def test_a_flag_that_misses_its_value_is_refused_with_its_place(elements):
    with pytest.raises(InvalidConfigError, match="needs a value") as caught:
        read_args("k3s.args", elements)
    assert caught.value.key == "k3s.args[0]"


def test_no_message_shows_a_value():
    elements = ["--token SECRET", "--agent-token", "SECRET", '--vpn-auth="SECRET"', "SECRET", "--debug --server SECRET"]
    assert "SECRET" not in "".join(said(*elements))
    assert "SECRET" not in repr(read_args("k3s.args", elements))


def test_flags_of_a_finished_command_line_are_read_as_k3s_does():
    found = parse_flags(["--disable=a", "--disable=b", "--cluster-init", "-i=1.2.3.4", "word", "--debug"])
    assert found == {"disable": ["a", "b"], "cluster-init": ["true"], "node-ip": ["1.2.3.4"]}


def test_what_servers_must_agree_on():
    defaults = critical_values(())
    assert defaults["flannel-backend"] == "vxlan"
    changed = critical_values(["--cluster-cidr=10.9.0.0/16", "--embedded-registry", "--disable=traefik"])
    assert {name for name in changed if changed[name] != defaults[name]} == {"cluster-cidr", "embedded-registry"}


def test_keys_of_k3s_own_files():
    texts = ["token: abc\nnode-label+: [a]\nserver: ''\ndebug:\n", "not: [yaml", "write-kubeconfig-mode: '0644'"]
    assert config_file_keys(texts) == {"token", "node-label", "write-kubeconfig-mode"}
