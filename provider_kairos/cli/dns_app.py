"""The command ``dns``: a name server of its own, and the records of names; the work is in ``dns_work``.

Specification: spec/edgevpn.md 10, 12.1. EdgeVPN's ``dns`` is the name server alone, so ``dns`` without one of our
words is ``dns serve`` (:func:`spell_out`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

__all__ = ["SERVE", "add_to", "spell_out"]

SERVE = ("dns", "serve")
"""The words of the command that is a node of its own."""

Api = Annotated[
    str | None,
    typer.Option("--api", envvar="EDGEVPN_API", metavar="ADDRESS", help="The daemon's API, as for `status`."),
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="A host name, as web.example; a final dot is optional.")]
IsPattern = Annotated[
    bool,
    typer.Option(
        "--regex", help="NAME is a regular expression in Go's syntax, searched for in names with a final dot."
    ),
]

names = typer.Typer(
    help="Names on the mesh: records of the ledger, and a name server of its own.",
    rich_markup_mode=None,
    no_args_is_help=True,
)


def spell_out(arguments: Sequence[str]) -> list[str]:
    """The arguments with ``dns`` alone, or before flags, spelt ``dns serve``.

    A false value of a flag that is true by itself gets the form that this program's parser reads.
    """
    words = list(arguments)
    if words[:1] != ["dns"] or {"--help", "-h"}.intersection(words[1:2]):
        return words
    if len(words) == 1 or words[1].startswith("-"):
        words.insert(1, "serve")
    if tuple(words[:2]) == SERVE:
        words = [_spell_flag(word) for word in words]
    return words


def _spell_flag(word: str) -> str:
    name, equals, value = word.partition("=")
    if name.lstrip("-") != "dns-forwarder" or not name.startswith("-") or not equals:
        return word
    return "--no-dns-forwarder" if value.lower() in {"0", "f", "false"} else word


@names.command("serve")
def dns_serve(
    listen: Annotated[
        str | None,
        typer.Option(
            "--listen", envvar="DNSADDRESS", metavar="ADDRESS", help="Where to listen. Default: 127.0.0.1:53."
        ),
    ] = None,
    forward: Annotated[
        bool | None,
        typer.Option(
            "--dns-forwarder/--no-dns-forwarder", help="Ask other servers for names outside the mesh; DNSFORWARD."
        ),
    ] = None,
    servers: Annotated[
        list[str] | None,
        typer.Option(
            "--dns-forward-server", metavar="ADDRESS", help="Which ones, in order; DNSFORWARDSERVER, with commas."
        ),
    ] = None,
    cache_size: Annotated[
        int | None, typer.Option("--dns-cache-size", min=0, help="Their answers that are kept; DNSCACHESIZE.")
    ] = None,
    config: Annotated[
        str | None, typer.Option("--config", metavar="FILE", help="The network, as for `service add`.")
    ] = None,
) -> None:
    """Answer names of the mesh on this machine, as a node of its own; `dns --listen ADDRESS` is the same.

    Runs until it is told to end (Ctrl-C). A node whose daemon has DNSADDRESS (p2p.dns) needs none.
    """
    from provider_kairos.cli import dns_work as work  # noqa: PLC0415

    raise typer.Exit(work.serve(listen, servers or [], config, forward=forward, cache_size=cache_size))


@names.command("add")
def dns_add(
    name: Name,
    values: Annotated[
        list[str], typer.Argument(metavar="TYPE=VALUE", help="A=10.1.0.9, AAAA=fd00::9, TXT='\"some text\"', ...")
    ],
    pattern: IsPattern = False,
    api: Api = None,
) -> None:
    """Write the records of a name, through this machine's daemon: `dns add web.example A=10.1.0.9`.

    They take the place of those that the name had, belong to this node, and go when it is gone for good.
    """
    from provider_kairos.cli import dns_work as work  # noqa: PLC0415

    work.add(api, name, values, pattern=pattern)


@names.command("list")
def dns_list(
    api: Api = None, as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False
) -> None:
    """List the records, the most specific pattern first, as they are tried."""
    from provider_kairos.cli import dns_work as work  # noqa: PLC0415

    work.show(api, as_json=as_json)


@names.command("remove")
def dns_remove(name: Name, pattern: IsPattern = False, api: Api = None) -> None:
    """Remove the records of a name. Exit code 4 when it has none."""
    from provider_kairos.cli import dns_work as work  # noqa: PLC0415

    work.remove(api, name, pattern=pattern)


def add_to(app: typer.Typer) -> None:
    """Give the commands to the program."""
    app.add_typer(names, name="dns")
