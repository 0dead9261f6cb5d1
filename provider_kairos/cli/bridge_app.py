"""The command ``bridge``; the work is in ``bridge`` (spec/provider.md 7.3: the options of ``kairosctl bridge``)."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["add_to"]


def bridge(  # noqa: PLR0917 - typer's way of naming options
    address: Annotated[
        str,
        typer.Option(
            "--address",
            envvar="ADDRESS",
            metavar="ADDRESS/BITS",
            help="This machine's address in the VPN; with --dhcp the network to lease from. "
            "Default: host 254 of the network (10.1.0.254/24), which is never leased.",
            show_default=False,
        ),
    ] = "",
    dhcp: Annotated[bool, typer.Option("--dhcp", envvar="DHCP", help="Lease an address as the nodes do.")] = False,
    lease_dir: Annotated[
        str,
        typer.Option(
            "--lease-dir",
            envvar="DHCPLEASEDIR",
            metavar="DIR",
            help="Keep the lease there, for the next time; default: it is forgotten.",
            show_default=False,
        ),
    ] = "",
    interface: Annotated[
        str, typer.Option("--interface", envvar="IFACE", metavar="NAME", help="Name of the interface.")
    ] = "kairos0",
    api: Annotated[
        str,
        typer.Option(
            "--api", metavar="ADDRESS", help="Where the HTTP API listens, HOST:PORT or unix://PATH; --api= for none."
        ),
    ] = "127.0.0.1:8080",
    network_id: Annotated[
        str,
        typer.Option(
            "--network-id", envvar="EDGEVPN_NETWORK_ID", metavar="ID", help="Bucket of the cluster, for the hints."
        ),
    ] = "kairos",
    config: Annotated[
        str | None,
        typer.Option(
            "--config",
            metavar="FILE",
            help="The network: a YAML file as EdgeVPN's, or a daemon's environment file. Default: EDGEVPNTOKEN or "
            "EDGEVPNCONFIG, else the daemon of this machine.",
        ),
    ] = None,
    qr_image: Annotated[
        str, typer.Option("--qr-code-image", envvar="QR_CODE_IMAGE", hidden=True, metavar="FILE", help="Recovery.")
    ] = "",
    qr_snapshot: Annotated[
        bool, typer.Option("--qr-code-snapshot", envvar="QR_CODE_SNAPSHOT", hidden=True, help="Recovery.")
    ] = False,
) -> None:
    """Join the VPN from this machine, without being a node of the cluster.

    Needs root: it makes an interface, which is gone when the command ends. Takes EdgeVPN's flags and variables; the
    network token is never an argument. Runs until it is told to end (Ctrl-C).
    """
    from provider_kairos.cli import bridge as work  # noqa: PLC0415

    options = work.Options(
        address=address,
        dhcp=dhcp,
        lease_dir=lease_dir,
        interface=interface,
        api=api,
        network_id=network_id,
        config=config,
        recovery=bool(qr_image) or qr_snapshot,
    )
    raise typer.Exit(work.run(options))


def add_to(app: typer.Typer) -> None:
    """Give the command to the program."""
    app.command("bridge")(bridge)
