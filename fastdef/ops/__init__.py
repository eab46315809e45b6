"""Operations that a kernel implements on CUDA and plain torch elsewhere."""

from fastdef.ops.afa_fuse import afa_fuse as afa_fuse
from fastdef.ops.smoothing import smoothing_loss as smoothing_loss
from fastdef.ops.smoothing import smoothing_loss_and_field as smoothing_loss_and_field
