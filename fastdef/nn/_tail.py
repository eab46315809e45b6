"""What a subclass of ``BatchNorm2d`` runs after the norm, such as an activation: found by trial, kept as children."""

import copy
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn


class Tailed(nn.Module):
    """A norm that may have a tail: modules that run in order on what the norm gives.

    They are children under the names they had, so layers keep their names and a state dict its keys.
    """

    tail_names: tuple[str, ...] = ()

    def adopt(self, tail: Mapping[str, nn.Module]) -> None:
        """Take the modules of ``tail_of`` as children.

        Raises:
            ValueError: if one has a name that the layer uses itself.
        """
        for name, module in tail.items():
            if hasattr(self, name):
                raise ValueError(f"{type(self).__name__} needs the name {name!r} for itself, got a module called so")
            self.add_module(name, module)
        self.tail_names = tuple(tail)

    def run_tail(self, out: Tensor) -> Tensor:
        """What the norm gave -> what the layer gives."""
        for name in self.tail_names:
            out = self.get_submodule(name)(out)
        return out

    def tail(self) -> dict[str, nn.Module]:
        """The modules by name, in the order they run."""
        return {name: self.get_submodule(name) for name in self.tail_names}


class TailedBatchNorm2d(Tailed, nn.BatchNorm2d):
    """A plain ``BatchNorm2d``, and then its tail."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> what the tail makes of it."""
        return self.run_tail(super().forward(x))


def tail_of(plain: nn.BatchNorm2d) -> Mapping[str, nn.Module]:
    """The children that ``plain`` runs after the norm; none, for a ``BatchNorm2d`` that is just that.

    A subclass whose forward is its own is run on a copy, in both modes and in float64. It has to give what a
    ``BatchNorm2d`` and then its children, one after another, give, and the same running statistics.

    Raises:
        ValueError: if it gives anything else.
    """
    kind = type(plain)
    if kind.forward is nn.BatchNorm2d.forward and "forward" not in vars(plain):
        return {}
    if not _is_norm_then_children(plain):
        raise ValueError(
            f"a {kind.__module__}.{kind.__qualname__} needs to be a batch norm that runs its child modules in order "
            "after the norm, got a forward that does something else; move that into child modules"
        )
    return dict(plain.named_children())


def with_tail(plain: nn.BatchNorm2d, tail: Mapping[str, nn.Module]) -> nn.BatchNorm2d:
    """``plain`` itself, which from now on runs ``tail`` after the norm."""
    if tail:
        plain.__class__ = TailedBatchNorm2d
        cast(TailedBatchNorm2d, plain).adopt(tail)
    return plain


def _is_norm_then_children(plain: nn.BatchNorm2d) -> bool:
    channels = plain.num_features
    try:
        own = _specimen(plain)
        ours = TailedBatchNorm2d(channels, eps=plain.eps, momentum=plain.momentum, device="cpu").double()
        ours.adopt(dict(_specimen(plain).named_children()))
        ours.load_state_dict(own.state_dict())
        x = torch.arange(36.0 * channels, dtype=torch.float64, device="cpu").sin().mul(3).view(4, channels, 3, 3)
        return all(_same(own.train(mode), ours.train(mode), x) for mode in (True, False))
    except Exception:  # a stranger's forward may raise anything, and then it is not what we look for
        return False


def _same(own: nn.Module, ours: nn.Module, x: Tensor) -> bool:
    outputs = []
    for module in (own, ours):
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # a dropout in the tail
            outputs.append(module(x.clone()))
    states = own.state_dict(), ours.state_dict()
    return torch.allclose(*outputs) and all(torch.allclose(states[0][key], states[1][key]) for key in states[1])


def _specimen(plain: nn.BatchNorm2d) -> nn.BatchNorm2d:
    """A copy in float64 on the CPU with values that tell; the model may be on the meta device, and has none."""
    specimen = copy.deepcopy(plain).to_empty(device="cpu").double()
    for value in specimen.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.linspace(0.5, 1.5, value.numel(), dtype=value.dtype, device="cpu").view(value.shape))
        else:
            value.zero_()
    return specimen
