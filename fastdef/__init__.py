"""fastdef: a compiled, high-performance defense runtime for image classifiers."""

__version__ = "0.1.0"
