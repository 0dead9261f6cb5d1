"""The commands ``trust`` and EdgeVPN's ``peergater``; the work is in ``trust_work`` (spec/edgevpn.md 12.1, 13)."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["add_to"]

Api = Annotated[
    str | None,
    typer.Option("--api", envvar="EDGEVPN_API", metavar="ADDRESS", help="The daemon's API, as for `status`."),
]
File = Annotated[
    str | None,
    typer.Argument(
        metavar="FILE",
        help="A file with a public key, or with what `ecdsa-genkey` printed; - or nothing: standard input.",
    ),
]

trust = typer.Typer(
    help="See and change whose records are heard (the trust zone).", rich_markup_mode=None, no_args_is_help=True
)
peergater = typer.Typer(
    help="Keys of the trust zone, as EdgeVPN's command.", rich_markup_mode=None, no_args_is_help=True
)


@peergater.command("ecdsa-genkey")
def ecdsa_genkey(
    privkey: Annotated[bool, typer.Option("--privkey", help="Print a private key alone.")] = False,
    pubkey: Annotated[bool, typer.Option("--pubkey", help="Print a public key alone.")] = False,
) -> None:
    """Print a fresh key pair for PEERGATE_AUTH (private) and `trust add-key` (public)."""
    from provider_kairos.cli import trust_work as work  # noqa: PLC0415

    work.generate(privkey=privkey, pubkey=pubkey)


@trust.command("list")
def trust_list(
    api: Api = None, as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False
) -> None:
    """List trusted keys, peers in the zone, and whether the gate is on."""
    from provider_kairos.cli import trust_work as work  # noqa: PLC0415

    work.show(api, as_json=as_json)


@trust.command("add-key")
def trust_add_key(
    file: File = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="What to call it; has `ecdsa` in it.")
    ] = None,
    api: Api = None,
) -> None:
    """Trust a public key: whoever holds its private key is let in."""
    from provider_kairos.cli import trust_work as work  # noqa: PLC0415

    work.add_key(api, file, name)


@trust.command("remove-key")
def trust_remove_key(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As `trust list` shows it, or the key's fingerprint.")],
    api: Api = None,
) -> None:
    """Trust a key no longer; who was let in by it has to ask again with another one."""
    from provider_kairos.cli import trust_work as work  # noqa: PLC0415

    work.remove_key(api, name)


@trust.command("gate")
def trust_gate(
    state: Annotated[str | None, typer.Argument(metavar="[on|off]", help="Without it: print the state.")] = None,
    api: Api = None,
) -> None:
    """Switch this node's gate until it is started again."""
    from provider_kairos.cli import trust_work as work  # noqa: PLC0415

    work.gate(api, state)


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(trust, name="trust")
    app.add_typer(peergater, name="peergater")
