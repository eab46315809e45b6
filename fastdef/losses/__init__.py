"""What training minimises."""

from fastdef.losses.smoothing import smoothing_penalty as smoothing_penalty
from fastdef.losses.smoothing import smoothness as smoothness
