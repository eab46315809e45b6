"""How many inputs: 200 an entrance by default, 10,000 with ``--hypothesis-profile nightly`` (``make fuzz``)."""

from hypothesis import HealthCheck, settings

COMMON = {"deadline": None, "suppress_health_check": list(HealthCheck), "print_blob": True}
settings.register_profile("few", max_examples=200, derandomize=True, database=None, **COMMON)
settings.register_profile("nightly", max_examples=10_000, **COMMON)
