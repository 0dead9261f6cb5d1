"""Matching of patterns that peers wrote: time grows with pattern and name, never more.

A pattern becomes a small program whose states are followed all at once (Thompson's construction), so there is no
backtracking to blow up; each match counts its steps and ends when they are used up. Patterns are searched for, not
matched from the start: spec/edgevpn.md 10. Why not Python's ``re`` or a binding of RE2: docs/decisions/0013.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from provider_kairos.dns.pattern_syntax import BEGIN, END, NO_WORD, WORD, Node, PatternError, parse

__all__ = ["MAX_PROGRAM", "MAX_STEPS", "Pattern", "TooCostlyError", "compile_pattern"]

MAX_PROGRAM = 2000
"""Instructions of a program."""

MAX_STEPS = 20_000
"""Steps of one match, some 5 ms. Honest patterns take a few hundred."""

_WORD_CHARACTERS: Final = frozenset(map(ord, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_"))
_MATCH: Final = -1


class TooCostlyError(PatternError):
    """A match took more steps than are allowed."""


@dataclass(slots=True)
class Pattern:
    """A compiled pattern.

    ``needs`` is a text that every matching name holds (in any case, and then in lower case here, when ``folded``),
    ``literal`` the number of characters that such a name is bound to hold, ``whole`` whether the pattern is tied to
    start and end.
    """

    text: str
    needs: str
    folded: bool
    literal: int
    whole: bool
    # one instruction per place: a mask and where to go on, two ways to go on, or a condition and where to go on
    _masks: list[int]
    _looks: list[str]
    _next: list[int]
    _other: list[int]
    _start: int

    def search(self, name: str, allowed: int = MAX_STEPS) -> tuple[bool, int]:
        """Whether the pattern matches anywhere in ``name`` (printable ASCII), and the steps that were taken.

        Raises :class:`TooCostlyError` after ``allowed`` steps.
        """
        if self.needs not in (name.lower() if self.folded else name):
            return False, 1
        codes = name.encode("ascii", "replace")
        steps, states = 0, [self._start]
        before = None
        for place in range(len(codes) + 1):
            code = codes[place] if place < len(codes) else None
            following: list[int] = []
            seen: set[int] = set()
            stack = states
            while stack:
                at = stack.pop()
                if at == _MATCH:
                    return True, steps
                if at in seen:
                    continue
                seen.add(at)
                if mask := self._masks[at]:
                    if code is not None and mask >> code & 1:
                        following.append(self._next[at])
                elif look := self._looks[at]:
                    if _holds(look, before, code):
                        stack.append(self._next[at])
                else:
                    stack.append(self._next[at])
                    if self._other[at] != self._next[at]:
                        stack.append(self._other[at])
            steps += len(seen)
            if steps > allowed:
                raise TooCostlyError(f"more than {allowed} steps for a name of {len(codes)} characters")
            following.append(self._start)
            states = following
            before = code
        return False, steps


def _holds(look: str, before: int | None, after: int | None) -> bool:
    if look == BEGIN:
        return before is None
    if look == END:
        return after is None
    boundary = (before in _WORD_CHARACTERS) != (after in _WORD_CHARACTERS)
    return boundary is (look == WORD)


def compile_pattern(text: str) -> Pattern:
    """Compile a pattern in Go's syntax. Raises :class:`PatternError`."""
    node = parse(text)
    compiler = _Compiler()
    start = compiler.emit(node, _MATCH)
    needs, folded = _needs(node)
    return Pattern(
        text=text,
        needs=needs,
        folded=folded,
        literal=_literal(node),
        whole=_begins(node) and _ends(node),
        _masks=compiler.masks,
        _looks=compiler.looks,
        _next=compiler.next,
        _other=compiler.other,
        _start=start,
    )


class _Compiler:
    """Emits a program from its end to its start: every piece is told where to go on."""

    def __init__(self) -> None:
        self.masks: list[int] = []
        self.looks: list[str] = []
        self.next: list[int] = []
        self.other: list[int] = []

    def _add(self, onwards: int, other: int, *, mask: int = 0, look: str = "") -> int:
        if len(self.masks) == MAX_PROGRAM:
            raise PatternError(f"a pattern of more than {MAX_PROGRAM} instructions")
        self.masks.append(mask)
        self.looks.append(look)
        self.next.append(onwards)
        self.other.append(other)
        return len(self.masks) - 1

    def emit(self, node: Node, onwards: int) -> int:
        """The place where ``node`` begins; ``onwards`` is where it goes on."""
        match node:
            case ("set", 0):  # matches nothing: a condition that never holds
                return self._never(onwards)
            case ("set", mask):
                return self._add(onwards, onwards, mask=mask)
            case ("look", kind):
                return self._add(onwards, onwards, look=kind)
            case ("cat", parts):
                for part in reversed(parts):
                    onwards = self.emit(part, onwards)
                return onwards
            case ("alt", parts):
                first, *rest = [self.emit(part, onwards) for part in parts]
                for place in rest:
                    first = self._add(place, first)
                return first
            case ("rep", part, least, most):
                return self._repetition(part, least, most, onwards)
        raise PatternError("no pattern")

    def _never(self, onwards: int) -> int:
        inner = self._add(onwards, onwards, look=NO_WORD)
        return self._add(inner, inner, look=WORD)

    def _repetition(self, part: Node, least: int, most: int | None, onwards: int) -> int:
        if most is None:
            loop = self._add(onwards, onwards)
            self.next[loop] = self.emit(part, loop)
            onwards = loop
        else:
            end = onwards
            for _ in range(most - least):
                inner = self.emit(part, onwards)
                onwards = self._add(inner, end)
        for _ in range(least):
            onwards = self.emit(part, onwards)
        return onwards


# --- what a pattern says about the names that it matches --------------------------------------------------------------


def _literal(node: Node) -> int:
    """How many characters a matching name is bound to hold."""
    match node:
        case ("set", mask):
            return int(_character(mask) is not None)
        case ("cat", parts):
            return sum(map(_literal, parts))
        case ("alt", parts):
            return min(map(_literal, parts))
        case ("rep", part, least, _):
            return int(least) * _literal(part)
    return 0


def _character(mask: int) -> str | None:
    """The character that a set holds, in either case; None when it holds several, or none."""
    codes = [code for code in range(128) if mask >> code & 1]
    if len(codes) == 1 or (len(codes) == 2 and chr(codes[0]).lower() == chr(codes[1])):
        return chr(codes[-1])
    return None


def _needs(node: Node) -> tuple[str, bool]:
    """The longest run of characters on the pattern's main line, and whether one of them may have either case."""
    longest, longest_folded = "", False
    run, folded = "", False
    for part in _line(node):
        match part:
            case ("set", mask) if (character := _character(mask)) is not None:
                run += character
                folded = folded or mask & (mask - 1) != 0
                if len(run) > len(longest):
                    longest, longest_folded = run, folded
            case ("look", _):
                pass  # takes no character
            case _:
                run, folded = "", False
    return longest.lower() if longest_folded else longest, longest_folded


def _line(node: Node) -> list[Node]:
    match node:
        case ("cat", parts):
            return [each for part in parts for each in _line(part)]
        case ("rep", part, least, most) if least == most == 1:
            return _line(part)
    return [node]


def _begins(node: Node) -> bool:
    """Whether a match can only begin at the start."""
    match node:
        case ("look", kind):
            return bool(kind == BEGIN)
        case ("cat", parts):
            return bool(parts) and _begins(parts[0])
        case ("alt", parts):
            return all(map(_begins, parts))
    return False


def _ends(node: Node) -> bool:
    match node:
        case ("look", kind):
            return bool(kind == END)
        case ("cat", parts):
            return bool(parts) and _ends(parts[-1])
        case ("alt", parts):
            return all(map(_ends, parts))
    return False
