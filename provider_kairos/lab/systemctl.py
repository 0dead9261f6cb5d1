"""``systemctl`` in a box: reads the arguments, hands the order to pid 1, prints its answer.

Takes the options that Kairos, k3s and our own programs use, anywhere on the command line, as systemctl(1)
does. The work is in :mod:`.control`. Standard library only: a start takes a few hundredths of a second.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from typing import Any

from provider_kairos.lab.model import INIT_SOCKET

__all__ = ["UsageError", "main", "parse_arguments", "send_order"]

_FLAGS = {
    "--no-block": "no_block",
    "--now": "now",
    "--runtime": "runtime",
    "--quiet": "quiet",
    "-q": "quiet",
    "--value": "value",
    "--all": "all",
    "-a": "all",
}
_VALUES = {
    "--property": "properties",
    "-p": "properties",
    "--lines": "lines",
    "-n": "lines",
    "--signal": "signal",
    "-s": "signal",
    "--kill-whom": "kill_whom",
    "--kill-who": "kill_whom",
    "--type": "type",
    "-t": "type",
    "--state": "state",
}
# Accepted and without effect here.
_PASSED = {
    "--no-pager",
    "--system",
    "--no-legend",
    "--plain",
    "--full",
    "-l",
    "--force",
    "-f",
    "--no-reload",
    "--no-ask-password",
    "--wait",
    "--no-wall",
}


class UsageError(ValueError):
    """Arguments that this systemctl does not know."""


def parse_arguments(arguments: list[str]) -> dict[str, Any]:
    """The order for a command line; without a verb the units are listed. Raises UsageError."""
    order: dict[str, Any] = {"verb": "", "units": []}
    words = iter(arguments)
    only_units = False
    for word in words:
        if only_units or not word.startswith("-") or word == "-":
            if order["verb"]:
                order["units"].append(word)
            else:
                order["verb"] = word
            continue
        if word == "--":
            only_units = True
            continue
        option, equals, value = word.partition("=")
        if not word.startswith("--") and len(word) > 2 and word[:2] in _VALUES:
            option, equals, value = word[:2], "=", word[2:]
        if word in _FLAGS:
            order[_FLAGS[word]] = True
        elif option in _VALUES:
            if not equals:
                value = next(words, "")
            if option in {"--property", "-p"}:
                order.setdefault("properties", []).append(value)
            else:
                order[_VALUES[option]] = value
        elif word not in _PASSED:
            raise UsageError(f"unrecognized option '{word}'")
    order["verb"] = order["verb"] or "list-units"
    return order


def send_order(order: dict[str, Any], path: str = INIT_SOCKET) -> dict[str, Any]:
    """Send one order to the service manager behind ``path`` and wait for its answer; raises OSError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
        link.connect(path)
        link.sendall(json.dumps(order).encode() + b"\n")
        with link.makefile("rb") as answers:
            line = answers.readline()
    if not line:
        raise ConnectionResetError("the service manager gave no answer")
    answer: dict[str, Any] = json.loads(line)
    return answer


def main() -> int:
    """The program."""
    if "--version" in sys.argv[1:]:
        print("systemd 252 (the lab's systemctl)")
        return 0
    try:
        answer = send_order(parse_arguments(sys.argv[1:]))
    except UsageError as error:
        print(f"systemctl: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        # systemd's own words, which programs look for.
        print(f"Failed to connect to bus: {os.strerror(error.errno or 0)}", file=sys.stderr)
        return 1
    sys.stdout.write(answer["out"])
    sys.stdout.flush()
    sys.stderr.write(answer["err"])
    return int(answer["code"])
