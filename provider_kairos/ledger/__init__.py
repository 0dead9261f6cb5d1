"""The replicated ledger: records, blocks, signatures, ownership and merge (spec/edgevpn.md 5, 8.7, 15.3, 17).

Sans-IO: bytes and a :class:`~provider_kairos.clock.Now` go in, effects and values come out. What libp2p carries, what
SQLite keeps and what the API shows is decided by the layers above.

* ``entry``, ``block``, ``gojson``: the wire formats, byte for byte
* ``signing``: Ed25519 signatures over the canonical bytes
* ``policy``: who may write what, as the specification's table
* ``liveness``, ``leader``: who is there, who schedules
* ``records``, ``merge``, ``writer``, ``intents``, ``pacing``, ``reaper``, ``formats``: the engine's parts
* ``engine``: :class:`Ledger`, the whole; ``model`` its settings, effects and results
* ``simulation``: a fake network of ledgers in virtual time
"""
