"""The rows of the suite, one file each: what they attack with, as cases."""
