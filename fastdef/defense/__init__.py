"""The defenses at test time."""

from fastdef.defense.active import ActiveDefense as ActiveDefense
from fastdef.defense.pipeline import Answer as Answer
from fastdef.defense.results import Defended as Defended
from fastdef.defense.results import Smoothed as Smoothed
from fastdef.runtime.solvers import Gradient as Gradient
from fastdef.runtime.solvers import Polyak as Polyak
