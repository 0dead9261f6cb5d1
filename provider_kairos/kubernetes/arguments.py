"""The user's ``args`` as k3s must get them (spec/k3s.md 0.1, 1.2; spec/provider.md 6; users.md 3.2).

The original joins all elements with spaces into one line that systemd splits again, so people write a flag and its
value with a space, several flags in one element, or quotes. k3s itself would refuse some of these and, worse, stop
reading at the first stray word. So each element is read for what was meant and every change is said. Messages name
flags, never values: they may be secret.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable

from provider_kairos.config import document
from provider_kairos.config.notice import InvalidConfigError, Notice
from provider_kairos.kubernetes.flags import AGENT, BOOLEAN, CRITICAL, SECRET, SHORT, VALUED, Flag

__all__ = ["config_file_keys", "critical_values", "parse_flags", "read_args"]

_FLAG = re.compile(r"--?([A-Za-z][A-Za-z0-9._-]*)(?:=(.*)|\s+(.*))?", re.DOTALL)
_TRUTH = {"true": "true", "false": "false", "1": "true", "0": "false", "t": "true", "f": "false"}
_SUBCOMMANDS = frozenset({"server", "agent", "k3s"})

_Say = Callable[[str, str], None]


def read_args(key: str, elements: Iterable[str], *, agent: bool = False) -> tuple[tuple[Flag, ...], tuple[Notice, ...]]:
    """The flags that ``key`` (as in ``k3s.args``) means, and what is to be said about how they were written.

    ``agent`` tells which flags are known; an unknown one is passed on with a warning, for k3s may be newer than this.

    Raises:
        InvalidConfigError: a flag that needs a value has none.
    """
    reader = _Reader(key, AGENT if agent else (BOOLEAN | VALUED) - {"disable-apiserver-lb"})
    for index, element in enumerate(elements):
        reader.element(index, element)
    reader.finish()
    return tuple(reader.flags), tuple(reader.notices)


class _Reader:
    def __init__(self, key: str, known: frozenset[str]) -> None:
        self.key = key
        self.known = known
        self.flags: list[Flag] = []
        self.notices: list[Notice] = []
        self.place = key
        self.waiting: tuple[str, str] | None = None  # a flag that wants its value, and its place
        self.boolean = False  # whether the last flag is a boolean that stands alone

    def say(self, message: str, hint: str = "") -> None:
        self.notices.append(Notice("", 0, 0, self.place, message, hint))

    def element(self, index: int, element: str) -> None:
        self.place = f"{self.key}[{index}]"
        text = element.strip()
        if not text:
            return
        pieces = _pieces(text)
        if len(pieces) > 1:
            self.say(f"holds {len(pieces)} arguments in one element, they are taken apart", "write one flag an element")
        for piece in pieces:
            self._piece(piece)

    def _piece(self, piece: str) -> None:
        match = _FLAG.fullmatch(piece)
        if match is None:
            self._word(piece)
            return
        self._unsatisfied()
        name = SHORT.get(match[1], match[1])
        after_space = match[3]
        if match[2] is not None:
            value = _unquoted(match[2])
            if value != match[2]:
                self.say(
                    f"quotes around the value of --{name} are taken away",
                    "quote the whole element, as in '--flag=value'",
                )
            self._add(name, value)
        elif after_space is None:
            if name in BOOLEAN:
                self._add(name, None)
            else:
                self.waiting = (name, self.place)
        elif name in BOOLEAN:
            self._add(name, None)
            self._word(after_space)
        else:
            self._add(name, _unquoted(after_space))
            self.say(f"--{name} and its value are separated by a space", f"write --{name}=VALUE")

    def _word(self, word: str) -> None:
        """A word that is no flag: the value of what stands before it, or lost."""
        if self.waiting:
            (name, place), self.waiting = self.waiting, None
            self._add(name, _unquoted(word))
            if place != self.place:
                self.say(f"the value of --{name} is an element of its own", f"write --{name}=VALUE in one element")
        elif self.boolean and word.lower() in _TRUTH:
            name = self.flags[-1].name
            self.flags[-1] = Flag(name, _TRUTH[word.lower()])
            self.boolean = False
            self.say(f"--{name} and its value are separated by a space", f"write --{name}={_TRUTH[word.lower()]}")
        elif word in _SUBCOMMANDS and not self.flags:
            self.say(f"`{word}` is left out: the command is given already", "list flags only")
        else:
            self.say("a word that is no flag is left out: k3s would ignore everything after it", "write --flag=value")

    def _add(self, name: str, value: str | None) -> None:
        self.flags.append(Flag(name, value))
        self.boolean = value is None
        if name not in self.known:
            close = difflib.get_close_matches(name, self.known, n=1, cutoff=0.75)
            hint = f"did you mean --{close[0]}?" if close else ""
            which = "agents of k3s do not know" if name in BOOLEAN | VALUED else "k3s is not known to have"
            self.say(f"{which} --{name}, which would keep it from starting", hint)

    def _unsatisfied(self) -> None:
        if self.waiting is None:
            return
        (name, place), self.waiting = self.waiting, None
        if name in VALUED:
            raise InvalidConfigError(f"{place}: --{name} needs a value", key=place, hint=f"write --{name}=VALUE")
        self._add(name, None)  # a flag that we do not know may need none

    def finish(self) -> None:
        self._unsatisfied()


def _pieces(text: str) -> list[str]:
    """Cut before every flag that follows white space outside quotes."""
    pieces: list[str] = []
    start = 0
    quote = ""
    for at, c in enumerate(text):
        if quote:
            quote = "" if c == quote else quote
        elif c in "'\"" and (at == 0 or text[at - 1] in "= \t"):
            quote = c
        elif c.isspace() and re.match(r"\s+--?[A-Za-z]", text[at:]) and not text[start:at].isspace() and text[start:at]:
            pieces.append(text[start:at].strip())
            start = at
    pieces.append(text[start:].strip())
    return pieces


def _unquoted(value: str) -> str:
    value = value.strip()
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
        return value[1:-1]
    return value


def parse_flags(argv: Iterable[str]) -> dict[str, list[str]]:
    """The flags of a finished command line (after its subcommand), as k3s reads them: name to all its values."""
    found: dict[str, list[str]] = {}
    for element in argv:
        match = _FLAG.fullmatch(element)
        if match is None:
            break
        found.setdefault(SHORT.get(match[1], match[1]), []).append("true" if match[2] is None else match[2])
    return found


def critical_values(argv: Iterable[str]) -> dict[str, str]:
    """What must be the same on every server of a cluster, from a server's command line without binary and subcommand.

    k3s' own config.yaml is not seen here. Agent tokens must agree too; they are secrets and stay out.
    """
    flags = parse_flags(argv)
    return {name: ",".join(flags[name]) if name in flags else default for name, default in CRITICAL.items()}


def config_file_keys(texts: Iterable[str]) -> frozenset[str]:
    """Keys with a value in k3s' config.yaml and its drop-ins; broken files count as empty (k3s will say so itself)."""
    keys: set[str] = set()
    for text in texts:
        try:
            data = document.parse(text).data()
        except InvalidConfigError:
            continue
        keys.update(name.removesuffix("+") for name, value in data.items() if value not in (None, "", []))
    return frozenset(keys)


def secret_variable(flag: Flag) -> str:
    """The environment variable that takes a secret flag's place; empty for other flags."""
    return SECRET.get(flag.name, "") if flag.value is not None else ""
