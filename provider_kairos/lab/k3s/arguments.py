"""From command line, config files and environment to options (k3s notes, sections 1.2 and 1.3).

The strange rules are k3s' own and the reason why this module exists: reading stops at the first bare word and the
rest is ignored; an element that holds ``--flag value`` is an unknown flag; the config file beats the environment;
lists from the command line append to lists from files. Whether a *value* makes sense is judged where it is used.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from provider_kairos.lab.k3s import MARK
from provider_kairos.lab.k3s.flags import COMMANDS, Flag, Kind
from provider_kairos.lab.k3s.life import Fatal

__all__ = ["HelpWanted", "Options", "UsageError", "config_arguments", "parse", "read_arguments", "usage"]

log = logging.getLogger(__name__)

TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False"})
# Lists whose elements may themselves be comma lists.
COMMA_LISTS = frozenset(
    {"tls-san", "node-ip", "node-external-ip", "cluster-cidr", "service-cidr", "cluster-dns", "disable"}
)


class UsageError(Fatal):
    """The command line cannot be read; the message is what Go's flag package says."""


class HelpWanted(Fatal):
    """``--help`` was given."""


@dataclass(frozen=True, slots=True)
class Options:
    """What one ``server`` or ``agent`` was told.

    ``values`` holds single values and ``lists`` repeatable ones by flag name, defaults filled in. ``given`` is the
    command line with the files' arguments in front, for the node's annotation. Holds secrets: not in ``repr``.
    """

    command: str
    values: Mapping[str, str] = field(repr=False)
    lists: Mapping[str, tuple[str, ...]] = field(repr=False)
    given: tuple[str, ...] = field(default=(), repr=False)

    def text(self, name: str) -> str:
        """The value of a single-valued flag; empty when it was not given and has no default."""
        return self.values.get(name, "")

    def on(self, name: str) -> bool:
        """Whether a boolean flag is true."""
        return self.values.get(name, "") in TRUE

    def number(self, name: str) -> int:
        """The value of a numeric flag; 0 when unset."""
        return int(self.values.get(name) or "0", 0)

    def items(self, name: str) -> tuple[str, ...]:
        """The elements of a repeatable flag, comma lists split where k3s splits them, empty ones dropped there."""
        found = self.lists.get(name, ())
        if name not in COMMA_LISTS:
            return found
        return tuple(part.strip() for element in found for part in element.split(",") if part.strip())


def read_arguments(flags: Sequence[Flag], arguments: Sequence[str]) -> list[tuple[Flag, str]]:
    """Read flags until the first bare word, as Go's flag package does; what follows it is ignored.

    Raises:
        UsageError: an unknown flag, a missing or unreadable value.
        HelpWanted: ``--help`` or ``-h``.
    """
    known = {name: flag for flag in flags for name in (flag.name, flag.short) if name}
    found: list[tuple[Flag, str]] = []
    rest = list(arguments)
    while rest:
        element = rest[0]
        if len(element) < 2 or not element.startswith("-") or element == "--":
            break
        rest.pop(0)
        body = element[2:] if element.startswith("--") else element[1:]
        if body.startswith(("-", "=")):
            raise UsageError(f"bad flag syntax: {element}")
        name, equals, value = body.partition("=")
        flag = known.get(name)
        if flag is None:
            if name in ("help", "h"):
                raise HelpWanted("help")
            raise UsageError(f"flag provided but not defined: -{name}")
        if flag.kind is Kind.BOOL:
            value = value if equals else "true"
            if value not in TRUE | FALSE:
                raise UsageError(f'invalid boolean value "{value}" for -{name}: parse error')
        elif not equals:
            if not rest:
                raise UsageError(f"flag needs an argument: -{name}")
            value = rest.pop(0)
        if flag.kind is Kind.NUMBER and not _is_number(value):
            raise UsageError(f'invalid value "{value}" for flag -{name}: parse error')
        found.append((flag, value))
    return found


def _is_number(text: str) -> bool:
    try:
        int(text, 0)
    except ValueError:
        return False
    return True


def _as_text(value: Any) -> str:
    """A YAML scalar as k3s prints it: booleans lower case, nothing for null."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _load_yaml(path: Path) -> dict[str, Any]:
    import yaml  # noqa: PLC0415 - 25 ms that only those with a config file pay

    try:
        document = yaml.safe_load(path.read_text("utf-8"))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise Fatal(f"yaml: line {line}: {error.problem}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise Fatal(f"yaml: {error}") from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise Fatal("yaml: unmarshal errors: the top level of a config file is a map")
    return {str(key): value for key, value in document.items()}


def config_arguments(path: Path, flags: Sequence[Flag], *, required: bool = False) -> list[str]:
    """The arguments that ``path`` and the drop-ins in ``<path>.d`` stand for.

    A later file replaces a key of an earlier one; a key written ``name+`` appends. Unknown keys are warned about
    and skipped. ``required`` makes a missing ``path`` an error, as when it was named by the user.

    Raises:
        Fatal: broken YAML, or a named file that does not exist.
    """
    files = [path] if path.is_file() else []
    if required and not files:
        raise Fatal(f"open {path}: no such file or directory")
    folder = path.parent / f"{path.name}.d"
    if folder.is_dir():
        files += sorted(f for f in folder.iterdir() if f.suffix in (".yaml", ".yml") and f.is_file())
    merged: dict[str, list[str]] = {}
    names = {name for flag in flags for name in (flag.name, flag.short) if name}
    for file in files:
        for written, value in _load_yaml(file).items():
            key = written.removesuffix("+")
            if key not in names:
                log.warning("Unknown flag --%s found in %s, skipping\n", key, file.name)
                continue
            texts = [_as_text(v) for v in value] if isinstance(value, list) else [_as_text(value)]
            merged[key] = [*merged.get(key, []), *texts] if written.endswith("+") else texts
    return [f"{'--' if len(key) > 1 else '-'}{key}={text}" for key, texts in merged.items() for text in texts]


def _config_path(arguments: Sequence[str], environment: Mapping[str, str], etc: Path) -> tuple[Path, bool]:
    """The config file and whether somebody named it. k3s looks for the flag in the whole command line."""
    for index, element in enumerate(arguments):
        for name in ("--config", "-c"):
            if element == name and index + 1 < len(arguments):
                return Path(arguments[index + 1]), True
            if element.startswith(f"{name}="):
                return Path(element.partition("=")[2]), True
    if environment.get("K3S_CONFIG_FILE"):
        return Path(environment["K3S_CONFIG_FILE"]), True
    return etc / "k3s" / "config.yaml", False


def parse(command: str, arguments: Sequence[str], environment: Mapping[str, str], etc: Path) -> Options:
    """Options of ``command`` (``server`` or ``agent``); weakest first: environment, files, command line.

    Args:
        command: which table of flags counts.
        arguments: what follows the command on the command line.
        environment: for the ``K3S_*`` variables.
        etc: the folder that stands for ``/etc/rancher``.

    Raises:
        UsageError: the command line cannot be read.
        HelpWanted: help was asked for.
        Fatal: a config file cannot be read.
    """
    flags = COMMANDS[command]
    path, named = _config_path(arguments, environment, etc)
    given = [*config_arguments(path, flags, required=named), *arguments]
    values = {flag.name: flag.default for flag in flags if flag.kind is not Kind.LIST}
    lists: dict[str, list[str]] = {}
    for flag in flags:
        if flag.env and environment.get(flag.env):
            text = environment[flag.env]
            if flag.kind is Kind.BOOL and text not in TRUE | FALSE:
                raise UsageError(
                    f'could not parse "{text}" as bool value from environment variable "{flag.env}" for flag {flag.name}'
                )
            values[flag.name] = text
    for flag, value in read_arguments(flags, given):
        if flag.kind is Kind.LIST:
            lists.setdefault(flag.name, []).append(value)
        else:
            values[flag.name] = value
    for flag in flags:
        if flag.kind is Kind.LIST and flag.default and flag.name not in lists:
            lists[flag.name] = [flag.default]
    return Options(command, values, {name: tuple(found) for name, found in lists.items()}, (command, *given))


def usage(command: str) -> str:
    """The help text of ``command``."""
    lines = [f"NAME:\n   k3s {command} - Run the {command} of the k3s {MARK}\n"]
    lines.append(f"USAGE:\n   k3s {command} [OPTIONS]\n\nOPTIONS:")
    for flag in COMMANDS[command]:
        short = f", -{flag.short}" if flag.short else ""
        value = "" if flag.kind is Kind.BOOL else " value"
        default = f' (default: "{flag.default}")' if flag.default else ""
        env = f" [${flag.env}]" if flag.env else ""
        lines.append(f"   --{flag.name}{value}{short}{default}{env}")
    lines.append("   --help, -h  show help")
    return "\n".join(lines) + "\n"
