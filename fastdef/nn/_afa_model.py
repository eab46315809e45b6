"""AFA over a whole model: from K branches to two and a weight generator, and the fusing weights seen or set."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fastdef.nn._afa import AFA2d, FusingWeights, LayerwiseAFA2d, SharedAFA2d, SharedWeightGenerator
from fastdef.nn._branches import record_conversion, replace_modules
from fastdef.nn._conversions import register_conversion
from fastdef.nn._layers import find_layer, refuse_hooks
from fastdef.nn._multi_bn import MultiBatchNorm2d
from fastdef.nn._weight_generator import WeightGenerator

_Dual = Callable[[nn.BatchNorm2d, nn.BatchNorm2d], AFA2d]


@register_conversion("afa")
def convert_to_afa(model: nn.Module, *, placement: str = "shared", stem: str = "conv1", hidden: int = 32) -> nn.Module:
    """Turn a model of stage I into one of stage II: branches 0 and K - 1 remain, mixed by a generated weight.

    In place. All that stage I trained is frozen, and its batch norms stay in eval mode when the model trains; the
    weight generators are new, and all that trains. Names of layers stay, so ``prefix`` and ``tap`` find them.

    Threads may run the model at once, in eager mode and compiled. It compiles into one graph, exports, and traces.
    A part of a ``shared`` model called without its stem raises; activation checkpointing is such a call.

    Args:
        model: lifted by ``convert_to_multi_bn`` and trained.
        placement: "shared": one generator, on the output of the stem, whose W0 every dual batch norm uses;
            "layerwise": each dual batch norm has a generator on its own input. The paper says one in its Fig. 6 and
            its adaptive attack, the other in its Fig. 4.
        stem: for "shared", the name of the convolution that runs before every batch norm.
        hidden: width of the generators.

    Returns:
        The model.

    Raises:
        ValueError: if the model has no ``MultiBatchNorm2d``, or one with a single branch or with hooks; if the
            placement is neither, or the stem is no ``Conv2d``.
    """
    branched = [module for module in model.modules() if isinstance(module, MultiBatchNorm2d)]
    if not branched or min(module.branches for module in branched) < 2:
        raise ValueError("convert_to_afa needs a model that convert_to_multi_bn gave two branches or more")
    if placement not in _PLACEMENTS:
        raise ValueError(f"convert_to_afa needs a placement out of {', '.join(_PLACEMENTS)}, got {placement!r}")
    refuse_hooks(branched, where="convert_to_afa")
    fusing = FusingWeights()
    model = _PLACEMENTS[placement](model, branched, fusing, stem, hidden)
    model.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, WeightGenerator):
            module.requires_grad_(True)
    model.register_forward_pre_hook(fusing.start)
    model.register_forward_hook(fusing.finish)
    record_conversion(model, name="afa", placement=placement, stem=stem, hidden=hidden)
    return model


def fusing_weights(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and fusing weights of one forward, both with their gradients: what an adaptive attack asks for.

    Args:
        model: made by ``convert_to_afa``.
        images: (N, C, H, W) in [0, 1].

    Returns:
        (N, num_classes) logits, and (N, L) W0 in float32: L is 1 where the placement is "shared", else the number of
        dual batch norms, in the order they ran.

    Raises:
        ValueError: if the model has no dual batch norm.
    """
    fusing = _fusing(model, where="fusing_weights")
    fusing.kept = True
    try:
        logits = model(images)
        return logits, torch.stack(fusing.weights, 1)
    finally:
        fusing.kept = False
        fusing.weights = ()


@contextmanager
def fixed_fusing_weight(model: nn.Module, w0: float | Tensor) -> Iterator[None]:
    """Inside the ``with``, this thread's forwards of ``model`` use ``w0`` in place of what its generators say.

    At 1 the model is branch 0 of stage I, at 0 branch K - 1, between them a fixed blend. Other threads do not notice.

    Args:
        model: made by ``convert_to_afa``.
        w0: a number in [0, 1] or an (N,) tensor of them, which may require a gradient.

    Raises:
        ValueError: if the model has no dual batch norm, or ``w0`` is neither.
    """
    fusing = _fusing(model, where="fixed_fusing_weight")
    if not isinstance(w0, Tensor):
        if not 0.0 <= w0 <= 1.0:
            raise ValueError(f"fixed_fusing_weight needs W0 in [0, 1], got {w0}")
        w0 = torch.tensor(float(w0), device=next(model.parameters()).device)
    if w0.ndim > 1:
        raise ValueError(f"fixed_fusing_weight needs W0 as a number or (N,), got shape {tuple(w0.shape)}")
    former, fusing.fixed = fusing.fixed, w0
    try:
        yield
    finally:
        fusing.fixed = former


def routing_state(model: nn.Module) -> tuple[object, ...]:
    """What ``set_branch``, ``branch`` and ``fixed_fusing_weight`` have chosen for this thread's forwards of ``model``.

    Hashable, and equal as long as the choices are: what was traced, compiled or measured under other choices is of
    another function.
    """
    branches = [module.active for module in model.modules() if isinstance(module, MultiBatchNorm2d)]
    fusing = {id(module.fusing): module.fusing for module in model.modules() if isinstance(module, AFA2d)}
    # By value: a number gets a new tensor each time, which may lie where the former one lay.
    fixed = [None if each.fixed is None else tuple(each.fixed.flatten().tolist()) for each in fusing.values()]
    return *branches, *fixed


def _shared(
    model: nn.Module, branched: list[MultiBatchNorm2d], fusing: FusingWeights, stem: str, hidden: int
) -> nn.Module:
    convolution = find_layer(model, stem, where="convert_to_afa")
    if not isinstance(convolution, nn.Conv2d):
        raise ValueError(f"convert_to_afa needs a stem that is a Conv2d, got {convolution} at {stem!r}")
    generator = SharedWeightGenerator(convolution.out_channels, fusing, hidden=hidden)
    # A child of the stem: a model that runs its children in order, as nn.Sequential does, must not run it too.
    generator = generator.to(convolution.weight.device, convolution.weight.dtype).train(convolution.training)
    convolution.add_module("weight_generator", generator)
    convolution.register_forward_hook(generator.after_stem)
    return _fused(model, branched, lambda bn0, bn1: SharedAFA2d(bn0, bn1, fusing))


def _layerwise(
    model: nn.Module, branched: list[MultiBatchNorm2d], fusing: FusingWeights, stem: str, hidden: int
) -> nn.Module:
    return _fused(model, branched, lambda bn0, bn1: LayerwiseAFA2d(bn0, bn1, fusing, hidden=hidden))


def _fused(model: nn.Module, branched: list[MultiBatchNorm2d], dual: _Dual) -> nn.Module:
    fused: dict[nn.Module, nn.Module] = {}
    for module in branched:
        layer = dual(module.to_batch_norm(0), module.to_batch_norm(module.branches - 1))
        layer.adopt(module.tail())
        fused[module] = layer.train(module.training)
    return replace_modules(model, fused)


def _fusing(model: nn.Module, *, where: str) -> FusingWeights:
    for module in model.modules():
        if isinstance(module, AFA2d):
            return module.fusing
    raise ValueError(f"{where} needs a model made by convert_to_afa, got a {type(model).__name__} that was not")


_PLACEMENTS: dict[str, Callable[..., nn.Module]] = {"shared": _shared, "layerwise": _layerwise}
