"""Training a classifier with a defense."""

from fastdef.training.calibrate import calibrate as calibrate
from fastdef.training.fit import fit as fit
from fastdef.training.hyper import Hyper as Hyper
from fastdef.training.method import Method as Method
from fastdef.training.run import Progress as Progress
from fastdef.training.smoothing import Smoothing as Smoothing
from fastdef.training.smoothing import train_smoothing as train_smoothing
