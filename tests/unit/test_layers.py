"""The import graph of the package: lower layers never import higher ones, no cycles inside a layer."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import provider_kairos

ROOT = Path(provider_kairos.__file__).parent

# Longest prefix wins. The numbers are the layers of the house; a package may import its own layer and lower ones.
LAYERS = {
    "errors": 0,
    "clock": 0,
    "ids": 0,
    "quoting": 1,
    "token": 1,
    "config": 1,
    "ledger": 2,
    "roles": 2,
    "vpn": 2,
    "kubernetes": 2,
    "trustzone": 2,
    "mesh": 3,
    "system": 3,
    "api.model": 3,
    "api.native_model": 3,
    "api.follow": 3,
    "api.ledger_client": 3,
    "api.records": 3,
    "api.sse": 3,
    "api.transport": 3,
    "api.watching": 3,
    "api.client": 3,
    "api.paths": 3,
    "api.address": 3,
    "api.connection": 3,
    "api": 4,
    "dns": 4,
    "services": 4,
    "daemon": 4,
    "provider": 4,
    "provider.events": 0,  # the bare list of event names, read before anything else is imported
    "cli": 5,
    "web": 5,
    "lab": 6,
}

# Layer 0 to 2 are sans-IO: none of these may appear in them.
IO_MODULES = {
    "trio",
    "socket",
    "asyncio",
    "threading",
    "subprocess",
    "logging",
    "sqlite3",
    "pyroute2",
    "httpx",
    "select",
}
CLOCK_CALLS = {("time", "time"), ("time", "monotonic"), ("time", "time_ns"), ("time", "sleep")}


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = list(path.relative_to(ROOT).with_suffix("").parts)
        if parts[-1] == "__init__":
            parts.pop()
        found[".".join(parts)] = path
    return found


MODULES = modules()


def layer(module: str) -> int | None:
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        if (key := ".".join(parts[:length])) in LAYERS:
            return LAYERS[key]
    return None


def imports(path: Path) -> Iterator[str]:
    """Absolute names of everything that a file imports, also lazily and for type checking."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own(name: str) -> str | None:
    prefix = "provider_kairos."
    if not name.startswith(prefix):
        return None
    inner = name[len(prefix) :]
    while inner and inner not in MODULES:
        inner = inner.rpartition(".")[0]
    return inner or None


def test_every_package_has_a_layer():
    unplaced = [m for m in MODULES if m and layer(m) is None]
    assert unplaced == []


@pytest.mark.parametrize("module", [m for m in MODULES if m])
def test_imports_point_down(module):
    mine = layer(module)
    assert mine is not None
    wrong = []
    for name in imports(MODULES[module]):
        target = own(name)
        if target and target != module:
            theirs = layer(target)
            assert theirs is not None
            if theirs > mine:
                wrong.append(target)
    assert wrong == [], f"{module} (layer {mine}) imports higher layers: {wrong}"


@pytest.mark.parametrize("module", [m for m in MODULES if m and (layer(m) or 0) <= 2])
def test_low_layers_are_sans_io(module):
    source = MODULES[module].read_text(encoding="utf-8")
    used = {name.split(".")[0] for name in imports(MODULES[module])}
    if module != "clock":
        for node in ast.walk(ast.parse(source)):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
            ):
                assert (node.func.value.id, node.func.attr) not in CLOCK_CALLS, f"{module} reads a clock"
    assert not used & IO_MODULES, f"{module} does IO: {used & IO_MODULES}"


@pytest.mark.parametrize("module", [m for m in MODULES if m and m.split(".")[0] != "mesh"])
def test_only_mesh_imports_libp2p(module):
    assert not any(name.split(".")[0] == "libp2p" for name in imports(MODULES[module]))


def test_packages_of_one_layer_form_no_cycle():
    graph: dict[str, set[str]] = {}
    for module, path in MODULES.items():
        if not module:
            continue
        graph[module] = {t for n in imports_at_top(path) if (t := own(n)) and t != module}
    done: set[str] = set()

    def visit(node: str, trail: tuple[str, ...]) -> None:
        assert node not in trail, f"import cycle: {' -> '.join([*trail[trail.index(node) :], node])}"
        if node in done:
            return
        for target in sorted(graph[node]):
            # a package's __init__ re-exports its parts; that is no cycle between ideas
            if not node.startswith(f"{target}.") and target in graph:
                visit(target, (*trail, node))
        done.add(node)

    for module in sorted(graph):
        visit(module, ())


def imports_at_top(path: Path) -> Iterator[str]:
    """What is imported when the module is: no functions, no ``if TYPE_CHECKING``."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
