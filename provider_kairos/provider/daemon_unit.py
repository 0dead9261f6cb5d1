"""The mesh daemon's environment file and unit (spec/provider.md 3.5, 3.6; 13 #23-#27).

Runs at every start of the provider: what differs is written and the daemon restarted, what does not is left alone. The
VPN and the API-only daemon are two units; the one that is not wanted is stopped and disabled.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from provider_kairos.config.schema import Settings
from provider_kairos.errors import ConfigError, HostError
from provider_kairos.provider.api_address import listen_value
from provider_kairos.provider.machine import Machine
from provider_kairos.quoting import systemd_env_file

__all__ = ["ENV_FILE", "DaemonProgram", "daemon_environment", "daemon_program", "set_up_daemon", "unit_text"]

log = logging.getLogger(__name__)

ENV_FILE = "/etc/systemd/system.conf.d/edgevpn-kairos.env"
LEASE_DIR = "/usr/local/.kairos/lease"
KEY_DIR = "/usr/local/.kairos/edgevpn"
VPN_UNIT, VPN_SERVICE = "edgevpn@", "edgevpn@kairos"
API_UNIT = API_SERVICE = "edgevpn"

_SYSTEMD = """\
[Unit]
Description={description}
After=network.target
# The node is lost without it: it is tried for ever, not five times.
StartLimitIntervalSec=0

[Service]
EnvironmentFile={env_file}
LimitNOFILE=49152
ExecStart={program}{arguments}
Restart=always
RestartSec=1

[Install]
WantedBy=multi-user.target
"""

# `--` keeps supervise-daemon from taking the daemon's options for its own.
_OPENRC = """\
#!/sbin/openrc-run

name="edgevpn"
description="{description}"
supervisor=supervise-daemon
command="{program}"
command_args="{arguments}"
output_log=/var/log/edgevpn.log
error_log=/var/log/edgevpn.log
pidfile="/run/edgevpn.pid"
respawn_delay=5
rc_ulimit="-n 49152"

depend() {{
    after net
    provide edgevpn
}}

set -o allexport
if [ -f /etc/environment ]; then . /etc/environment; fi
if [ -f {env_file} ]; then . {env_file}; fi
set +o allexport
"""


@dataclass(frozen=True, slots=True)
class DaemonProgram:
    """The program that the daemon's unit runs: our own, or an EdgeVPN that a fleet keeps (``edgevpn``)."""

    path: str
    edgevpn: bool = False

    def arguments(self, *, vpn: bool, api: str) -> str:
        """What stands behind the path; EdgeVPN's ``api`` command knows no variable for its address."""
        if not self.edgevpn:
            return "daemon"
        return "" if vpn else f"api --enable-healthchecks --listen {listen_value(api)}"


def daemon_environment(settings: Settings, api: str, *, edgevpn: bool = False) -> dict[str, str]:
    """The daemon's environment; the user's ``vpn.env`` wins over what is generated.

    ``edgevpn``: for EdgeVPN's own program, which keeps its identity only when told to, and without a DHT may end
    itself while it looks for relays (spec/edgevpn.md 15.2).

    Raises:
        ConfigError: no network token.
    """
    token = settings.token_text()
    if settings.p2p is None or not token:
        raise ConfigError("no network token defined", hint="set p2p.network_token")
    values = {"API": "true", "APILISTEN": listen_value(api), "EDGEVPNTOKEN": token}
    if settings.vpn_created():
        values |= {"DHCP": "true", "DHCPLEASEDIR": LEASE_DIR}
    elif not edgevpn:
        values["KAIROS_P2P_VPN"] = "false"
    # Pinned, so that an update of the daemon never changes it under a running network (spec 4.1).
    values["EDGEVPNOWNERSHIP"] = "enforce"
    if edgevpn:
        values |= {"EDGEVPNPRIVKEYCACHE": "true", "EDGEVPNPRIVKEYCACHEDIR": KEY_DIR}
    if settings.p2p.disable_dht:
        values |= {"EDGEVPNDHT": "false", "EDGEVPNAUTORELAY": "false"} if edgevpn else {"EDGEVPNDHT": "false"}
    if settings.p2p.dns:
        # Before the user's values: DNSFORWARD "false" must count.
        values |= {"DNSADDRESS": "127.0.0.1:53", "DNSFORWARD": "true"}
    values |= settings.p2p.vpn.env
    if values["APILISTEN"].startswith("unix://"):
        values.setdefault("APILISTENUNIXMODE", "0600")
    return values


def daemon_program(environ: Mapping[str, str]) -> DaemonProgram:
    """The daemon's program, by absolute path.

    ``KAIROS_P2P_DAEMON`` names an EdgeVPN to go on with; otherwise it is our ``kairos-p2p``: ``KAIROS_P2P_BIN``,
    beside this program, beside Python, in ``PATH``.

    Raises:
        HostError: it is in none of these places.
    """
    if foreign := environ.get("KAIROS_P2P_DAEMON"):
        if not os.access(foreign, os.X_OK):
            raise HostError(
                f"KAIROS_P2P_DAEMON={foreign} is no program",
                hint="give the path of an EdgeVPN, or take the variable away to run this program's own daemon",
            )
        return DaemonProgram(str(Path(foreign).absolute()), edgevpn=True)
    if named := environ.get("KAIROS_P2P_BIN"):
        return DaemonProgram(named)
    started = Path(sys.argv[0]) if sys.argv and sys.argv[0] else Path(sys.executable)
    places = (Path(os.path.realpath(started)).parent, Path(sys.executable).parent)
    for place in places:
        if (program := place / "kairos-p2p").exists():
            return DaemonProgram(str(program.absolute()))
    if found := shutil.which("kairos-p2p"):
        return DaemonProgram(str(Path(found).absolute()))
    raise HostError(
        f"kairos-p2p is not beside {started}", hint="install the whole package, or set KAIROS_P2P_BIN to its path"
    )


def unit_text(*, vpn: bool, openrc: bool, program: DaemonProgram, api: str) -> str:
    """The unit or service script; ``api`` is the address of the daemon's API."""
    path, arguments = program.path, program.arguments(vpn=vpn, api=api)
    description = "EdgeVPN Daemon" if vpn else "P2P API Daemon"
    if openrc:
        return _OPENRC.format(description=description, program=path, arguments=arguments, env_file=ENV_FILE)
    # '%' would be a specifier in a unit.
    env_file = ENV_FILE.replace("edgevpn-kairos", "edgevpn-%i") if vpn else ENV_FILE
    command = {"program": path.replace("%", "%%"), "arguments": f" {arguments}".rstrip().replace("%", "%%")}
    return _SYSTEMD.format(description=description, env_file=env_file, **command)


def set_up_daemon(machine: Machine, settings: Settings, api: str, program: DaemonProgram) -> bool:
    """Write, start and enable the daemon; True when it was (re)started for a change.

    Raises:
        ConfigError: no token, or a variable that no environment file can hold.
        HostError: the machine refuses.
    """
    vpn = settings.vpn_created()
    environment = daemon_environment(settings, api, edgevpn=program.edgevpn)
    if settings.p2p is not None and settings.p2p.dns:
        log.info(
            "names of the mesh are answered at %s; this machine's resolver is left as it is", environment["DNSADDRESS"]
        )
    unit, service = (VPN_UNIT, VPN_SERVICE) if vpn else (API_UNIT, API_SERVICE)
    if not machine.openrc:
        _retire(machine, *((API_UNIT, API_SERVICE) if vpn else (VPN_UNIT, VPN_SERVICE)))
    changed = machine.write(ENV_FILE, systemd_env_file(environment), 0o600)
    unit_changed = machine.write_unit(unit, unit_text(vpn=vpn, openrc=machine.openrc, program=program, api=api))
    if unit_changed:
        machine.daemon_reload()
    restart = (changed or unit_changed) and machine.is_active(service)
    if restart:
        log.info("the configuration of %s changed: restarting it", service)
        machine.restart(service)
    else:
        machine.start(service)
    machine.enable(service)
    return restart


def _retire(machine: Machine, unit: str, service: str) -> None:
    """Stop, disable and remove the unit of the other mode."""
    path = f"/etc/systemd/system/{unit}.service"
    if not machine.exists(path):
        return
    log.info("%s is no longer wanted", service)
    for action in (machine.stop, machine.disable):
        try:
            action(service)
        except HostError as error:
            log.warning("%s", error)
    machine.remove(path)
    machine.daemon_reload()
