"""EdgeVPN's flags and variables against what its two versions print in their help: none is forgotten."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from provider_kairos.daemon.environment import Refused, Row
from provider_kairos.daemon.flags import MAIN_ONLY, is_list, takes_value
from provider_kairos.daemon.settings import all_refused, all_variables, all_without_effect

RECORDINGS = Path(__file__).parents[2] / "interop" / "recordings"
ROWS: list[Row] = [*(row for _, row in all_variables()), *all_without_effect(), *all_refused()]

NETWORK = {"--config": "EDGEVPNCONFIG", "--token": "EDGEVPNTOKEN"}
"""Where the network comes from; read before all rows."""

ANSWERED_BY_THE_PROGRAM = {"--help", "--version"}

OF_OTHER_COMMANDS = {
    "proxy": {"--listen", "--interval", "--dead-interval", "--api", "--api-listen", "--debug"},
    "service-add": {"--name", "--address"},
    "service-connect": {"--name", "--address"},
    "file-send": {"--name", "--path"},
    "file-receive": {"--name", "--path"},
    "peergater ecdsa-genkey": {"--privkey", "--pubkey", "--help"},
    "dns": {"--listen"},
    "api": {"--listen"},
}
"""Flags of commands that are commands of their own here (docs/reference/cli.md)."""


def recorded() -> list[Any]:
    """``(version and command, flag)`` of everything that the daemon's flags have to know."""
    found = []
    for version in ("035", "030"):
        document = json.loads((RECORDINGS / f"cli-help-{version}.json").read_text())
        for command, flags in {**document["commands"], "common": document["common"]}.items():
            for flag in flags:
                name = flag["flags"][0]
                if name in OF_OTHER_COMMANDS.get(command, ()) or name in ANSWERED_BY_THE_PROGRAM:
                    continue
                found.append(pytest.param(command, flag, id=f"{version} {command} {name}"))
    return found


@pytest.mark.parametrize(("command", "flag"), recorded())
def test_every_flag_of_edgevpn_has_a_row_with_its_variable_and_form(command, flag):
    (name,) = flag["flags"]
    if name == "--config":
        assert flag["env"] == [NETWORK[name]]
        return
    row = next(row for row in ROWS if row.flag == name)
    if isinstance(row, Refused) and not row.name:
        # a secret: as a variable only
        assert set(flag["env"]) <= {*(each.name for each in ROWS), *NETWORK.values()}
    elif not flag["env"]:
        assert not row.name or row.name.startswith("KAIROS_P2P_")  # one of ours where EdgeVPN has a flag only
    else:
        assert [row.name] == flag["env"]
    assert takes_value(row) == (flag["value"] is not None)
    if takes_value(row) and row in [variable for _, variable in all_variables()]:
        assert is_list(row) == flag["repeatable"]
    assert (name in MAIN_ONLY) == (command in {"(main)", "api", "dns"})


def test_every_flag_of_the_rows_is_edgevpns():
    known = {name for case in recorded() for name in case.values[1]["flags"]}
    assert {row.flag for row in ROWS if row.flag} <= known


def test_every_variable_of_edgevpn_has_a_row():
    of_rows = {row.name for row in ROWS} | set(NETWORK.values())
    assert {name for case in recorded() for name in case.values[1]["env"]} <= of_rows
