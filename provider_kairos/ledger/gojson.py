"""JSON text exactly as Go prints it; lives in :mod:`provider_kairos.token.gojson`, because envelopes need it too."""

from provider_kairos.token.gojson import dumps, loads, quote, sorted_keys

__all__ = ["dumps", "loads", "quote", "sorted_keys"]
