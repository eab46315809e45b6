"""Benchmarks, each answering one question; run from the checkout as ``python -m benchmarks.NAME``."""
