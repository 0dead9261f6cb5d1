"""generate-token, create-config, token inspect (spec/provider.md 7.4). A token never comes from the command line."""

from __future__ import annotations

import re

from provider_kairos.cli.files import read_bytes
from provider_kairos.cli.output import print_json
from provider_kairos.errors import ConfigError
from provider_kairos.token import codec

__all__ = ["config", "fresh", "inspect"]

NEVER = 2**63 - 1
"""The interval of a token that never rotates, as the reference writes it by default."""

VARIABLE = "EDGEVPNTOKEN"


def fresh(seconds: int | None, *, never: bool) -> str:
    """The text of a new token."""
    if never:
        return codec.encode(codec.generate(interval=NEVER))
    return codec.encode(codec.generate() if seconds is None else codec.generate(interval=seconds))


def config(token: str) -> str:
    """A cloud-config that holds nothing but the token."""
    return f"#cloud-config\n\np2p:\n    network_token: {token}\n"


def inspect(file: str | None, *, as_json: bool) -> None:
    """Print what a token holds, secrets left out."""
    data, name = read_bytes(file, variable=VARIABLE)
    value = codec.describe(_token_in(data, name))
    if as_json:
        print_json({"schema": 1, **value})
        return
    _print_tree(value, "")


def _token_in(data: bytes, name: str) -> codec.NetworkToken:
    """The token of a file that holds a token alone or a whole cloud-config."""
    if re.search(rb"(?m)^\s*(#cloud-config|p2p\s*:)", data):
        from provider_kairos.config import load  # noqa: PLC0415 - pydantic only when there is a document

        return load(data, name).network_token()
    try:
        text = data.decode("ascii").strip()
    except UnicodeDecodeError:
        raise ConfigError("holds neither a network token nor a cloud-config", path=name) from None
    return codec.decode(text)


def _print_tree(value: dict[str, object], indent: str) -> None:
    for key, item in value.items():
        if isinstance(item, dict):
            print(f"{indent}{key}:")
            _print_tree(item, indent + "  ")
        else:
            shown = str(item).lower() if isinstance(item, bool) else item
            print(f"{indent}{key}: {shown}")
