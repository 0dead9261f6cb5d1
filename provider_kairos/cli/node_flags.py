"""EdgeVPN's common flags on our commands that are nodes of their own (spec/edgevpn.md 12.3).

Scripts that call ``edgevpn service-add --discovery-bootstrap-peers ...`` go on working: the flags are those of
:mod:`provider_kairos.daemon.flags`, and become environment variables before the command's own options are read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from provider_kairos.daemon.environment import parse_bool
from provider_kairos.daemon.flags import split

__all__ = ["take"]


def take(arguments: Sequence[str], command: Any) -> tuple[dict[str, str], list[str]]:
    """Divide a whole command line into variables and what ``command`` (click's, the root of all) is to read.

    Raises UsageError and ConfigError as :func:`split` does; a line that names no command is left as it is.
    """
    words: list[str] = []
    rest = list(arguments)
    while rest and (inner := _commands_of(command).get(rest[0])) is not None:
        command = inner
        words.append(rest.pop(0))
    own = _options_of(command)
    if _commands_of(command) or {"--help", "-h"}.intersection(rest):
        return {}, list(arguments)
    variables, kept = split(rest, own=own)
    options: list[str] = []
    while kept:
        name, equals, value = kept[0].partition("=")
        # Go's flag library takes one dash as well as two
        name = name if name in own else "-" + name
        if name not in own:
            break
        kept.pop(0)
        if own[name]:
            options += [name, value if equals else kept.pop(0)]
        elif not equals or parse_bool(name, value):
            options.append(name)
    # an argument that begins with a dash came behind `--` and must not be read as an option
    return variables, [*words, *options, "--", *kept]


def _commands_of(command: Any) -> Mapping[str, Any]:
    commands = getattr(command, "commands", None)
    return commands if isinstance(commands, dict) else {}


def _options_of(command: Any) -> dict[str, bool]:
    """Each option of a command, and whether a value follows it."""
    options = {}
    for parameter in command.params:
        if parameter.param_type_name == "option":
            takes_value = not (parameter.is_flag or parameter.count)
            options.update(dict.fromkeys([*parameter.opts, *parameter.secondary_opts], takes_value))
    return options
