"""The raw-path rule and Go's escaping."""

from __future__ import annotations

import pytest

from provider_kairos.api.paths import PathError, quote_segment, route_path
from provider_kairos.errors import LocalError


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"/api/ledger/demo/space%20key", "/api/ledger/demo/space key"),
        (b"/api/ledger/demo/percent%25key", "/api/ledger/demo/percent%key"),
        (b"/api/ledger/demo/%C4%8D", "/api/ledger/demo/č"),
        (b"/a/slash%2Fkey/v", "/a/slash%2Fkey/v"),  # one odd segment, and the whole path stays as it came
        (b"/a/space%20key/v%2Fw", "/a/space%20key/v%2Fw"),
        (b"/a/star*", "/a/star*"),
        (b"/a/%c4%8d", "/a/%c4%8d"),  # Go writes upper-case digits
        (b"/a/plus+key", "/a/plus+key"),
        (b"/a/plus%2Bkey", "/a/plus%2Bkey"),
        (b"/a/%FF", "/a/\udcff"),
        (b"http://other/api/summary", "/api/summary"),
        (b"http://other", "/"),
        (b"*", "*"),
    ],
)
def test_path_as_the_router_sees_it(target: bytes, path: str) -> None:
    assert route_path(target) == (path, "")


def test_query_is_cut_off_before_the_path_rule() -> None:
    assert route_path(b"/a%20b?x=%zz&pretty") == ("/a b", "x=%zz&pretty")


@pytest.mark.parametrize("target", [b"/a%", b"/a%2", b"/a%zz", b"/%%20"])
def test_broken_escapes_are_refused(target: bytes) -> None:
    with pytest.raises(PathError):
        route_path(target)


@pytest.mark.parametrize("text", ["a/b", "", "/"])
def test_what_no_path_can_carry(text: str) -> None:
    with pytest.raises(LocalError):
        quote_segment(text)


def test_odd_keys_are_written_so_that_go_decodes_them() -> None:
    assert quote_segment(r".*\.foo (x)") == ".%2A%5C.foo%20%28x%29"
    assert quote_segment("a:b;c=d@e,f$g&h+i") == "a:b;c=d@e,f$g&h+i"
