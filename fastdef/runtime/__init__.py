"""The machine under a defense: steps traced, compiled and cached, slots that run them, and the session above them."""

from fastdef.runtime.cache import StepCache as StepCache
from fastdef.runtime.cache import bucket_sizes as bucket_sizes
from fastdef.runtime.cache import cpu_chunk as cpu_chunk
from fastdef.runtime.cuda_graph import GraphedSlots as GraphedSlots
from fastdef.runtime.drive import in_order as in_order
from fastdef.runtime.drive import run_batch as run_batch
from fastdef.runtime.forward import check_model as check_model
from fastdef.runtime.forward import check_weights as check_weights
from fastdef.runtime.forward import device_and_dtype as device_and_dtype
from fastdef.runtime.forward import forward as forward
from fastdef.runtime.forward import to_device as to_device
from fastdef.runtime.modes import own_modes as own_modes
from fastdef.runtime.pool import Pool as Pool
from fastdef.runtime.pool import Stats as Stats
from fastdef.runtime.requests import BatchResult as BatchResult
from fastdef.runtime.requests import Request as Request
from fastdef.runtime.requests import Result as Result
from fastdef.runtime.session import Program as Program
from fastdef.runtime.session import Session as Session
from fastdef.runtime.slots import Slots as Slots
from fastdef.runtime.solvers import Gradient as Gradient
from fastdef.runtime.solvers import Polyak as Polyak
from fastdef.runtime.solvers import Solver as Solver
from fastdef.runtime.solvers import describe_solver as describe_solver
from fastdef.runtime.solvers import parse_solver as parse_solver
from fastdef.runtime.step import MaskedStep as MaskedStep
