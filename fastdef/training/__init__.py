"""Training a classifier with a defense."""

from fastdef.training.afa import train_branches as train_branches
from fastdef.training.afa import train_fusing as train_fusing
from fastdef.training.branches import STRENGTHS as STRENGTHS
from fastdef.training.branches import Branches as Branches
from fastdef.training.branches import SequentialBranches as SequentialBranches
from fastdef.training.calibrate import calibrate as calibrate
from fastdef.training.config import TrainConfig as TrainConfig
from fastdef.training.fit import fit as fit
from fastdef.training.fusing import Fusing as Fusing
from fastdef.training.method import Method as Method
from fastdef.training.smoothed import Smoothed as Smoothed
from fastdef.training.smoothing import Smoothing as Smoothing
from fastdef.training.smoothing import train_smoothing as train_smoothing
from fastdef.training.trainer import Progress as Progress
