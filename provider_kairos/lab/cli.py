"""``kairos-p2p lab``: clusters on one machine. The command line's face of the lab; the work is elsewhere.

Imported lazily by the main program. Errors are raised as :mod:`provider_kairos.errors` classes; their exit codes
are the main program's (docs/reference/exit-codes.md), and :func:`main`'s when the lab is run by itself.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from provider_kairos.errors import NotFoundError, ProviderError, TimeoutHostError
from provider_kairos.lab import client, report
from provider_kairos.lab.model import AGENT_API, LabError, LabSettings
from provider_kairos.lab.place import Place
from provider_kairos.lab.up import Progress, reasons, settings_for, wait_until_ready

__all__ = ["app", "main"]

app = typer.Typer(
    name="lab",
    help="Clusters on one machine: boxes made of namespaces that hold the product unmodified.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)

NameOption = Annotated[str, typer.Option("--name", help="Which lab; several may run side by side.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
BoxArgument = Annotated[str, typer.Argument(metavar="BOX", help="box1, box2, ...")]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _print_lines(lines: list[str]) -> None:
    print("\n".join(lines), flush=True)


def _start(settings: LabSettings, leash: client.Leash | None = None) -> Place:
    client.check_machine(settings)
    client.compile_sources()
    kind = (
        f"k3s from {settings.k3s}" if settings.k3s else "the k3s stand-in (no containers; --k3s PATH takes a real one)"
    )
    who = "root" if os.geteuid() == 0 else "an ordinary user"
    boxes = "1 box" if settings.boxes == 1 else f"{settings.boxes} boxes"
    _say(f"lab {settings.name!r}: {boxes} as {who}, Kubernetes by {kind}")
    return client.start(settings, leash)


@app.command()
def up(
    *,
    boxes: Annotated[int, typer.Option("--boxes", "-n", help="How many boxes.")] = 3,
    config: Annotated[
        Path | None, typer.Option("--config", help="Cloud-config of every box; without it one with a new token.")
    ] = None,
    name: NameOption = "lab",
    k3s: Annotated[str, typer.Option("--k3s", help="A real k3s binary (also $K3S_BIN); else a stand-in.")] = "",
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds until every box must be Ready.")] = 180.0,
    agent_api: Annotated[
        str, typer.Option("--agent-api", help=f"API address that the agent hands to the provider, as in {AGENT_API}.")
    ] = "",
    as_is: Annotated[
        bool, typer.Option("--as-is", help="Lay the file unchecked, and let a single box wait for a second one.")
    ] = False,
    daemon: Annotated[
        list[str] | None,
        typer.Option("--daemon", help="go: EdgeVPN ($EDGEVPN_BIN) in the place of our daemon; for one box: box2=go."),
    ] = None,
    provider: Annotated[
        str,
        typer.Option("--provider", help="A provider plugin in the place of ours, which starts our daemon as edgevpn."),
    ] = "",
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until every box is Ready.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Boot boxes and wait until they are a cluster."""
    settings = settings_for(
        name=name,
        boxes=boxes,
        config=config,
        k3s=k3s,
        agent_api=agent_api,
        as_is=as_is,
        daemons=daemon or (),
        provider=provider,
    )
    place = Place(settings.name)
    if place.alive():
        raise LabError(f"the lab {name!r} is up already", hint=f"`kairos-p2p lab down --name {name}` ends it")
    try:
        _start(settings)
        status = wait_until_ready(place, timeout, Progress(_say)) if wait else client.status(place)
    except KeyboardInterrupt:
        _say("interrupted: taking the lab down")
        client.take_down(place)
        raise
    except TimeoutHostError:
        if as_json:
            print(json.dumps(report.status_document(client.status(place)), indent=2))
        raise
    if as_json:
        print(json.dumps(report.up_document(status), indent=2))
        return
    _print_lines(report.box_table(status))
    if wait:
        _print_lines(["", *report.node_table(status)])


@app.command()
def status(*, name: NameOption = "lab", as_json: JsonOption = False) -> None:
    """Show the boxes, what they wait for, and the cluster's nodes."""
    state = client.status(Place(name))
    if as_json:
        print(json.dumps(report.status_document(state), indent=2))
        return
    _print_lines(report.box_table(state))
    for box in state["boxes"]:
        for reason in reasons(state, box):
            print(f"{box['name']} waits: {reason}")
    _print_lines(["", *report.node_table(state)])


def _box(place: Place, box: str) -> dict[str, Any]:
    return client.order(place, "box", box=box)


def _running(place: Place, box: str) -> dict[str, Any]:
    found = _box(place, box)
    if not found["pid"]:
        raise NotFoundError(f"{found['name']} is {found['state']}", hint=f"`kairos-p2p lab reboot {box}` starts it")
    return found


@app.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def exec_command(
    box: BoxArgument,
    command: Annotated[list[str] | None, typer.Argument(metavar="[--] CMD...", help="A shell without it.")] = None,
    *,
    name: NameOption = "lab",
) -> None:
    """Run a command in a box as its root; ends with the command's exit status."""
    from provider_kairos.lab.enter import run_in_box  # noqa: PLC0415 -- only this verb enters a box

    argv = list(command or [])
    if argv and argv[0] == "--":
        argv = argv[1:]
    found = _running(Place(name), box)
    sys.stdout.flush()
    raise typer.Exit(run_in_box(found["pid"], argv or ["/bin/sh"]))


@app.command()
def logs(
    box: BoxArgument,
    unit: Annotated[str, typer.Argument(metavar="[UNIT]", help="One service; all of them without it.")] = "",
    *,
    name: NameOption = "lab",
    lines: Annotated[int, typer.Option("--lines", "-l", help="Only the last lines of each; 0 for all.")] = 0,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as it grows.")] = False,
) -> None:
    """Print what a box's services said."""
    from provider_kairos.lab.logs import show_box_logs  # noqa: PLC0415 -- only this verb reads logs

    show_box_logs(_running(Place(name), box)["pid"], unit, lines=lines, follow=follow)


@app.command()
def kill(box: BoxArgument, *, name: NameOption = "lab") -> None:
    """Cut a box's power: first its cable, then everything in it at once."""
    print(f"{client.order(Place(name), 'kill', box=box)['name']} has no power")


@app.command()
def reboot(
    box: BoxArgument,
    *,
    name: NameOption = "lab",
    wait: Annotated[bool, typer.Option("--wait", help="Wait until its node is Ready again.")] = False,
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds for --wait.")] = 180.0,
) -> None:
    """Boot a box again, one without power too; its persistent paths stay, the rest is lost."""
    place = Place(name)
    booted = client.order(place, "reboot", box=box)["name"]
    print(f"{booted} boots")
    if wait:
        _print_lines(report.box_table(wait_until_ready(place, timeout, Progress(_say, only=booted))))


@app.command()
def down(*, name: NameOption = "lab") -> None:
    """End a lab; nothing stays behind."""
    print("the lab is down" if client.take_down(Place(name)) else f"no lab {name!r} was up")


@app.command()
def demo(
    *,
    boxes: Annotated[int, typer.Option("--boxes", "-n", help="How many boxes.")] = 3,
    name: NameOption = "demo",
    k3s: Annotated[str, typer.Option("--k3s", help="A real k3s binary (also $K3S_BIN); else a stand-in.")] = "",
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds until every box must be Ready.")] = 180.0,
) -> None:
    """Boot boxes, watch them become a cluster, ping through the VPN, and clean up."""
    from provider_kairos.lab.demo import run_demo  # noqa: PLC0415 -- only this verb

    settings = settings_for(name=name, boxes=boxes, config=None, k3s=k3s, agent_api="")
    raise typer.Exit(run_demo(settings, timeout, _start))


def main() -> int:
    """Run the lab's commands by themselves: ``python -m provider_kairos.lab``."""
    try:
        app(prog_name="kairos-p2p lab")
    except ProviderError as error:
        print(f"kairos-p2p: {error}", file=sys.stderr)
        return int(error.exit_code)
    except KeyboardInterrupt:
        return 130
    return 0
