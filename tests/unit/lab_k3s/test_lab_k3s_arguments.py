"""The rows of the k3s notes, sections 1.2 and 1.3."""

from __future__ import annotations

import logging

import pytest

from provider_kairos.lab.k3s import facts
from provider_kairos.lab.k3s.__main__ import main
from provider_kairos.lab.k3s.arguments import HelpWanted, Options, UsageError, parse
from provider_kairos.lab.k3s.flags import AGENT, SERVER, Kind
from provider_kairos.lab.k3s.life import Fatal


@pytest.fixture(autouse=True)
def etc(tmp_path, monkeypatch):
    (tmp_path / "k3s").mkdir()
    monkeypatch.setenv("K3S_STANDIN_ETC", str(tmp_path))
    return tmp_path


def server(etc, *arguments, **environment) -> Options:
    return parse("server", arguments, environment, etc)


@pytest.fixture
def config(etc):
    def write(text, name="config.yaml"):
        path = etc / "k3s" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    return write


# -- 1.2 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "arguments", "text"),
    [
        ("server", ["--nosuch"], "flag provided but not defined: -nosuch"),
        ("server", ["-nosuch=1"], "flag provided but not defined: -nosuch"),
        ("agent", ["--cluster-init"], "flag provided but not defined: -cluster-init"),
        ("server", ["--node-ip"], "flag needs an argument: -node-ip"),
        ("server", ["--node-ip 10.1.0.2"], "flag provided but not defined: -node-ip 10.1.0.2"),
        ("server", ["--cluster-init=maybe"], 'invalid boolean value "maybe" for -cluster-init: parse error'),
        ("server", ["--https-listen-port=abc"], 'invalid value "abc" for flag -https-listen-port: parse error'),
        ("server", ["---debug"], "bad flag syntax: ---debug"),
    ],
)
def test_what_cannot_be_read_is_said_on_both_streams_with_status_1(command, arguments, text, capsys):
    assert main([command, *arguments]) == 1
    out, err = capsys.readouterr()
    assert out.startswith(f"Incorrect Usage: {text}\n\nNAME:\n")
    assert "OPTIONS:" in out
    quoted = text.replace('"', '\\"')
    assert err.endswith(f'level=fatal msg="Error: {quoted}"\n')
    assert err.count("\n") == 1


def test_reading_stops_at_the_first_bare_word_and_the_rest_is_ignored(etc):
    options = server(etc, "--debug", "foo", "--flannel-iface=x", "--nosuch")
    assert options.on("debug")
    assert options.text("flannel-iface") == ""


def test_cluster_init_false_as_two_words_is_true_and_drops_what_follows(etc):
    options = server(etc, "--cluster-init", "false", "--flannel-iface=x")
    assert options.on("cluster-init")
    assert options.text("flannel-iface") == ""


@pytest.mark.parametrize("text", ["false", "0", "f", "F", "FALSE", "False"])
def test_a_boolean_is_false_when_the_value_is_attached(etc, text):
    options = server(etc, f"--cluster-init={text}", "--flannel-iface=x")
    assert not options.on("cluster-init")
    assert options.text("flannel-iface") == "x"


def test_double_dash_ends_the_flags(etc):
    assert server(etc, "--", "--cluster-init").on("cluster-init") is False


def test_the_last_of_a_single_valued_flag_wins(etc):
    assert server(etc, "--flannel-iface=a", "--flannel-iface", "b").text("flannel-iface") == "b"


def test_lists_append_and_two_node_ips_are_accepted(etc):
    options = server(etc, "--node-ip=10.0.0.1", "-i", "10.0.0.2", "--node-label=a=b", "--node-label=c=d")
    assert options.items("node-ip") == ("10.0.0.1", "10.0.0.2")
    assert options.items("node-label") == ("a=b", "c=d")


def test_comma_lists_are_split_where_k3s_splits_them(etc):
    options = server(etc, "--tls-san=a,b", "--disable=traefik,servicelb", "--kube-apiserver-arg=x=1,2")
    assert options.items("tls-san") == ("a", "b")
    assert options.items("disable") == ("traefik", "servicelb")
    assert options.items("kube-apiserver-arg") == ("x=1,2",)


@pytest.mark.parametrize(("value", "shown"), [("", ""), ("foo", "foo"), ("10.0.0.1,x", "x")])
def test_an_ill_formed_node_ip_is_refused(etc, value, shown):
    options = server(etc, f"--node-ip={value}")
    with pytest.raises(Fatal, match=f"^Error: invalid node-ip: invalid ip format '{shown}'$"):
        facts.node_addresses(options.lists["node-ip"], "")


def test_empty_label_and_san_are_accepted(etc):
    options = server(etc, "--node-label=", "--tls-san=")
    assert options.items("node-label") == ("",)
    assert options.items("tls-san") == ()


def test_an_empty_server_is_no_server(etc):
    options = server(etc, "--server=", "--cluster-init")
    assert options.text("server") == ""
    assert options.on("cluster-init")


def test_short_forms(etc):
    options = server(etc, "-t", "secret", "-s=https://a:6443", "-d", "/x", "-o", "/y")
    assert options.text("token") == "secret"
    assert options.text("server") == "https://a:6443"
    assert (options.text("data-dir"), options.text("write-kubeconfig")) == ("/x", "/y")


def test_defaults(etc):
    options = server(etc)
    assert options.items("cluster-cidr") == ("10.42.0.0/16",)
    assert options.number("https-listen-port") == 6443
    assert options.text("etcd-snapshot-schedule-cron") == "0 */12 * * *"
    assert options.on("tls-san-security")


def test_secrets_are_not_in_the_representation(etc):
    assert "hunter2" not in repr(server(etc, "--token=hunter2"))


def test_an_unknown_subcommand_is_status_3(capsys):
    assert main(["nosuch"]) == 3
    assert capsys.readouterr().err == "No help topic for 'nosuch'\n"


def test_version_has_k3s_form_and_says_what_it_is(capsys):
    assert main(["--version"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == "k3s version v1.34.3+k3s1 (stand-in)"
    assert second.startswith("go version go1.")


@pytest.mark.parametrize("arguments", [[], ["--help"], ["server", "--help"], ["agent", "-h"]])
def test_help_is_status_0_and_says_what_it_is(arguments, capsys):
    assert main(arguments) == 0
    assert "stand-in" in capsys.readouterr().out


def test_help_is_asked_for_by_an_exception(etc):
    with pytest.raises(HelpWanted):
        server(etc, "--help")


def test_each_flag_is_in_the_tables_once():
    for flags in (SERVER, AGENT):
        names = [flag.name for flag in flags]
        assert len(names) == len(set(names))
    assert {f.name for f in AGENT} - {f.name for f in SERVER} == {"disable-apiserver-lb"}


def test_flags_without_a_variable(etc):
    without = {"node-ip", "flannel-iface", "tls-san", "disable", "node-label"}
    assert all(not flag.env for flag in SERVER if flag.name in without)
    assert all(not flag.env for flag in SERVER if flag.kind is Kind.LIST)


# -- 1.3 ---------------------------------------------------------------------------------------------------------


def test_environment_counts_least_then_files_then_arguments(etc, config):
    variable = {"K3S_KUBECONFIG_MODE": "640"}
    assert server(etc, **variable).text("write-kubeconfig-mode") == "640"
    config('write-kubeconfig-mode: "0601"\n')
    assert server(etc, **variable).text("write-kubeconfig-mode") == "0601"
    config("write-kubeconfig-mode: '602'\n", "config.yaml.d/10.yaml")
    assert server(etc, **variable).text("write-kubeconfig-mode") == "602"
    assert server(etc, "--write-kubeconfig-mode=644", **variable).text("write-kubeconfig-mode") == "644"


def test_drop_ins_count_by_name_and_without_a_config_file(etc, config):
    config("flannel-iface: b\n", "config.yaml.d/20.yaml")
    config("flannel-iface: a\n", "config.yaml.d/10.yaml")
    config("flannel-iface: ignored\n", "config.yaml.d/30.txt")
    assert server(etc).text("flannel-iface") == "b"


def test_lists_in_files_replace_append_with_plus_and_arguments_append(etc, config):
    config("tls-san: [one.x, two.x]\nnode-label: [a=1]\n")
    config("tls-san: [three.x]\nnode-label+: [b=2]\n", "config.yaml.d/1.yaml")
    options = server(etc, "--tls-san=four.x")
    assert options.items("tls-san") == ("three.x", "four.x")
    assert options.items("node-label") == ("a=1", "b=2")


def test_an_unknown_key_is_warned_about_and_skipped(etc, config, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("provider_kairos.lab.k3s"), "propagate", True)
    config("nosuchkey: 1\nflannel-iface: a\n")
    assert server(etc).text("flannel-iface") == "a"
    assert "Unknown flag --nosuchkey found in config.yaml, skipping" in caplog.text


def test_broken_yaml_is_fatal_and_names_the_line(config, capsys):
    config("a: [\n")
    assert main(["server"]) == 1
    assert 'level=fatal msg="yaml: line ' in capsys.readouterr().err


@pytest.mark.parametrize("text", ["- a\n", "just words\n"])
def test_a_config_file_that_is_no_map_is_fatal(etc, config, text):
    config(text)
    with pytest.raises(Fatal, match=r"^yaml: "):
        server(etc)


def test_an_unquoted_mode_is_octal_in_yaml_and_arrives_as_385(etc, config):
    config("write-kubeconfig-mode: 0601\n")
    assert server(etc).text("write-kubeconfig-mode") == "385"


def test_an_empty_token_with_cluster_init_in_a_file(etc, config):
    config("token:\ncluster-init: true\n")
    options = server(etc)
    assert options.text("token") == ""
    assert options.on("cluster-init")


def test_the_files_count_even_before_a_stray_word(etc, config):
    config("flannel-iface: a\n")
    assert server(etc, "stray").text("flannel-iface") == "a"


@pytest.mark.parametrize("form", [["--config", "{}"], ["-c={}"]])
def test_a_named_config_file(etc, tmp_path, form):
    path = tmp_path / "mine.yaml"
    path.write_text("flannel-iface: mine\n")
    assert server(etc, *[part.format(path) for part in form]).text("flannel-iface") == "mine"
    assert server(etc, K3S_CONFIG_FILE=str(path)).text("flannel-iface") == "mine"


def test_a_named_config_file_must_exist(etc):
    with pytest.raises(Fatal, match=r"^open /nowhere\.yaml: no such file or directory$"):
        server(etc, "--config=/nowhere.yaml")


def test_variables(etc):
    options = server(etc, K3S_TOKEN="a", K3S_URL="https://b:6443", K3S_CLUSTER_INIT="true", K3S_DEBUG="0")
    assert (options.text("token"), options.text("server")) == ("a", "https://b:6443")
    assert options.on("cluster-init")
    assert not options.on("debug")


def test_a_variable_that_is_no_boolean_is_a_usage_error(etc):
    with pytest.raises(UsageError, match="could not parse"):
        server(etc, K3S_DEBUG="perhaps")
