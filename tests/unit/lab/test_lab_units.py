"""Unit files and drop-ins to a typed service; enabling; what systemctl's arguments mean."""

from __future__ import annotations

import pytest

from provider_kairos.lab.image import image_files
from provider_kairos.lab.model import BoxSpec
from provider_kairos.lab.systemctl import UsageError, parse_arguments
from provider_kairos.lab.unitfiles import UnitFiles, UnitNotFoundError
from provider_kairos.lab.units import Service, UnitName, parse_service, parse_unit_text
from provider_kairos.lab.unitwords import UnitSyntaxError


def service(*texts: str, name: str = "x.service") -> Service:
    pairs = [(f"/etc/f{number}", text) for number, text in enumerate(texts)]
    return parse_service(UnitName.parse(name), pairs, host="box1", machine_id="a" * 32)


def unit(name: str, spec: BoxSpec) -> str:
    return next(f.content for f in image_files(spec) if f.path == f"/etc/systemd/system/{name}.service")


SPEC = BoxSpec(lab="lab", name="box1", number=1, machine_id="a" * 32, store="/s")


@pytest.mark.parametrize(
    ("text", "prefix", "instance", "kind"),
    [
        ("k3s", "k3s", None, "service"),
        ("k3s.service", "k3s", None, "service"),
        ("edgevpn@kairos", "edgevpn", "kairos", "service"),
        ("edgevpn@", "edgevpn", "", "service"),
        ("multi-user.target", "multi-user", None, "target"),
        ("a.b", "a.b", None, "service"),
    ],
)
def test_unit_names(text, prefix, instance, kind):
    name = UnitName.parse(text)
    assert (name.prefix, name.instance, name.kind) == (prefix, instance, kind)


@pytest.mark.parametrize("text", ["", "a b", "../x", "a/b"])
def test_names_that_are_none(text):
    with pytest.raises(UnitSyntaxError):
        UnitName.parse(text)


def test_comments_continuations_and_blank_lines():
    text = "# c\n[Service]\n; c\nExecStart=/bin/k3s \\\n  # in between\n  server \\\n\n[Install]\nWantedBy = a b\n"
    assert parse_unit_text(text) == [
        ("Service", "ExecStart", "/bin/k3s  server"),
        ("Install", "WantedBy", "a b"),
    ]


def test_an_empty_exec_start_clears_what_came_before():
    made = service(
        "[Service]\nExecStart=/bin/k3s server\n",
        "[Service]\nExecStart=\nExecStart=/usr/bin/k3s agent --node-ip=10.1.0.2\n",
    )
    assert [c.argv for c in made.commands["ExecStart"]] == [("/usr/bin/k3s", "agent", "--node-ip=10.1.0.2")]
    assert not made.problems


def test_percent_and_dollar_in_a_command():
    made = service("[Service]\nExecStart=/bin/x 5%% %i $A ${B} $$C\n", name="x@one.service")
    assert made.commands["ExecStart"][0].argv == ("/bin/x", "5%", "one", "$A", "${B}", "$$C")


def test_prefixes_and_several_commands_in_a_line():
    made = service("[Service]\nExecStartPre=-/sbin/modprobe overlay ; /bin/b 'x ; y'\nExecStart=:@/bin/x name $A\n")
    first, second = made.commands["ExecStartPre"]
    assert (first.may_fail, first.argv, second.argv) == (True, ("/sbin/modprobe", "overlay"), ("/bin/b", "x ; y"))
    third = made.commands["ExecStart"][0]
    assert (third.path, third.argv, third.expands) == ("/bin/x", ("name", "$A"), False)


def test_unknown_keys_and_wrong_values_are_reported_and_passed_over():
    made = service("[Service]\nExecStrat=/bin/x\nRestart=sometimes\nRestartSec=soon\nExecStart=/bin/true 'x\n")
    assert made.restart == "no"
    assert made.restart_sec == 0.1
    assert made.commands["ExecStart"] == []
    assert len(made.problems) == 4
    assert "ExecStrat" in made.problems[0]


def test_defaults_are_systemd_s():
    made = service("[Service]\nExecStart=/bin/true\n")
    assert (made.kind, made.restart, made.restart_sec, made.timeout_start) == ("simple", "no", 0.1, 90)
    assert (made.kill_mode, made.start_limit_burst, made.start_limit_interval) == ("control-group", 5, 10)


def test_the_k3s_units_of_the_image():
    server, agent = service(unit("k3s", SPEC), name="k3s.service"), service(unit("k3s-agent", SPEC), name="k3s-agent")
    assert (server.kind, agent.kind) == ("notify", "exec")
    for made, name in ((server, "k3s"), (agent, "k3s-agent")):
        assert (made.restart, made.restart_sec, made.timeout_start) == ("always", 5, float("inf"))
        assert [(f.path, f.optional) for f in made.environment_files] == [
            (f"/etc/default/{name}", True),
            (f"/etc/sysconfig/{name}", True),
            (f"/etc/systemd/system/{name}.service.env", True),
        ]
        assert not made.problems
    assert server.commands["ExecStart"][0].argv == ("/usr/local/bin/k3s", "server")


def test_the_agent_s_unit():
    made = service(unit("kairos-agent", SPEC), name="kairos-agent.service")
    assert (made.restart, made.restart_sec) == ("on-failure", 5)
    assert made.commands["ExecStart"][0].argv[:2] == ("/usr/bin/kairos-agent", "start")
    assert not made.problems


def put(root, path, text):
    place = root / path.lstrip("/")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text, "utf-8")


SYSTEM = "/etc/systemd/system"


def test_a_template_is_found_for_its_instance_and_drop_ins_come_by_name(tmp_path):
    put(tmp_path, f"{SYSTEM}/edgevpn@.service", "[Service]\n")
    put(tmp_path, f"{SYSTEM}/edgevpn@.service.d/20-b.conf", "b")
    put(tmp_path, f"{SYSTEM}/edgevpn@kairos.service.d/10-a.conf", "a")
    put(tmp_path, f"{SYSTEM}/edgevpn@other.service.d/5.conf", "no")
    put(tmp_path, "/run/systemd/system/edgevpn@kairos.service.d/10-a.conf", "shadowed by /etc")
    source = UnitFiles(str(tmp_path)).read(UnitName.parse("edgevpn@kairos"))
    assert source.fragment == f"{SYSTEM}/edgevpn@.service"
    assert [text for _, text in source.texts] == ["[Service]\n", "a", "b"]
    with pytest.raises(UnitNotFoundError):
        UnitFiles(str(tmp_path)).read(UnitName.parse("edgevpn"))


def test_enable_disable_and_states(tmp_path):
    files = UnitFiles(str(tmp_path))
    put(tmp_path, f"{SYSTEM}/edgevpn@.service", "[Service]\n[Install]\nWantedBy=multi-user.target\n")
    put(tmp_path, f"{SYSTEM}/static.service", "[Service]\n")
    name = UnitName.parse("edgevpn@kairos")
    assert files.state(name) == "disabled"
    assert len(files.enable(name)) == 1
    assert files.enable(name) == [], "twice is once"
    link = tmp_path / f"{SYSTEM}/multi-user.target.wants/edgevpn@kairos.service".lstrip("/")
    assert str(link.readlink()) == f"{SYSTEM}/edgevpn@.service"
    assert files.state(name) == "enabled"
    assert files.wanted_by("multi-user.target") == ["edgevpn@kairos.service"]
    assert len(files.disable(name)) == 1
    assert files.wanted_by("multi-user.target") == []
    assert files.state(UnitName.parse("static")) == "static"
    files.enable(name, runtime=True)
    assert files.state(name) == "enabled-runtime"
    with pytest.raises(FileExistsError):
        files.mask(UnitName.parse("static.service"))


def test_mask_and_unmask(tmp_path):
    files = UnitFiles(str(tmp_path))
    name = UnitName.parse("gone")
    files.mask(name)
    assert files.state(name) == "masked"
    assert files.unmask(name)
    with pytest.raises(UnitNotFoundError):
        files.state(name)


def test_systemctl_arguments():
    assert parse_arguments(["start", "--no-block", "k3s"]) == {"verb": "start", "units": ["k3s"], "no_block": True}
    order = parse_arguments(["show", "-p", "MainPID", "--property=Result,SubState", "--value", "a", "b"])
    assert order["properties"] == ["MainPID", "Result,SubState"]
    assert (order["value"], order["units"]) == (True, ["a", "b"])
    assert parse_arguments(["-q", "is-active", "a"])["quiet"] is True
    assert parse_arguments(["--no-pager", "status", "-n5", "a"])["lines"] == "5"
    assert parse_arguments([])["verb"] == "list-units"
    assert parse_arguments(["stop", "--", "-odd"])["units"] == ["-odd"]
    with pytest.raises(UsageError):
        parse_arguments(["start", "--frobnicate", "a"])
