"""Benchmarks that a user may run on their own machine and model; ``benchmarks/`` runs them from the checkout."""
