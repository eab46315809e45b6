"""What training minimises."""

from fastdef.losses.adversarial import IAT as IAT
from fastdef.losses.adversarial import MART as MART
from fastdef.losses.adversarial import PGDAT as PGDAT
from fastdef.losses.adversarial import RECIPES as RECIPES
from fastdef.losses.adversarial import TRADES as TRADES
from fastdef.losses.adversarial import classification as classification
from fastdef.losses.smoothing import smoothing_penalty as smoothing_penalty
from fastdef.losses.smoothing import smoothness as smoothness
