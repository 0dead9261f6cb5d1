"""validate: a cloud-config's errors and warnings, each with line and column (spec/provider.md 2, 7.7)."""

from __future__ import annotations

from typing import Any

from provider_kairos.cli.files import read_bytes
from provider_kairos.cli.output import print_json
from provider_kairos.config import load
from provider_kairos.config.notice import InvalidConfigError, Notice
from provider_kairos.errors import ConfigError, ExitCode, TokenError

__all__ = ["run"]


def run(file: str, *, as_json: bool) -> int:
    """Print what is wrong and what is odd; CONFIG when something cannot work."""
    data, name = read_bytes(file)
    errors: list[ConfigError] = []
    notices: tuple[Notice, ...] = ()
    try:
        found = load(data, name)
        notices = found.warnings
        if found.settings.token_text():
            found.network_token()
    except InvalidConfigError as error:
        errors = [error, *error.others]
    except TokenError as error:
        errors = [error]
    remarks = [*(_of_error(error) for error in errors), *(_of_notice(notice) for notice in notices)]
    remarks.sort(key=lambda remark: (remark["line"], remark["column"]))
    failed = any(remark["severity"] == "error" for remark in remarks)
    if as_json:
        print_json({"schema": 1, "file": name, "valid": not failed, "remarks": remarks})
    else:
        for remark in remarks:
            print(_line(name, remark))
        if not remarks:
            print(f"{name}: no remarks")
    return ExitCode.CONFIG if failed else ExitCode.OK


def _of_error(error: ConfigError) -> dict[str, Any]:
    return {
        "severity": "error",
        "line": error.line,
        "column": error.column,
        "key": getattr(error, "key", "") or getattr(error, "field", ""),
        "message": error.message,
        "hint": error.hint,
    }


def _of_notice(notice: Notice) -> dict[str, Any]:
    return {
        "severity": notice.severity,
        "line": notice.line,
        "column": notice.column,
        "key": notice.key,
        "message": notice.message,
        "hint": notice.hint,
    }


def _line(name: str, remark: dict[str, Any]) -> str:
    place = f"{name}:{remark['line']}:{remark['column']}" if remark["line"] else name
    key, message = remark["key"], remark["message"]
    subject = "" if not key or key in message else f"{key}: "
    hint = f" ({remark['hint']})" if remark["hint"] else ""
    return f"{place}: {remark['severity']}: {subject}{message}{hint}"
