"""The mesh daemon: wires ledger, vpn, mesh, dns, api and system together, supervises them, keeps state on disk."""
