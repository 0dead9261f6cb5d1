"""Writes the parts of the reference that come from the code: ``python docs/generate.py`` (``--check``: only look).

A part stands between ``<!-- generated: NAME -->`` and ``<!-- end of NAME -->``. The tables of the code say which
rows there are, and the defaults; what the code cannot say (what a variable is for, what to do about a reason) stands
here, and a row without its words is an error, so nothing new goes undocumented. tests/docs holds the pages to it.
"""
# ruff: noqa: INP001  # a program to run by hand; docs is no package

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from provider_kairos.api import openapi
from provider_kairos.api.operations import EVENTS, OPERATIONS
from provider_kairos.config import hints
from provider_kairos.config.schema import Settings
from provider_kairos.daemon import settings as daemon
from provider_kairos.daemon.environment import Refused, WithoutEffect
from provider_kairos.errors import Waiting
from provider_kairos.ledger.policy import OwnershipMode

DOCS = Path(__file__).parent
PACKAGE = DOCS.parent / "provider_kairos"
OPENAPI = (PACKAGE / "api/openapi.json", DOCS / "reference/openapi.json")
"""What the daemon gives, and the same for readers of the documentation."""

RECORDED_HELP = DOCS.parent / "tests/interop/recordings/cli-help-035.json"
_MARK = re.compile(r"(<!-- generated: ([a-z-]+) -->\n).*?(<!-- end of \2 -->)", re.DOTALL)

# --- cloud-config keys that have no effect yet -----------------------------------------------------------------------

NOT_YET = {
    "p2p.dynamic_roles": "not yet: roles of nodes that are gone are kept",
    "k0s": "not yet: refused with an error",
    "k0s-worker": "not yet: refused with an error",
    "kubevip": "not yet: refused on servers when `eip` or `enable` is set",
}

# --- reasons: what to do about each, and values for the examples -----------------------------------------------------

REMEDIES = {
    "mesh-host-down": "nothing, unless it stays; then the reason in the sentence",
    "mesh-no-peers": "is another box on, on the same LAN, with the same token (`kairos-p2p token inspect`)? "
    "Multicast (mDNS) must pass; across networks set `EDGEVPNBOOTSTRAPPEERS` in `p2p.vpn.env`",
    "mesh-no-discovery": "`p2p.disable_dht: false`, or `EDGEVPNMDNS` or `EDGEVPNBOOTSTRAPPEERS` in `p2p.vpn.env`; a node "
    "that only others dial needs neither",
    "dht-no-bootstrap": "can this node reach the internet, or your own bootstrap peers (address, port, firewall)? One of "
    "your own serves the DHT with `KAIROS_P2P_DHT_MODE: server`. Without either set `p2p.disable_dht: true`",
    "dht-nobody-found": "is another node on, with the same token, and reaches the same DHT? Behind a router that hides "
    "it, forward a port and name it in `EDGEVPNDHTANNOUNCEMADDRS`",
    "mesh-discovery-down": "a network interface that is up and takes multicast; or `EDGEVPNBOOTSTRAPPEERS`",
    "mesh-nobody-on-topic": "compare the tokens' fingerprints (`kairos-p2p token inspect`), then the clocks",
    "mesh-connections-full": "nothing, if so many nodes are yours: then raise `EDGEVPNMAXCONNS`; otherwise somebody fills "
    "the places, see `connections` in `status`",
    "mesh-clock-skew": "set the clocks (NTP): keys rotate with time",
    "mesh-all-gated-out": "trust zone: `PEERGATE_RELAXED=true` on this node until it knows the zone, or open the gate once "
    "(`kairos-p2p trust gate off`, then `on`); static peer table: are the peers in `EDGEVPNSTATICPEERTABLE` the right ones?",
    "trust-no-key": "give it a key in `PEERGATE_AUTH`, or put its peer ID into the bucket `trustzone` on a trusted node",
    "trust-no-trusted-key": "`kairos-p2p trust add-key FILE` on a node of the zone",
    "trust-not-admitted": "is its public key trusted (`kairos-p2p trust list` on a node of the zone)? Then nothing: a trusted "
    "node with `PEERGUARD` has to be near enough to hear it",
    "clock-skew": "set the clocks (NTP)",
    "clocks-differ": "set the clocks (NTP)",
    "mixed-ledger-formats": "update the old nodes, or put `EDGEVPNOWNERSHIP: off` into `p2p.vpn.env` of every node",
    "lease-listening": "nothing: a few seconds after the start",
    "lease-confirming": "nothing: about a second",
    "lease-turn": "nothing: EdgeVPN nodes take addresses one after the other",
    "lease-exhausted": "a larger `ADDRESS` in `p2p.vpn.env` of every node",
    "lease-conflict": "two control-plane nodes leased it while they could not see each other: reset one of them, or "
    "give it another address",
    "interface-not-ready": "what the sentence says: `modprobe tun`, root, a full disk",
    "address-taken": "what the sentence says; another network is `ADDRESS` in `p2p.vpn.env` of every node",
    "lease-not-saved": "free the disk, remount it for writing",
    "state-not-saved": "free the disk: after a power cut this node knows only what was saved",
    "setting-without-effect": "take it out of `p2p.vpn.env`",
    "dns-not-listening": "another program holds the address (`ss -lunp`), or it is none of this machine: another "
    "`DNSADDRESS` in `p2p.vpn.env`",
    "dns-forward-loop": "another `DNSFORWARDSERVER` in `p2p.vpn.env`: not this machine's own resolver, which asks this node",
    "name-taken": "another name; or end that node and wait eight minutes. `--privkey-cache` keeps a command's identity, and "
    "so its names, over a restart",
    "service-not-exposed": "is `service add` running on the other node, with this name and token?",
    "file-not-offered": "is `file send` running on the other node, with this name and token?",
    "no-egress": '`EGRESS: "true"` in `p2p.vpn.env` of a node that may let others out',
    "peer-not-reached": "what the sentence says, on that node",
    "daemon-silent": "for a second after boot nothing; then `systemctl status edgevpn@kairos` and its log",
    "refused": "what the sentence says; it is tried again",
    "more-nodes": "switch the other box on; a single box needs `p2p.minimum_nodes: 1`",
    "settling": "nothing: up to 4 s",
    "leader-not-claimed": "nothing, unless that node is off: it leaves the list after 15 minutes",
    "confirming-leadership": "nothing: a second",
    "no-role": "is that node on? `kairos-p2p status` there",
    "no-candidate": "give a node `p2p.role: master`, or no role",
    "confirming-founding": "nothing: a second",
    "another-first-master": "nothing: another role follows",
    "forced-beside-first": "what the sentence says",
    "two-clusters": "what the sentence says",
    "cluster-exists": "bring its first master back; if it is lost for good, set `p2p.role: master` on one node, or "
    "reset all",
    "ha-incomplete": "switch more boxes on, or lower `p2p.auto.ha.master_nodes`",
    "no-join-token": "the log of k3s on the first master: `journalctl -u k3s`",
    "no-master-address": "`kairos-p2p status` on the first master: has it an address?",
    "no-virtual-ip": "the reasons above it: lease or interface",
    "token-not-written": "the log of k3s on this node",
    "service-down": "what the sentence says: `journalctl -u k3s`, `journalctl -u k3s-agent`",
    "overlay-lost": "nothing: k3s is being restarted; who deleted the interface?",
    "other-network": "what the sentence says",
    "role-none": "nothing: so it was wanted",
}

_EXAMPLES: dict[str, Any] = {
    "active": 3,
    "address": "10.1.0.87",
    "connected": 2,
    "asked": 2,
    "by": "trust zone",
    "detail": "no daemon listens at unix:///run/edgevpn-kairos.sock",
    "first": "UUID",
    "gated": 2,
    "have": 1,
    "interface": "edgevpn0",
    "key": "26f944cfa97845d9",
    "kind": "service",
    "known": 0,
    "listen": "127.0.0.1:53",
    "minutes": 20,
    "mode": "enforce",
    "most": 512,
    "name": "web",
    "needed": 2,
    "network": "10.1.0.0/24",
    "network_id": "site-a",
    "nodes": 24,
    "peer": "12D3KooW...",
    "peers": ("12D3KooW...",),
    "problem": "/dev/net/tun is missing",
    "reason": "no interface is up",
    "seconds": 95,
    "seen": 1,
    "server": "127.0.0.53:53",
    "service": "k3s",
    "signing": ("12D3KooW...",),
    "size": 254,
    "transport": "UDP",
    "tried": 5,
    "unsigned": ("12D3KooW...",),
    "variable": "EGRESS",
    "want": 2,
    "was_up": False,
    "what": "cannot set up the daemon",
    "why": "HTTP egress is not part of this version",
}
_SPECIAL: dict[tuple[str, str], Any] = {
    ("address-taken", "interface"): "eth1",
    ("lease-listening", "seconds"): 1.5,
    ("dns-not-listening", "problem"): "Address already in use",
    ("refused", "detail"): "/etc is read-only",
    ("state-not-saved", "problem"): "the disk is full",
    ("settling", "seen"): 2,
    ("mesh-host-down", "reason"): "the port is taken",
    ("dht-no-bootstrap", "connected"): 0,
    ("trust-not-admitted", "known"): True,
}


def example(kind: type[Waiting]) -> Waiting:
    """One reason of a kind; a field without a word here keeps its default, or names a node."""
    defaults = {each.name: "UUID" if each.default is MISSING else each.default for each in fields(kind)}
    words = {name: _EXAMPLES.get(name, default) for name, default in defaults.items()}
    return kind(**{name: _SPECIAL.get((kind.code, name), word) for name, word in words.items()})


def waiting_classes() -> set[type[Waiting]]:
    """Every typed reason of the package, whoever defines it."""
    for path in PACKAGE.rglob("*.py"):
        if "(Waiting)" in path.read_text("utf-8"):
            importlib.import_module(".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts))
    # A dataclass with slots is made twice; the one that its module knows by name counts.
    return {c for c in Waiting.__subclasses__() if getattr(sys.modules.get(c.__module__), c.__name__, None) is c}


# --- the parts -------------------------------------------------------------------------------------------------------


def _table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def _shown(value: object) -> str:
    match value:
        case None:
            text = ""
        case bool():
            text = str(value).lower()
        case float() | int():
            text = f"{value:g}"
        case tuple():
            text = ",".join(map(str, value))
        case OwnershipMode():
            text = value.value
        case _:
            text = str(value)
    return f"`{text}`" if text else ""


def _edgevpns_defaults() -> dict[str, str]:
    """Variable to what EdgeVPN v0.35.4 takes when it is not set, as its help says."""
    document = json.loads(RECORDED_HELP.read_text("utf-8"))
    flags = [*document["commands"]["(main)"], *document["common"]]
    return {name: (flag["default"] or "").replace('"', "").replace(", ", ",") for flag in flags for name in flag["env"]}


def variables() -> str:
    """The daemon's environment."""
    theirs = _edgevpns_defaults()
    rows = []
    for kind, row in daemon.all_variables():
        default = _shown(next(each.default for each in fields(kind) if each.name == row.field))
        flag = f"`{row.flag}`" if row.flag else ""
        recorded = f"`{theirs[row.name]}`" if theirs.get(row.name) else ""
        differs = recorded if recorded != default and row.name in theirs else ""
        rows.append((f"`{row.name}`", flag, row.words, default, differs))
    return _table(("variable", "flag", "for", "default", "EdgeVPN's, where it differs"), iter(rows))


def _names(row: WithoutEffect | Refused) -> str:
    """A row's variable and flag."""
    return " ".join(f"`{each}`" for each in (row.name, row.flag) if each)


def without_effect() -> str:
    """Variables and flags of EdgeVPN that are named in the log and in ``status``."""
    reasons: dict[str, list[str]] = {}
    for row in daemon.all_without_effect():
        said = f" (`{str(row.anyway).lower()}` is so in any case)" if row.anyway is not None else ""
        reasons.setdefault(row.why, []).append(f"{_names(row)}{said}")
    return _table(("variables and flags", "why"), ((", ".join(names), why) for why, names in reasons.items()))


def refused() -> str:
    """Variables and flags of EdgeVPN that stop the daemon."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in daemon.all_refused():
        reasons.setdefault((row.why, row.instead), []).append(_names(row))
    rows = ((", ".join(names), why, instead) for (why, instead), names in reasons.items())
    return _table(("variables and flags", "why", "instead"), rows)


def _type(annotation: object) -> str:
    text = str(annotation)
    for word, name in (("dict", "mapping"), ("tuple", "list"), ("bool", "true/false"), ("int", "number")):
        if word in text:
            return name
    return "text"


def _keys(model: type[BaseModel], path: str) -> Iterator[tuple[str, ...]]:
    for name, info in model.model_fields.items():
        key = f"{path}{info.alias or name}"
        choices = (info.annotation, *getattr(info.annotation, "__args__", ()))
        inner = next((c for c in choices if isinstance(c, type) and issubclass(c, BaseModel)), None)
        words = [info.description or ""]
        if not words[0]:
            raise SystemExit(f"{key} has no description")
        if key in NOT_YET:
            words.append(f"**{NOT_YET[key][0].upper()}{NOT_YET[key][1:]}.**")
        yield f"`{key}`", "block" if inner else _type(info.annotation), " ".join(words)
        if inner:
            yield from _keys(inner, f"{key}.")


def cloud_config() -> str:
    """Every key that is read, with its type and words from the schema."""
    rows = list(_keys(Settings, ""))
    missing = {f"`{key}`" for key in NOT_YET} - {row[0] for row in rows}
    if missing:
        raise SystemExit(f"not in the schema: {missing}")
    return _table(("key", "type", "for"), iter(rows))


def old_spellings() -> str:
    """What is read although it is called otherwise today."""
    moves = hints._MOVES  # noqa: SLF001  # as above
    return _table(("old", "read as"), ((f"`{'.'.join(m.old)}`", f"`{'.'.join(m.new)}`") for m in moves))


def _who(kind: type[Waiting]) -> str:
    part = kind.__module__.split(".")[1]
    return {"roles": "provider", "provider": "provider"}.get(part, "daemon")


def reasons() -> str:
    """Every reason with its sentence and its remedy, in the order of the remedies."""
    kinds = {kind.code: kind for kind in waiting_classes()}
    if len(kinds) != len(waiting_classes()):
        raise SystemExit("two reasons share a code")
    _same("reason", set(kinds), set(REMEDIES))
    rows = ((f"`{code}`", _who(kinds[code]), example(kinds[code]).text(), words) for code, words in REMEDIES.items())
    return _table(("code", "who says it", "sentence (an example)", "what to do"), rows)


def _same(what: str, code: set[str], here: set[str]) -> None:
    if code != here:
        raise SystemExit(f"{what}: without words {sorted(code - here)}, no longer in the code {sorted(here - code)}")


def native_routes() -> str:
    """Our own routes, from the table that the router is made of."""
    rows = []
    for each in OPERATIONS:
        words = [each.words]
        if each.older:
            words.append(f"; also GET `{each.older}`")
        names = ", ".join(f"`{query.name}`" for query in each.query)
        answer = (
            f"[`{each.answer.__name__}`](openapi.json)" if each.answer is not None else each.media.partition(";")[0]
        )
        rows.append((f"{each.method} `{each.path}`", "".join(words), names, answer))
    return _table(("method, path", "what", "query", "answer"), iter(rows))


def native_events() -> str:
    """Kinds of events and what each says."""
    rows = ((f"`{kind}`", (shape.__doc__ or "").replace("``", "`")) for kind, shape in EVENTS.items())
    return _table(("event", "what it says"), rows)


PARTS: dict[str, Callable[[], str]] = {
    "daemon-variables": variables,
    "daemon-without-effect": without_effect,
    "daemon-refused": refused,
    "cloud-config": cloud_config,
    "old-spellings": old_spellings,
    "reasons": reasons,
    "native-routes": native_routes,
    "native-events": native_events,
}


def rendered(text: str) -> str:
    """A page with its generated parts made anew."""

    def part(match: re.Match[str]) -> str:
        return f"{match[1]}\n{PARTS[match[2]]()}\n{match[3]}"

    return _MARK.sub(part, text)


def parts_of(text: str) -> list[str]:
    """Names of the generated parts of a page."""
    return [match[2] for match in _MARK.finditer(text)]


def pages() -> Iterator[tuple[Path, str, str]]:
    """Pages with generated parts: path, text as it is, text as it should be."""
    for path in sorted(DOCS.rglob("*.md")):
        text = path.read_text("utf-8")
        if "<!-- generated:" in text:
            yield path, text, rendered(text)
    for path in OPENAPI:
        yield path, path.read_text("utf-8") if path.exists() else "", openapi.text()


def main(arguments: list[str]) -> Any:
    """Write what is stale, or with ``--check`` name it and end with 1."""
    stale = [(path, new) for path, old, new in pages() if old != new]
    for path, new in stale:
        print(f"{path.relative_to(DOCS.parent)} is stale" if "--check" in arguments else f"writing {path.name}")
        if "--check" not in arguments:
            path.write_text(new, "utf-8")
    return int(bool(stale) and "--check" in arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
