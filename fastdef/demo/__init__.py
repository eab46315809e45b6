"""The demo: a shipped classifier attacked, defended and timed on shipped images. It trains nothing."""

from fastdef.demo.figure import draw as draw
from fastdef.demo.run import Demo as Demo
from fastdef.demo.run import run as run
