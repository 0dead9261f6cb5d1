"""Entry of both programs, ``kairos-p2p`` and ``agent-provider-kairos-p2p``: decides who answers, imports little.

An event of the bus as first argument goes to the plugin (spec/provider.md 1.1), ``daemon`` to the daemon without the
command line's libraries in its memory, ``lab`` to the lab, everything else to ``cli.app``. Errors get their exit code
here (docs/reference/exit-codes.md).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence

from provider_kairos.cli.edgevpn import is_edgevpn, translate
from provider_kairos.errors import ConfigError, ExitCode, ProviderError
from provider_kairos.provider.events import EVENTS

__all__ = ["main", "report", "run"]

DEBUG_VARIABLE = "KAIROS_P2P_DEBUG"

NODE_COMMANDS = frozenset({"bridge", "service", "file", "egress", "service-add", "sa", "service-connect", "sc"}) | {
    "file-send",
    "fs",
    "file-receive",
    "fr",
    "proxy",
}
"""Commands that are nodes of their own, with EdgeVPN's names for them: they take its common flags."""


def main() -> None:
    """The console script: never returns normally."""
    arguments = sys.argv[1:]
    if is_edgevpn(sys.argv[0]):
        arguments, variables = translate(arguments)
        os.environ.update(variables)
    sys.exit(run(arguments))


def run(arguments: Sequence[str]) -> int:
    """Do what the arguments say and return the exit code."""
    first = arguments[0] if arguments else ""
    if first in EVENTS:
        from provider_kairos.provider import plugin  # noqa: PLC0415 - nothing else may be loaded for an event

        return plugin.run(first)
    if first == "daemon":
        if {"--help", "-help", "-h"}.intersection(arguments):
            return report(lambda: _commands(["daemon", "--help"]))
        return report(lambda: _daemon(arguments[1:]))
    return report(lambda: _commands(arguments))


def _daemon(arguments: Sequence[str]) -> int:
    from importlib import import_module  # noqa: PLC0415 - see above

    environ: Mapping[str, str] = os.environ
    if arguments:
        environ = import_module("provider_kairos.daemon.flags").daemon_environ(arguments, environ)
    code = import_module("provider_kairos.daemon.main").main(environ)
    return code if isinstance(code, int) else ExitCode.OK


def _commands(arguments: Sequence[str]) -> int:
    from importlib import import_module  # noqa: PLC0415 - see above

    if arguments and arguments[0] == "lab":
        app, rest, name = import_module("provider_kairos.lab.cli").app, list(arguments[1:]), "kairos-p2p lab"
    else:
        module = import_module("provider_kairos.cli.app")
        app, rest, name = module.app, module.spell_out(arguments), "kairos-p2p"
        if rest and (rest[0] in NODE_COMMANDS or rest[:2] == ["dns", "serve"]):
            command = import_module("typer.main").get_command(app)
            variables, rest = import_module("provider_kairos.cli.node_flags").take(rest, command)
            os.environ.update(variables)
    try:
        app(args=rest, prog_name=name)
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else ExitCode.OK if leaving.code is None else 1
    return ExitCode.OK


def report(work: Callable[[], int]) -> int:
    """Run ``work``; an error becomes one line on stderr, its hint another, and its exit code is returned."""
    try:
        return work()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output has gone; nothing more can be said there, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.FAILURE
    except BaseException as error:
        cause = _innermost(error)
        if isinstance(cause, KeyboardInterrupt):
            return 130
        if not isinstance(cause, Exception):
            raise
        if os.environ.get(DEBUG_VARIABLE):
            import traceback  # noqa: PLC0415 - only when asked for

            traceback.print_exception(error)
        if isinstance(cause, ProviderError):
            _print_error(cause)
            return cause.exit_code
        _print_bug(cause)
        return ExitCode.BUG


def _innermost(error: BaseException) -> BaseException:
    """The error inside groups of one; nurseries wrap what is raised in them."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _print_error(error: ProviderError) -> None:
    place = ""
    if isinstance(error, ConfigError):
        place = f"{error.path or 'line'}:{error.line}:{error.column}: " if error.line else ""
        place = place or (f"{error.path}: " if error.path else "")
    print(f"error: {place}{error.message}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)


def _print_bug(error: Exception) -> None:
    """Type and place only: the message of a foreign exception may quote a secret."""
    where = ""
    package = __file__.removesuffix("cli/main.py")
    trace = error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if file.startswith(package):
            where = f" at {file.removeprefix(package)}:{trace.tb_lineno}"
        trace = trace.tb_next
    print(
        f"error: a bug in kairos-p2p: {type(error).__name__}{where}; {DEBUG_VARIABLE}=1 prints the traceback",
        file=sys.stderr,
    )


if __name__ == "__main__":
    main()
