"""The commands ``ledger`` and ``peers``; the work is in ``ledger_work`` and ``peers_work``."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["add_to"]

Api = Annotated[
    str | None,
    typer.Option("--api", envvar="EDGEVPN_API", metavar="ADDRESS", help="The daemon's API, as for `status`."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Bucket = Annotated[str, typer.Argument(metavar="BUCKET", help="As `kairos`, `machines`, `dns`.")]
Key = Annotated[str, typer.Argument(metavar="KEY", help="A key of the bucket.")]

ledger = typer.Typer(
    help="Read, write and watch the records that all nodes share.", rich_markup_mode=None, no_args_is_help=True
)


@ledger.command("get")
def ledger_get(
    bucket: Annotated[str | None, typer.Argument(metavar="BUCKET", help="Without it: which buckets there are.")] = None,
    key: Annotated[str | None, typer.Argument(metavar="KEY", help="Without it: all records of the bucket.")] = None,
    deleted: Annotated[bool, typer.Option("--deleted", help="Show tombstones too.")] = False,
    as_json: AsJson = False,
    api: Api = None,
) -> None:
    """Print a record's value, the records of a bucket, or the buckets.

    Exit code 4 when there is no such record or bucket.
    """
    from provider_kairos.cli import ledger_work as work  # noqa: PLC0415

    work.get(api, bucket, key, deleted=deleted, as_json=as_json)


@ledger.command("set")
def ledger_set(  # noqa: PLR0917 - a command's words
    bucket: Bucket,
    key: Key,
    value: Annotated[
        str, typer.Argument(metavar="VALUE", help="A text; - for standard input, which others do not see.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="VALUE is JSON and not a text.")] = False,
    plain: Annotated[
        bool, typer.Option("--plain", help="Store it as daemons do theirs: JSON without base64 around it.")
    ] = False,
    api: Api = None,
) -> None:
    """Write a record. It is on this node's disk when the command ends."""
    from provider_kairos.cli import ledger_work as work  # noqa: PLC0415

    work.set_record(api, bucket, key, value, as_json=as_json, plain=plain)


@ledger.command("delete")
def ledger_delete(
    bucket: Bucket,
    key: Annotated[str | None, typer.Argument(metavar="KEY", help="Without it: every record of the bucket.")] = None,
    api: Api = None,
) -> None:
    """Delete a record, or a whole bucket. What is absent is deleted already."""
    from provider_kairos.cli import ledger_work as work  # noqa: PLC0415

    work.delete(api, bucket, key)


@ledger.command("watch")
def ledger_watch(
    buckets: Annotated[list[str] | None, typer.Argument(metavar="[BUCKET]...", help="Without one: all.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object for each line.")] = False,
    api: Api = None,
) -> None:
    """Print the records, then every change, until Ctrl-C."""
    from provider_kairos.cli import ledger_work as work  # noqa: PLC0415

    work.watch(api, buckets or [], as_json=as_json)


def _peers(as_json: AsJson = False, api: Api = None) -> None:
    """List the other nodes: in the ledger, on our topic, connected, and what went wrong with each."""
    from provider_kairos.cli import peers_work as work  # noqa: PLC0415

    work.show(api, as_json=as_json)


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.add_typer(ledger, name="ledger")
    app.command("peers")(_peers)
