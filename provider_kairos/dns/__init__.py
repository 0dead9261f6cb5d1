"""Names on the mesh: DNS records of the ledger, answered on this machine (spec/edgevpn.md 8.6, 10)."""
