"""Old and wrong spellings: which key, on which line, what to write instead (spec/provider.md 2.6, users.md 2.3).

Where the meaning is certain the value is moved to where it belongs, so that the file works, and a notice says so. A
key that is already there under its present name wins over an old spelling. Nothing is moved that belongs to others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from provider_kairos.config.notice import Mark, Notice
from provider_kairos.config.tree import Document, Entry, Mapping, Node, Scalar, Sequence

__all__ = ["apply"]

_Say = Callable[..., None]


@dataclass(frozen=True, slots=True)
class _Move:
    """``old`` is now ``new``."""

    old: tuple[str, ...]
    new: tuple[str, ...]


_BLOCKS = ("c3os", "kairos")
_MOVES: tuple[_Move, ...] = (
    *(_Move((block, key), ("p2p", key)) for block in _BLOCKS for key in ("network_token", "role", "network_id", "dns")),
    *(_Move((block, "enable"), (block, "enabled")) for block in ("k3s", "k3s-agent", "k0s", "k0s-worker")),
    *(_Move(("p2p", "ha", key), ("p2p", "auto", "ha", key)) for key in ("enable", "master_nodes", "external_db")),
    _Move(("p2p", "auto", "enabled"), ("p2p", "auto", "enable")),
    _Move(("p2p", "auto", "ha", "enabled"), ("p2p", "auto", "ha", "enable")),
    _Move(("p2p", "vpn", "vpn"), ("p2p", "vpn", "create")),  # the name in the published schema
    _Move(("p2p", "kubevip"), ("kubevip",)),
    _Move(("kubevip", "enabled"), ("kubevip", "enable")),
)

_INSTALL = ("device", "reboot", "poweroff", "offline")


def apply(doc: Document) -> list[Notice]:
    """Move old spellings in ``doc`` to where they belong and say so."""
    notices: list[Notice] = []

    def say(mark: Mark, key: str, message: str, hint: str = "") -> None:
        notices.append(Notice(doc.path, mark.line, mark.column, key, message, hint))

    for block in _BLOCKS:
        for key in _INSTALL:
            if entry := _entry(doc.root, (block, key)):
                say(entry.key_mark, f"{block}.{key}", "this block is not read any more", f"write install.{key}")
    # without a token the old blocks would only turn "nothing to do" into an error
    live = {block for block in _BLOCKS if "p2p" in doc.root.entries or _entry(doc.root, (block, "network_token"))}
    for block in _BLOCKS:
        if block in live:
            _hybrid(doc.root, block, say)
    for move in _MOVES:
        if move.old[0] not in _BLOCKS or move.old[0] in live:
            _move(doc.root, move, say)
    for block in _BLOCKS:
        _leftovers(doc.root, block, say)
    if (entry := doc.root.entries.get("vpn")) and isinstance(entry.value, Mapping):
        say(entry.key_mark, "vpn", "has no effect at the top level", "move it below p2p, as p2p.vpn")
    for path in (("p2p", "vpn", "env"), *((b, "env") for b in ("k3s", "k3s-agent", "k0s", "k0s-worker"))):
        _env_list(doc.root, path, say)
    return notices


def _entry(root: Mapping, path: tuple[str, ...]) -> Entry | None:
    parent: Node | None = root.get(*path[:-1])
    return parent.entries.get(path[-1]) if isinstance(parent, Mapping) else None


def _put(root: Mapping, path: tuple[str, ...], entry: Entry) -> bool:
    """Place ``entry`` at ``path``, making mappings on the way; False when something is there already."""
    node = root
    for key in path[:-1]:
        step = node.entries.get(key)
        if step is None or (isinstance(step.value, Scalar) and step.value.is_null):
            node.entries[key] = step = Entry(entry.key_mark, Mapping(entry.key_mark))
        if not isinstance(step.value, Mapping):
            return False
        node = step.value
    there = node.entries.get(path[-1])
    if there and not (isinstance(there.value, Scalar) and there.value.is_null):
        return False
    node.entries[path[-1]] = entry
    return True


def _move(root: Mapping, move: _Move, say: _Say) -> None:
    entry = _entry(root, move.old)
    if entry is None or (isinstance(entry.value, Scalar) and entry.value.is_null):
        return
    old, new = ".".join(move.old), ".".join(move.new)
    parent = root.get(*move.old[:-1])
    assert isinstance(parent, Mapping)
    moved = _put(root, move.new, entry)
    del parent.entries[move.old[-1]]
    if move.old[:-1] == ("p2p", "ha") and not parent.entries:
        grandparent = root.get("p2p")
        assert isinstance(grandparent, Mapping)
        del grandparent.entries["ha"]
    if moved:
        say(entry.key_mark, old, f"old spelling, read as {new}", f"write {new}")
    else:
        say(entry.key_mark, old, f"old spelling, ignored because {new} is there too", f"remove {old}")


def _hybrid(root: Mapping, block: str, say: _Say) -> None:
    """The two switches of 2022 for Kubernetes beside the VPN."""
    for key, create in (("hybrid", False), ("hybrid_vpn", True)):
        entry = _entry(root, (block, key))
        if entry is None or not isinstance(entry.value, Scalar) or entry.value.boolean() is not True:
            continue
        words = {"create": create, "use": False}
        put = [
            _put(
                root,
                ("p2p", "vpn", name),
                Entry(entry.key_mark, Scalar(str(value).lower(), plain=True, mark=entry.value.mark)),
            )
            for name, value in words.items()
        ]
        text = f"p2p.vpn.create: {str(create).lower()}, p2p.vpn.use: false"
        message = f"old spelling, read as {text}" if any(put) else "old spelling, ignored because p2p.vpn is there too"
        say(
            entry.key_mark,
            f"{block}.{key}",
            message,
            f"write {text}" + ("" if create else ", and kubevip.eip for a fixed address"),
        )
        parent = root.get(block)
        assert isinstance(parent, Mapping)
        del parent.entries[key]


def _leftovers(root: Mapping, block: str, say: _Say) -> None:
    entry = root.entries.get(block)
    if entry is None or not isinstance(entry.value, Mapping):
        return
    for key, inner in entry.value.entries.items():
        if key not in _INSTALL:
            say(
                inner.key_mark,
                f"{block}.{key}",
                "this block is not read any more",
                "see p2p and install for its present names",
            )


def _env_list(root: Mapping, path: tuple[str, ...], say: _Say) -> None:
    """``env: ["A=b"]``, as an old schema had it."""
    entry = _entry(root, path)
    if entry is None or not isinstance(entry.value, Sequence) or not entry.value.items:
        return
    made = Mapping(entry.value.mark)
    for item in entry.value.items:
        if not isinstance(item, Scalar) or "=" not in item.text:
            return
        name, _, value = item.text.partition("=")
        made.entries[name.strip()] = Entry(item.mark, Scalar(value, plain=False, mark=item.mark))
    entry.value = made
    say(entry.key_mark, ".".join(path), "a list of NAME=value, read as a mapping", "write NAME: value")
