"""The trust zone: which members of a network are heard when they speak of the ledger (spec/edgevpn.md 13).

Follows EdgeVPN's peer guard and peer gate; where it is stricter, docs/decisions/0015-trust-zone.md says so. Sans-IO.

* :mod:`~provider_kairos.trustzone.keys`: the P-521 key pairs of ``ecdsa-genkey``
* :mod:`~provider_kairos.trustzone.sign`: signatures over a text, EdgeVPN's kind and ours
* :mod:`~provider_kairos.trustzone.challenge`: what a node says to be admitted
* :mod:`~provider_kairos.trustzone.gate`: whose ledger messages are heard
* :mod:`~provider_kairos.trustzone.limits`: how much of strangers' talk is looked at
* :mod:`~provider_kairos.trustzone.model`: records, settings, effects and reasons
* :mod:`~provider_kairos.trustzone.engine`: who challenges, who admits, who is taken off
"""
