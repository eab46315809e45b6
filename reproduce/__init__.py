"""The tables and figures of both papers, by commands of this package, and beside them what the papers have."""
