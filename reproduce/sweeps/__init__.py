"""Planned sweeps: which parameters of a defense its worth hangs on."""
