"""Dual batch norm whose two branches are mixed by a fusing weight of each sample (AFA, stage II)."""

import threading
from typing import Any

from torch import Tensor, nn

from fastdef import ops
from fastdef.nn._tail import Tailed
from fastdef.nn._weight_generator import WeightGenerator


class FusingWeights(threading.local):
    """The fusing weights of one model during one forward; each thread that runs the model has its own.

    A dual batch norm sits deep in code that knows nothing of fusing weights, so they reach it beside the features,
    through this, which all of a model's generators and dual batch norms refer to. torch.compile, torch.export and
    make_fx see a plain data flow in it: what they trace holds no reference to it.

    Attributes:
        fixed: what takes the generators' place in this thread, a number or (N,); None: nothing does.
        weights: the (N,) W0 of each generator that has run so far.
        kept: whether ``weights`` outlives the forward, for a caller who wants to see them.
    """

    def __init__(self) -> None:  # runs once in each thread
        self.fixed: Tensor | None = None
        self.weights: tuple[Tensor, ...] = ()
        self.kept = False

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of a model gets one of its own, empty."""
        return type(self), ()

    def weigh(self, generator: WeightGenerator, features: Tensor) -> Tensor:
        """(N,) W0 of the features, by the generator or fixed."""
        if self.fixed is None:
            return generator(features)
        return self.fixed.expand(features.shape[0]) if self.fixed.ndim == 0 else self.fixed

    def start(self, *_: object) -> None:
        """Forward pre-hook of the model: nothing is left of a forward that was abandoned."""
        self.weights = ()

    # torch.compile(model) makes this a frame of its own, and looks at the .grad of a tensor that is an argument.
    def finish(self, *_: object) -> None:
        """Forward hook of the model: lets go of the weights, and of the autograd graph they hold."""
        if not self.kept:
            self.weights = ()


class AFA2d(Tailed):
    """Dual batch norm in eval mode, out = W0 * BN_0(x) + (1 - W0) * BN_{K-1}(x) (AFA, Eq. 2), and then its tail.

    The two batch norms are frozen: they stay in eval mode when the model trains. Where a sample's W0 comes from is
    what the subclasses say.

    Args:
        bn0: the branch of clean samples.
        bn1: the branch of the strongest attack.
        fusing: the model's, common to all its dual batch norms.

    Raises:
        ValueError: if a batch norm has no affine or no running statistics, or they differ in channels.
    """

    def __init__(self, bn0: nn.BatchNorm2d, bn1: nn.BatchNorm2d, fusing: FusingWeights) -> None:
        super().__init__()
        if bn0.num_features != bn1.num_features:
            raise ValueError(f"AFA2d needs two batch norms of one width, got {bn0.num_features} and {bn1.num_features}")
        for plain in (bn0, bn1):
            if not (plain.affine and plain.track_running_stats):
                raise ValueError(f"AFA2d needs batch norms with affine and running statistics, got {plain}")
        self.bn0 = bn0.requires_grad_(False).eval()
        self.bn1 = bn1.requires_grad_(False).eval()
        self.fusing = fusing

    def fuse(self, x: Tensor, w0: Tensor) -> Tensor:
        """(N, C, H, W) features and (N,) fusing weights -> like the features."""
        return self.run_tail(ops.afa_fuse(x, w0, ops.Norm.of(self.bn0), ops.Norm.of(self.bn1)))

    def train(self, mode: bool = True) -> "AFA2d":
        """As of any module, but for the two batch norms."""
        super().train(mode)
        self.bn0.eval()
        self.bn1.eval()
        return self


class SharedAFA2d(AFA2d):
    """Takes the one W0 that the generator behind the model's stem gave in this forward."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape, dtype and layout."""
        if not self.fusing.weights:
            raise ValueError("a dual batch norm needs the fusing weight of the stem, which this forward did not run")
        return self.fuse(x, self.fusing.weights[0])


class LayerwiseAFA2d(AFA2d):
    """Has a weight generator of its own, on its own input.

    Args:
        bn0: the branch of clean samples.
        bn1: the branch of the strongest attack.
        fusing: the model's, common to all its dual batch norms.
        hidden: width of the generator.
    """

    def __init__(self, bn0: nn.BatchNorm2d, bn1: nn.BatchNorm2d, fusing: FusingWeights, *, hidden: int) -> None:
        super().__init__(bn0, bn1, fusing)
        generator = WeightGenerator(bn0.num_features, hidden=hidden)
        self.weight_generator = generator.to(bn0.weight.device, bn0.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape, dtype and layout."""
        w0 = self.fusing.weigh(self.weight_generator, x)
        self.fusing.weights = (*self.fusing.weights, w0)
        return self.fuse(x, w0)


class SharedWeightGenerator(WeightGenerator):
    """A weight generator that hangs on a convolution and hands W0 to every dual batch norm after it."""

    def __init__(self, in_channels: int, fusing: FusingWeights, *, hidden: int) -> None:
        super().__init__(in_channels, hidden=hidden)
        self.fusing = fusing

    def after_stem(self, stem: nn.Module, inputs: object, features: Tensor) -> None:
        """Forward hook of the stem; a method, so that a copied model's hook belongs to the copy."""
        self.fusing.weights = (self.fusing.weigh(self, features),)
