"""Mutation testing by cosmic-ray, in forks; see ``__main__``."""
