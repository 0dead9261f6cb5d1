"""The commands of ``kairos-p2p``: what they are called, what they take. What they do is in the modules beside.

Specification: spec/provider.md 7.1, 7.2, 7.4, 7.7; spec/users.md 5 and 10. Everything heavy is imported by the
command that needs it, so that ``--help`` answers at once; rich is not used for help (it would double the time).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from provider_kairos.cli import bridge_app, dns_app, ledger_app, services_app, trust_app

__all__ = ["app", "spell_out"]

WAIT_SECONDS = 600
"""What ``--wait`` without a number means."""

Api = Annotated[
    str | None,
    typer.Option(
        "--api",
        envvar="EDGEVPN_API",
        metavar="ADDRESS",
        help="The daemon's API, unix://PATH or http://HOST:PORT. "
        "Default: unix:///run/edgevpn-kairos.sock, then http://127.0.0.1:8080.",
    ),
]


def _bucket(value: str) -> str:
    if "/" in value:
        raise typer.BadParameter("a network id holds no slash")
    return value


NetworkId = Annotated[
    str,
    typer.Option(
        "--network-id", envvar="EDGEVPN_NETWORK_ID", metavar="ID", help="Bucket of the cluster.", callback=_bucket
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Seconds = Annotated[
    int | None, typer.Argument(metavar="SECONDS", help="Rotation interval of the keys; default 9000.", min=1)
]
Never = Annotated[bool, typer.Option("--never", help="Make a token whose keys never rotate.")]

app = typer.Typer(
    name="kairos-p2p",
    help="Boxes that run Kairos become one Kubernetes cluster with one shared network token.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["--help", "-h"]},
)
roles = typer.Typer(help="See and set the roles of nodes.", rich_markup_mode=None, no_args_is_help=True)
tokens = typer.Typer(help="Look at network tokens.", rich_markup_mode=None, no_args_is_help=True)
app.add_typer(roles, name="role")
app.add_typer(tokens, name="token")
bridge_app.add_to(app)
services_app.add_to(app)
dns_app.add_to(app)
trust_app.add_to(app)
ledger_app.add_to(app)


def spell_out(arguments: Sequence[str]) -> list[str]:
    """The arguments with a bare ``--wait`` given its number, which the parser cannot leave out, and ``dns`` its word."""
    return [f"--wait={WAIT_SECONDS}" if argument == "--wait" else argument for argument in dns_app.spell_out(arguments)]


def _version(value: bool) -> None:
    if value:
        from provider_kairos import __version__  # noqa: PLC0415

        print(f"kairos-p2p {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    _shown: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Boxes that run Kairos become one Kubernetes cluster with one shared network token."""


@app.command("generate-token")
def generate_token(seconds: Seconds = None, never: Never = False) -> None:
    """Print a fresh network token."""
    from provider_kairos.cli import tokens as work  # noqa: PLC0415

    print(work.fresh(seconds, never=never))


@app.command("create-config")
def create_config(seconds: Seconds = None, never: Never = False) -> None:
    """Print a cloud-config with a fresh network token."""
    from provider_kairos.cli import tokens as work  # noqa: PLC0415

    print(work.config(work.fresh(seconds, never=never)), end="")


@tokens.command("inspect")
def token_inspect(
    file: Annotated[
        str | None,
        typer.Argument(
            metavar="FILE",
            help="A file with a token or a cloud-config; - for standard input. "
            "Default: the variable EDGEVPNTOKEN, else standard input.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a token holds, without its secrets."""
    from provider_kairos.cli import tokens as work  # noqa: PLC0415

    work.inspect(file, as_json=as_json)


@app.command("status")
def status(api: Api = None, network_id: NetworkId = "", as_json: AsJson = False) -> None:
    """Show how this node does, and what it waits for.

    Phases, role, leader, address and peers, with the reason for everything that is not there yet.

    Exit code 0: ready; 9: waiting; 7: the daemon does not answer.
    """
    from provider_kairos.cli import status as work  # noqa: PLC0415

    raise typer.Exit(work.run(api, network_id, as_json=as_json))


@roles.command("list")
def role_list(api: Api = None, network_id: NetworkId = "kairos", as_json: AsJson = False) -> None:
    """List the nodes that advertise themselves, with role and address."""
    from provider_kairos.cli import cluster as work  # noqa: PLC0415

    work.role_list(api, network_id or "kairos", as_json=as_json)


@roles.command("set")
def role_set(
    uuid: Annotated[str, typer.Argument(metavar="UUID", help="Node UUID, as `role list` shows it.")],
    role: Annotated[
        str, typer.Argument(metavar="ROLE", help="master, master/clusterinit, master/ha, worker, auto or none.")
    ],
    api: Api = None,
    network_id: NetworkId = "kairos",
) -> None:
    """Give a node a role, also before it joins."""
    from provider_kairos.cli import cluster as work  # noqa: PLC0415

    work.role_set(api, network_id or "kairos", uuid, role)


@app.command("get-kubeconfig")
def get_kubeconfig(
    api: Api = None,
    network_id: NetworkId = "kairos",
    wait: Annotated[
        float, typer.Option("--wait", metavar="[SECONDS]", help="Wait until there is one; alone: 600 s.", min=0)
    ] = 0,
) -> None:
    """Print the cluster's kubeconfig. Exit code 4 when there is none yet."""
    from provider_kairos.cli import cluster as work  # noqa: PLC0415

    work.get_kubeconfig(api, network_id or "kairos", wait)


@app.command("validate")
def validate(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A cloud-config; - for standard input.")],
    as_json: AsJson = False,
) -> None:
    """Check a cloud-config, with line and column.

    Exit code 3 when it cannot work as written; warnings alone give 0.
    """
    from provider_kairos.cli import validate as work  # noqa: PLC0415

    raise typer.Exit(work.run(file, as_json=as_json))


@app.command("daemon", options_metavar="[EDGEVPN'S FLAGS]")
def daemon() -> None:
    """Run the mesh daemon (the service unit does).

    It takes its settings from EdgeVPN's environment variables, or from its flags: docs/reference/settings.md. The
    network token is never an argument: EDGEVPNTOKEN, or --config FILE.
    """
    # Never reached: cli.main hands `daemon` over before this table is read. It is here for --help.
    raise typer.Exit(2)


@app.command(
    "lab", context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
)
def lab() -> None:
    """Run whole clusters on this machine."""
    # Never reached: cli.main hands `lab` over before this table is read. It is here for --help.
    raise typer.Exit(2)


@app.command("version")
def version() -> None:
    """Print the version."""
    _version(value=True)
