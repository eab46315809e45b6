"""The shipped models and images, and where they lie."""

from pathlib import Path

ASSETS = Path(__file__).parent
