"""The Kairos provider: plugin events and the bootstrap loop over the daemon's API (spec/provider.md 1, 3, 4).

Nothing is imported here: :mod:`provider_kairos.provider.plugin` must answer an event in milliseconds.
"""
