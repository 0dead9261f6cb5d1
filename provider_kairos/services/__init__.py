"""What nodes offer one another over streams: TCP services, files, and the way out to the web (spec/edgevpn.md 8.3-8.5)."""
