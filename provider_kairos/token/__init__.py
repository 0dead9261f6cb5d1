"""The network token: its text, the values that rotate out of it, sealing and the message envelope.

Follows spec/edgevpn.md sections 1-3 and 17. Pure functions and frozen values: no socket, clock or file. Import the
modules; nothing heavy is imported here.

* :mod:`~provider_kairos.token.codec`: base64(YAML) to ``NetworkToken`` and back, with errors that name the field
* :mod:`~provider_kairos.token.yaml_scalars`: the odd spellings that Go's YAML accepts
* :mod:`~provider_kairos.token.otp`: codes, and the topic, seal key and rendezvous of an epoch
* :mod:`~provider_kairos.token.seal`: AES-256-GCM as EdgeVPN seals
* :mod:`~provider_kairos.token.envelope`: the JSON object around a sealed text
* :mod:`~provider_kairos.token.gojson`: JSON exactly as Go prints it
"""
