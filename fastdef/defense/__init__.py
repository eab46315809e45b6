"""The defenses at test time."""

from fastdef.defense.active import ActiveDefense as ActiveDefense
from fastdef.defense.attackable import Attackable as Attackable
from fastdef.defense.baseline import Losses as Losses
from fastdef.defense.baseline import lockstep as lockstep
from fastdef.defense.baseline import whole_network as whole_network
from fastdef.defense.layers import LayerChoice as LayerChoice
from fastdef.defense.layers import choose_layers as choose_layers
from fastdef.defense.noise import MULTIPLIERS as MULTIPLIERS
from fastdef.defense.noise import ROUNDS as ROUNDS
from fastdef.defense.noise import WEYL as WEYL
from fastdef.defense.noise import uniform_noise as uniform_noise
from fastdef.runtime import BatchResult as BatchResult
from fastdef.runtime import Gradient as Gradient
from fastdef.runtime import Polyak as Polyak
from fastdef.runtime import Request as Request
from fastdef.runtime import Result as Result
from fastdef.runtime import Session as Session
