"""Operations: what a kernel implements on CUDA and plain torch elsewhere, and what all ranks do together."""

from fastdef.kernels.reference import Norm as Norm
from fastdef.ops.afa_fuse import afa_fuse as afa_fuse
from fastdef.ops.joint_batch_norm import joint_batch_norm as joint_batch_norm
from fastdef.ops.smoothing import smoothing_loss as smoothing_loss
from fastdef.ops.smoothing import smoothing_loss_and_field as smoothing_loss_and_field
