r"""Regular expressions as Go writes them (RE2 syntax), read into a small tree.

Keys of the ledger's ``dns`` bucket are such expressions (spec/edgevpn.md 8.6, 10), written by peers. What Go refuses is
refused here, with two more refusals: what is longer, deeper or larger than the limits below, and names of scripts that
no host name can hold (``\p{Greek}``). Names in questions are printable ASCII (:mod:`provider_kairos.dns.question`), so
a set of characters is a mask of 128 bits, and there are no lines: ``(?m)`` and ``(?s)`` change nothing.

The tree is made of tuples: ``("set", mask)``, ``("look", kind)``, ``("cat", parts)``, ``("alt", parts)``,
``("rep", part, least, most or None)``. Groups and laziness do not matter for whether something matches.
"""

from __future__ import annotations

import string
import unicodedata
from collections.abc import Iterable
from typing import Any, Final

from provider_kairos.errors import PeerError

__all__ = ["BEGIN", "END", "MAX_LENGTH", "NO_WORD", "WORD", "Node", "PatternError", "parse"]

MAX_LENGTH = 1024
"""Characters of a pattern."""

MAX_DEPTH = 50
"""Groups inside groups."""

MAX_REPEAT = 1000
"""Go's own limit, also for the product of nested repetitions."""

Node = tuple[Any, ...]

BEGIN, END, WORD, NO_WORD = "begin", "end", "word", "no-word"
"""Kinds of ``look``: start and end of the text, a word boundary, none."""


class PatternError(PeerError):
    """The text is no pattern, or a larger one than is allowed."""


_ALL: Final = (1 << 128) - 1
_LETTERS = frozenset(string.ascii_letters)
_FOLDED: Final = {"\u017f": "sS", "\u212a": "kK"}  # what Unicode folds to an ASCII letter


def _mask(characters: Iterable[str]) -> int:
    mask = 0
    for character in characters:
        if ord(character) < 128:
            mask |= 1 << ord(character)
    return mask


def _range(low: int, high: int) -> int:
    return _ALL & (1 << min(high, 127) + 1) - (1 << low) if low < 128 else 0


_DIGIT = _mask(string.digits)
_SPACE = _mask("\t\n\f\r ")
_WORD = _mask(string.ascii_letters + string.digits + "_")
_PERL = {
    "d": _DIGIT,
    "D": _ALL ^ _DIGIT,
    "s": _SPACE,
    "S": _ALL ^ _SPACE,
    "w": _WORD,
    "W": _ALL ^ _WORD,
}
_POSIX = {
    "alnum": _mask(string.ascii_letters + string.digits),
    "alpha": _mask(string.ascii_letters),
    "ascii": _ALL,
    "blank": _mask("\t "),
    "cntrl": _range(0, 31) | 1 << 127,
    "digit": _DIGIT,
    "graph": _range(33, 126),
    "lower": _mask(string.ascii_lowercase),
    "print": _range(32, 126),
    "punct": _mask(string.punctuation),
    "space": _mask("\t\n\v\f\r "),
    "upper": _mask(string.ascii_uppercase),
    "word": _WORD,
    "xdigit": _mask(string.hexdigits),
}
_MINORS = {"C": "cfos", "L": "lmotu", "M": "cen", "N": "dlo", "P": "cdefios", "S": "ckmo", "Z": "lps"}
_CATEGORIES = frozenset(
    name for major, minors in _MINORS.items() for name in (major, *(f"{major}{minor}" for minor in minors))
)
_SIMPLE_ESCAPES = {"a": 7, "f": 12, "n": 10, "r": 13, "t": 9, "v": 11}


def _unicode_class(name: str) -> int:
    """ASCII's part of a category or script. Raises PatternError for what this program does not know."""
    if name == "Any":
        return _ALL
    if name in _CATEGORIES:
        return _mask(c for c in map(chr, range(128)) if unicodedata.category(c).startswith(name))
    if name == "Latin":
        return _mask(string.ascii_letters)
    if name == "Common":
        return _ALL ^ _mask(string.ascii_letters)
    raise PatternError(f"character class {name[:20]!r} is not known here")


def _folded(mask: int, *, low: int = 0, high: int = -1) -> int:
    """The mask with the other case of each letter; a range outside ASCII may fold into it."""
    upper, lower = _range(65, 90), _range(97, 122)
    folded = mask | (mask & upper) << 32 | (mask & lower) >> 32
    for character, letters in _FOLDED.items():
        if low <= ord(character) <= high:
            folded |= _mask(letters)
    return folded


class _Group:
    """What was read of one group so far."""

    def __init__(self, flags: frozenset[str]) -> None:
        self.outer_flags = flags
        self.branches: list[Node] = []
        self.parts: list[Node] = []

    def end_branch(self) -> None:
        self.branches.append(("cat", tuple(self.parts)))
        self.parts = []

    def node(self) -> Node:
        self.end_branch()
        return self.branches[0] if len(self.branches) == 1 else ("alt", tuple(self.branches))


def parse(text: str) -> Node:
    """The tree of a pattern. Raises :class:`PatternError`."""
    if len(text) > MAX_LENGTH:
        raise PatternError(f"a pattern of {len(text)} characters; {MAX_LENGTH} are allowed")
    return _Parser(text).parse()


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._flags: frozenset[str] = frozenset()
        self._groups = [_Group(self._flags)]

    # -- reading

    def _left(self) -> bool:
        return self._at < len(self._text)

    def _peek(self, ahead: int = 0) -> str:
        return self._text[self._at + ahead : self._at + ahead + 1]

    def _take(self) -> str:
        character = self._text[self._at]
        self._at += 1
        return character

    def _starts(self, prefix: str) -> bool:
        return self._text.startswith(prefix, self._at)

    # -- the whole

    def parse(self) -> Node:
        repeated = False  # whether the last thing was a repetition: a** is an error, a*? is not
        while self._left():
            character = self._peek()
            if (bounds := self._bounds()) is not None:
                self._repeat(*bounds, repeated=repeated)
                repeated = True
                continue
            repeated = False
            group = self._groups[-1]
            match character:
                case "(":
                    self._open()
                case ")":
                    self._close()
                case "|":
                    self._at += 1
                    group.end_branch()
                case "^" | "$":
                    self._at += 1
                    group.parts.append(("look", BEGIN if character == "^" else END))
                case ".":
                    self._at += 1
                    group.parts.append(("set", _ALL))
                case "[":
                    group.parts.append(("set", self._class()))
                case "\\":
                    self._backslash(group)
                case _:
                    self._at += 1
                    group.parts.append(self._literal(character))
        if len(self._groups) > 1:
            raise PatternError("missing closing )")
        node = self._groups[0].node()
        _check_repeats(node, MAX_REPEAT)
        return node

    def _literal(self, character: str) -> Node:
        if "i" in self._flags:
            code = ord(character)
            return ("set", _folded(_mask(character), low=code, high=code))
        return ("set", _mask(character))

    # -- repetition

    def _bounds(self) -> tuple[int, int | None] | None:
        """Bounds of the repetition that begins here, read over; None when none does."""
        character = self._peek()
        if character in "*+?":
            self._at += 1
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[character]
        if character != "{":
            return None
        closing = self._text.find("}", self._at)
        least, comma, most = self._text[self._at + 1 : closing].partition(",")
        if closing < 0 or not _is_number(least) or (most and not _is_number(most)):
            return None  # a brace that is one
        self._at = closing + 1
        bounds = int(least), (int(most) if most else None) if comma else int(least)
        if bounds[0] > MAX_REPEAT or (bounds[1] is not None and not bounds[0] <= bounds[1] <= MAX_REPEAT):
            raise PatternError("bad repetition count")
        return bounds

    def _repeat(self, least: int, most: int | None, *, repeated: bool) -> None:
        if self._peek() == "?":  # the lazy form
            self._at += 1
        parts = self._groups[-1].parts
        if repeated:
            raise PatternError("a repetition of a repetition")
        if not parts:
            raise PatternError("nothing to repeat")
        parts.append(("rep", parts.pop(), least, most))

    # -- groups

    def _open(self) -> None:
        if len(self._groups) > MAX_DEPTH:
            raise PatternError(f"more than {MAX_DEPTH} groups inside groups")
        if not self._starts("(?"):
            self._at += 1
            self._groups.append(_Group(self._flags))
            return
        for head in ("(?P<", "(?<"):
            if self._starts(head):
                name, found, _ = self._text[self._at + len(head) :].partition(">")
                if not found or not name or not name.isascii() or not name.replace("_", "a").isalnum():
                    raise PatternError("bad group name")
                self._at += len(head) + len(name) + 1
                self._groups.append(_Group(self._flags))
                return
        self._at += 2
        self._read_flags()

    def _read_flags(self) -> None:
        """``(?flags)`` or ``(?flags:``, from behind the question mark."""
        flags, on, any_flag = set(self._flags), True, False
        while self._left():
            match self._take():
                case ("i" | "m" | "s" | "U") as flag:
                    any_flag = True
                    (flags.add if on else flags.discard)(flag)
                case "-" if on:
                    on, any_flag = False, False
                case (":" | ")") as end if on or any_flag:
                    outer, self._flags = self._flags, frozenset(flags)
                    if end == ":":
                        self._groups.append(_Group(outer))
                    return
                case _:
                    break
        raise PatternError("bad group flags")

    def _close(self) -> None:
        self._at += 1
        if len(self._groups) == 1:
            raise PatternError("unexpected )")
        group = self._groups.pop()
        self._flags = group.outer_flags
        self._groups[-1].parts.append(group.node())

    # -- escapes

    def _backslash(self, group: _Group) -> None:
        following = self._peek(1)
        if kind := {"A": BEGIN, "z": END, "b": WORD, "B": NO_WORD}.get(following):
            self._at += 2
            group.parts.append(("look", kind))
        elif following == "Q":
            self._at += 2
            quoted, end, _ = self._text[self._at :].partition(r"\E")
            self._at += len(quoted) + len(end)
            group.parts += map(self._literal, quoted)
        elif (mask := self._class_escape()) is not None:
            group.parts.append(("set", mask))
        else:
            code = self._escape()
            group.parts.append(self._literal(chr(code)))

    def _class_escape(self) -> int | None:
        r"""Mask of ``\d``, ``\pL`` and their like, read over; None when there is none here."""
        following = self._peek(1) if self._peek() == "\\" else ""
        fold = "i" in self._flags
        if following and following in _PERL:
            self._at += 2
            return _folded(_PERL[following]) if fold else _PERL[following]
        if not following or following not in "pP":
            return None
        self._at += 2
        if not self._left():
            raise PatternError("bad character class")
        name = self._take()
        if name == "{":
            name, found, _ = self._text[self._at :].partition("}")
            if not found:
                raise PatternError("bad character class")
            self._at += len(name) + 1
        negated = following == "P"
        if name.startswith("^"):
            name, negated = name[1:], not negated
        mask = _unicode_class(name)
        mask = _folded(mask) if fold else mask
        return _ALL ^ mask if negated else mask

    def _escape(self) -> int:
        """Code of one escaped character, read over."""
        self._at += 1
        if not self._left():
            raise PatternError("trailing backslash")
        character = self._take()
        if character in _SIMPLE_ESCAPES:
            return _SIMPLE_ESCAPES[character]
        if character == "0" or (character in "1234567" and self._peek() and self._peek() in string.octdigits):
            digits = character
            while len(digits) < 3 and self._peek() and self._peek() in string.octdigits:
                digits += self._take()
            return int(digits, 8)
        if character == "x":
            return self._hexadecimal()
        if character.isascii() and not character.isalnum():
            return ord(character)
        raise PatternError(f"bad escape \\{character}")

    def _hexadecimal(self) -> int:
        if self._peek() == "{":
            digits, found, _ = self._text[self._at + 1 :].partition("}")
            self._at += len(digits) + 2
            code = int(digits, 16) if found and digits and _is_hexadecimal(digits) else -1
        else:
            digits = self._text[self._at : self._at + 2]
            self._at += 2
            code = int(digits, 16) if len(digits) == 2 and _is_hexadecimal(digits) else -1
        if not 0 <= code <= 0x10FFFF:
            raise PatternError("bad escape \\x")
        return code

    # -- classes in brackets

    def _class(self) -> int:
        self._at += 1
        fold = "i" in self._flags
        negated = self._peek() == "^"
        self._at += negated
        mask, first = 0, True
        while self._peek() != "]" or first:
            if not self._left():
                raise PatternError("missing closing ]")
            first = False
            if (found := self._posix()) is None:
                found = self._class_escape()
            if found is not None:
                mask |= _folded(found) if fold else found
                continue
            low = high = self._class_character()
            if self._peek() == "-" and self._peek(1) not in {"]", ""}:
                self._at += 1
                high = self._class_character()
                if high < low:
                    raise PatternError("bad character range")
            part = _range(low, high)
            mask |= _folded(part, low=low, high=high) if fold else part
        self._at += 1
        return _ALL ^ mask if negated else mask

    def _posix(self) -> int | None:
        if not self._starts("[:"):
            return None
        end = self._text.find(":]", self._at + 2)
        if end < 0:
            return None
        name = self._text[self._at + 2 : end]
        mask = _POSIX.get(name.removeprefix("^"))
        if mask is None:
            raise PatternError("bad character class")
        self._at = end + 2
        return _ALL ^ mask if name.startswith("^") else mask

    def _class_character(self) -> int:
        if not self._left():
            raise PatternError("missing closing ]")
        if self._peek() == "\\":
            return self._escape()
        return ord(self._take())


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and (text == "0" or not text.startswith("0"))


def _is_hexadecimal(text: str) -> bool:
    return len(text) < 9 and all(c in string.hexdigits for c in text)


def _check_repeats(node: Node, allowed: int) -> None:
    """Go's rule: nested repetitions may not ask for more than a thousand copies together."""
    match node:
        case ("rep", part, least, most):
            count = most if most is not None else least
            if count > allowed:
                raise PatternError("bad repetition count")
            if most != 0:
                _check_repeats(part, allowed // count if count > 1 else allowed)
        case ("cat" | "alt", parts):
            for part in parts:
                _check_repeats(part, allowed)
