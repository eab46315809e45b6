"""Attacks: functions of a model, images and labels that return adversarial images.

Gradients are of the sum over samples, so an image's attack does not depend on its neighbours. Only the input's gradient
is computed, and a model comes back as it was: mode, statistics, gradients.
"""

from fastdef.attacks._adaptive import RATIOS as RATIOS
from fastdef.attacks._adaptive import adaptive_pgd as adaptive_pgd
from fastdef.attacks._apgd import apgd as apgd
from fastdef.attacks._apgd import apgd_targeted as apgd_targeted
from fastdef.attacks._apgd import likeliest as likeliest
from fastdef.attacks._apgd import search as search
from fastdef.attacks._goal import Goal as Goal
from fastdef.attacks._goal import Query as Query
from fastdef.attacks._goal import QueryResult as QueryResult
from fastdef.attacks._goal import predicted as predicted
from fastdef.attacks._goal import targeted as targeted
from fastdef.attacks._goal import untargeted as untargeted
from fastdef.attacks._goal import white_box as white_box
from fastdef.attacks._gradients import GradientRecord as GradientRecord
from fastdef.attacks._gradients import GradientShares as GradientShares
from fastdef.attacks._gradients import health as health
from fastdef.attacks._losses import cross_entropy as cross_entropy
from fastdef.attacks._losses import dlr as dlr
from fastdef.attacks._losses import margin as margin
from fastdef.attacks._losses import probability_margin as probability_margin
from fastdef.attacks._losses import targeted_dlr as targeted_dlr
from fastdef.attacks._model import check_differentiable as check_differentiable
from fastdef.attacks._model import frozen_eval as frozen_eval
from fastdef.attacks._pgd import check_eps as check_eps
from fastdef.attacks._pgd import fgsm as fgsm
from fastdef.attacks._pgd import mifgsm as mifgsm
from fastdef.attacks._pgd import pgd as pgd
from fastdef.attacks._pgd import projected_ascent as projected_ascent
from fastdef.attacks._pgd import step_size as step_size
from fastdef.attacks._rays import rays as rays
from fastdef.attacks._signs import sign_hunter as sign_hunter
