"""The ``k3s`` program: picks the subcommand and turns the ways to end into exit codes (k3s notes, sections 0 and 2).

A copy or link of the launcher that is called ``kubectl`` is kubectl.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import PurePath
from typing import NoReturn

from provider_kairos.lab.k3s import MARK, VERSION

__all__ = ["entry", "launcher", "main"]

HELP = f"""NAME:
   k3s - a {MARK} for k3s in test labs; it runs no containers

USAGE:
   k3s [global options] command [command options]

COMMANDS:
   server   Run management server
   agent    Run node agent
   kubectl  Run kubectl (get nodes, delete node)

GLOBAL OPTIONS:
   --debug        (logging) Turn on debug logs
   --help, -h     show help
   --version, -v  print the version
"""


def launcher(python: str) -> str:
    """The text of an executable ``k3s`` that runs this package with the interpreter ``python``.

    Links to it named ``kubectl`` work as kubectl.
    """
    return (
        f"#!{python}\n"
        f"# k3s {MARK} of the test lab\n"
        "import sys\n"
        "from provider_kairos.lab.k3s.__main__ import entry\n"
        "entry(sys.argv)\n"
    )


def _serve(command: str, arguments: Sequence[str], *, debug: bool) -> int:
    from provider_kairos.lab.k3s import arguments as reader  # noqa: PLC0415 - not for --version
    from provider_kairos.lab.k3s import logrus, node  # noqa: PLC0415
    from provider_kairos.lab.k3s.life import Fatal, Life, Shutdown, Stopped, speed_from  # noqa: PLC0415

    logrus.setup(debug=debug)
    log = logging.getLogger("provider_kairos.lab.k3s")
    try:
        options = reader.parse(command, arguments, os.environ, node.standin_etc(os.environ))
    except reader.HelpWanted:
        print(reader.usage(command), end="")
        return 0
    except reader.UsageError as error:
        print(f"Incorrect Usage: {error}\n\n{reader.usage(command)}", end="")
        sys.stdout.flush()
        log.critical("Error: %s", error)
        return 1
    except Fatal as error:
        log.critical("%s", error)
        return 1
    logrus.setup(debug=debug or options.on("debug"))
    life = Life(speed_from(os.environ.get("K3S_STANDIN_SPEED")))
    life.install_signals()
    try:
        if command == "server":
            from provider_kairos.lab.k3s.server import run as serve  # noqa: PLC0415

            serve(options, life)
        else:
            from provider_kairos.lab.k3s.agent import run as join  # noqa: PLC0415

            join(options, life)
    except Stopped:
        return 0
    except Shutdown as error:
        log.info("Shutdown request received: %s", error)
        return 0
    except Fatal as error:
        log.critical("%s", error)
        return 1
    except OSError as error:
        log.critical("Error: %s", error)
        return 1
    return 0


def main(arguments: Sequence[str]) -> int:
    """Run ``k3s`` with ``arguments``; the exit status."""
    rest = list(arguments)
    debug = False
    while rest and rest[0].startswith("-"):
        flag = rest.pop(0).lstrip("-")
        if flag in ("version", "v"):
            print(f"k3s version {VERSION} ({MARK})\ngo version go1.24.11 ({MARK}: python {sys.version.split()[0]})")
            return 0
        if flag in ("help", "h"):
            break
        if flag != "debug":
            print(f"Incorrect Usage: flag provided but not defined: -{flag}\n\n{HELP}", end="")
            print(f'level=fatal msg="Error: flag provided but not defined: -{flag}"', file=sys.stderr)
            return 1
        debug = True
    else:
        command = rest.pop(0) if rest else "help"
        if command in ("server", "agent"):
            return _serve(command, rest, debug=debug)
        if command == "kubectl":
            from provider_kairos.lab.k3s.kubectl import main as kubectl  # noqa: PLC0415 - what is asked for

            return kubectl(rest)
        if command != "help":
            print(f"No help topic for '{command}'", file=sys.stderr)
            return 3
    print(HELP, end="")
    return 0


def entry(argv: Sequence[str]) -> NoReturn:
    """Run as the program that ``argv[0]`` names, ``kubectl`` or else ``k3s``, and end the process."""
    status = main(["kubectl", *argv[1:]] if PurePath(argv[0]).name == "kubectl" else argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # Connections may be open in other threads; k3s does not wait for them either.
    os._exit(status)


if __name__ == "__main__":
    entry(sys.argv)
