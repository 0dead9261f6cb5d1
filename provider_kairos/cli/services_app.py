"""The commands ``service``, ``file`` and ``egress``, and EdgeVPN's names for them; the work is in ``services_work``.

Specification: spec/edgevpn.md 12.1. Both spellings take EdgeVPN's common flags and variables (``cli.node_flags``).
"""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["add_to"]

Config = Annotated[
    str | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="The network: a YAML file as EdgeVPN's, or a daemon's environment file. Default: EDGEVPNTOKEN or "
        "EDGEVPNCONFIG, else the daemon of this machine.",
    ),
]
Pairs = Annotated[list[str] | None, typer.Argument(metavar="NAME ADDRESS", show_default=False)]
Paths = Annotated[list[str] | None, typer.Argument(metavar="NAME PATH", show_default=False)]
Name = Annotated[str | None, typer.Option("--name", help="The same as NAME.", metavar="NAME")]
Address = Annotated[str | None, typer.Option("--address", help="The same as ADDRESS.", metavar="ADDRESS")]
Path = Annotated[str | None, typer.Option("--path", help="The same as PATH.", metavar="PATH")]
ForEdgevpn = Annotated[
    str | None,
    typer.Option(
        "--edgevpn", metavar="NAME", help="Of several: the one that EdgeVPN nodes reach, whose protocol tells no name."
    ),
]

services = typer.Typer(
    help="Reach TCP services of other nodes, without the VPN.", rich_markup_mode=None, no_args_is_help=True
)
files = typer.Typer(help="Send files to other nodes.", rich_markup_mode=None, no_args_is_help=True)


def service_add(
    pairs: Pairs = None, name: Name = None, address: Address = None, edgevpn: ForEdgevpn = None, config: Config = None
) -> None:
    """Expose local TCP addresses under names: `service add web 127.0.0.1:80 db 127.0.0.1:5432`.

    Runs until it is told to end (Ctrl-C).
    """
    from provider_kairos.cli import services_work as work  # noqa: PLC0415

    raise typer.Exit(work.service_add(pairs or [], name, address, edgevpn, config))


def service_connect(pairs: Pairs = None, name: Name = None, address: Address = None, config: Config = None) -> None:
    """Listen on local addresses for services of other nodes: `service connect web 127.0.0.1:8080`.

    Runs until it is told to end (Ctrl-C).
    """
    from provider_kairos.cli import services_work as work  # noqa: PLC0415

    raise typer.Exit(work.service_connect(pairs or [], name, address, config))


def file_send(
    paths: Paths = None, name: Name = None, path: Path = None, edgevpn: ForEdgevpn = None, config: Config = None
) -> None:
    """Offer files under names, to as many nodes as ask for them.

    Runs until it is told to end (Ctrl-C).
    """
    from provider_kairos.cli import services_work as work  # noqa: PLC0415

    raise typer.Exit(work.file_send(paths or [], name, path, edgevpn, config))


def file_receive(  # noqa: PLR0917 - typer's way of naming options
    paths: Paths = None,
    name: Name = None,
    path: Path = None,
    wait: Annotated[
        float, typer.Option("--wait", metavar="[SECONDS]", help="Give up after so long; 0: never.", min=0)
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    config: Config = None,
) -> None:
    """Fetch a file that another node offers, and go on where an earlier attempt ended.

    Exit code 0: complete, and verified by its SHA-256 unless the sender is EdgeVPN, which the output says; 1: truncated
    or not what the sender had; 5: not there in time.
    """
    from provider_kairos.cli import services_work as work  # noqa: PLC0415

    raise typer.Exit(work.file_receive(paths or [], (name, path), wait, config, as_json=as_json))


Interval = Annotated[
    int | None,
    typer.Option("--interval", envvar="PROXYINTERVAL", hidden=True, help="EdgeVPN's; announcements need none here."),
]


def egress(  # noqa: PLR0917 - typer's way of naming options
    context: typer.Context,
    listen: Annotated[
        str | None,
        typer.Option(
            "--listen",
            envvar="PROXYLISTEN",
            metavar="ADDRESS",
            help="Where the proxy listens. Default: 127.0.0.1:8080; called `proxy`, as EdgeVPN's: all addresses.",
        ),
    ] = None,
    dead_interval: Annotated[
        int,
        typer.Option(
            "--dead-interval",
            envvar="PROXYDEADINTERVAL",
            metavar="SECONDS",
            min=1,
            help="Egress nodes whose heartbeat is older are not asked.",
        ),
    ] = 600,
    api: Annotated[bool, typer.Option("--api", envvar="API", help="Serve the HTTP API too.")] = False,
    api_listen: Annotated[
        str, typer.Option("--api-listen", envvar="APILISTEN", metavar="ADDRESS", help="Where the API listens.")
    ] = "127.0.0.1:8081",
    interval: Interval = None,
    config: Config = None,
) -> None:
    """Run an HTTP proxy whose requests leave the network at an egress node (EGRESS=true there).

    https (CONNECT) takes an egress node with kairos-p2p; EdgeVPN's fetches http only. Runs until it is told to end.
    """
    from provider_kairos.cli import services_work as work  # noqa: PLC0415

    del interval
    listen = listen or (":8080" if context.info_name == "proxy" else "127.0.0.1:8080")
    raise typer.Exit(work.egress(listen, dead_interval, api_listen if api else None, config))


def add_to(app: typer.Typer) -> None:
    """Give the commands to the program."""
    services.command("add")(service_add)
    services.command("connect")(service_connect)
    files.command("send")(file_send)
    files.command("receive")(file_receive)
    app.command("egress")(egress)
    app.command("proxy", hidden=True)(egress)
    app.add_typer(services, name="service")
    app.add_typer(files, name="file")
    for function, names in (
        (service_add, ("service-add", "sa")),
        (service_connect, ("service-connect", "sc")),
        (file_send, ("file-send", "fs")),
        (file_receive, ("file-receive", "fr")),
    ):
        for each in names:
            app.command(each, hidden=True)(function)
