"""What peers send never stays in a cache because of its size."""

from __future__ import annotations

import gc
import weakref

import pytest

from provider_kairos.ledger import entry as entries
from provider_kairos.ledger import signing
from provider_kairos.ledger.entry import REMEMBERED, Entry, render, to_json
from provider_kairos.ledger.signing import Signer, verify

A = Signer(b"a" * 32)


@pytest.fixture(autouse=True)
def _empty_caches():
    # what other tests left may have filled them, and a full cache does not grow
    for cache in (signing._verify_remembered, entries._to_json_remembered, entries._render_remembered):
        cache.cache_clear()
    signing._public_key.cache_clear()


def sizes():
    return (
        signing._verify_remembered.cache_info().currsize,
        entries._to_json_remembered.cache_info().currsize,
        entries._render_remembered.cache_info().currsize,
    )


def test_large_entries_are_judged_and_rendered_and_not_remembered():
    before = sizes()
    large = A.sign("b", "k", '"' + "x" * REMEMBERED + '"', 5, 6)
    assert verify("b", "k", large)
    assert not verify("b", "other", large)
    assert to_json(large).startswith('{"Value":')
    assert render(large).startswith('{"xxx')
    assert verify("k" * REMEMBERED, "k", A.sign("k" * REMEMBERED, "k", "1", 5, 6))
    assert sizes() == before
    small = A.sign("b", "never-seen-before", '"x"', 5, 6)
    verify("b", "never-seen-before", small)
    assert sizes()[0] == before[0] + 1


def test_an_owner_of_any_length_is_no_owner_and_is_not_remembered():
    before = signing._public_key.cache_info().currsize
    assert not verify("b", "k", Entry("1", "1" * 5_000_000, 5, 6, sig=b"x" * 64))
    assert not verify("b", "k", Entry("1", A.peer_id + "x" * 200, 5, 6, sig=b"x" * 64))
    assert signing._public_key.cache_info().currsize == before


def test_a_large_entry_is_freed():
    class Text(str):
        __slots__ = ("__weakref__",)

    text = Text("x" * (REMEMBERED + 1))
    seen = weakref.ref(text)
    large = Entry(text, A.peer_id, 5, 6, sig=b"x" * 64)
    verify("b", "k", large)
    to_json(large)
    render(large)
    del text, large
    gc.collect()
    assert seen() is None
