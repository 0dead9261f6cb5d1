"""Benchmarks with their peers: ``python -m bench`` (or ``make bench``) prints the table that the docs quote."""
