"""The branches of a whole model: lifting its batch norms to K branches, and choosing the ones a batch takes."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastdef.nn._conversions import register_conversion
from fastdef.nn._layers import refuse_hooks
from fastdef.nn._multi_bn import MultiBatchNorm2d
from fastdef.nn._tail import with_tail

_CONVERSIONS = "_fastdef_conversions"  # attribute of a model that build has not made


@register_conversion("multi_bn")
def convert_to_multi_bn(model: nn.Module, branches: int) -> nn.Module:
    """Lift every ``BatchNorm2d`` of ``model`` to K branches that all start as the batch norm they replace.

    In place, unless the model is itself a batch norm. Parameters keep device, dtype and ``requires_grad``, modules
    keep their mode; a batch norm used in two places becomes one K-branch batch norm used in both. Until ``set_branch``
    or ``branch`` says otherwise a batch takes branch 0, so the model answers as it did. A subclass that runs child
    modules after the norm, as timm's ``BatchNormAct2d`` runs its activation, keeps them under their names.

    Args:
        model: any model.
        branches: K, one for each attack strength.

    Returns:
        The model.

    Raises:
        ValueError: if it has no batch norm, or one that is not a ``BatchNorm2d`` with affine and running statistics,
            whose forward does anything but run child modules after the norm, or that has hooks. The model is then
            as it was.
    """
    replacements: dict[nn.Module, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            replacements[module] = _lifted(module, name, branches)
        elif isinstance(module, _BatchNorm):  # its statistics would be those of all segments together
            raise ValueError(
                f"convert_to_multi_bn needs every batch norm to be a BatchNorm2d, got {module} at {name!r}"
            )
    if not replacements:
        raise ValueError(f"convert_to_multi_bn needs a model with a BatchNorm2d, got a {type(model).__name__}")
    refuse_hooks(replacements, where="convert_to_multi_bn")
    model = replace_modules(model, replacements)
    record_conversion(model, name="multi_bn", branches=branches)
    return model


def _lifted(plain: nn.BatchNorm2d, name: str, branches: int) -> MultiBatchNorm2d:
    try:
        return MultiBatchNorm2d.from_batch_norm(plain, branches)
    except ValueError as error:
        raise ValueError(f"convert_to_multi_bn cannot lift {name!r}: {error}") from error


def keep_branch(model: nn.Module, k: int) -> nn.Module:
    """Undo ``convert_to_multi_bn``: a plain ``BatchNorm2d`` with a copy of branch k in place of each K-branch one.

    In place, unless the model is itself a batch norm. What ran after the branches runs after the batch norm.

    Returns:
        The model.

    Raises:
        ValueError: if it has no ``MultiBatchNorm2d``, or one without such a branch or with hooks; nothing changes then.
    """
    layers = _layers(model)
    refuse_hooks(layers, where="keep_branch")
    replacements: dict[nn.Module, nn.Module] = {
        layer: with_tail(layer.to_batch_norm(k), layer.tail()) for layer in layers
    }
    model = replace_modules(model, replacements)
    _keep_conversions(model, [each for each in conversions_of(model) if each["name"] != "multi_bn"])
    return model


def conversions_of(model: nn.Module) -> list[dict[str, Any]]:
    """The conversions that made ``model`` what it is, in order, as an architecture lists them; a copy."""
    architecture = getattr(model, "architecture", None)
    kept = architecture.get("conversions") if isinstance(architecture, dict) else vars(model).get(_CONVERSIONS)
    return copy.deepcopy(list(kept or ()))


def record_conversion(model: nn.Module, **conversion: object) -> None:
    """Note a conversion, so that a model file can list it: in the model's architecture, if ``build`` gave it one."""
    _keep_conversions(model, [*conversions_of(model), conversion])


def _keep_conversions(model: nn.Module, conversions: list[dict[str, Any]]) -> None:
    architecture = getattr(model, "architecture", None)
    if isinstance(architecture, dict):
        architecture["conversions"] = conversions
    else:
        object.__setattr__(model, _CONVERSIONS, conversions)


def replace_modules(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Each module that is a key becomes its value, wherever it occurs; in place, but for the root."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and child in replacements:
                setattr(parent, name, replacements[child])
    return replacements.get(model, model)


def set_branch(model: nn.Module, branches: int | Sequence[int] | None) -> None:
    """Choose which branches the batches of ``model`` take from now on.

    The choice belongs to the model, so it holds for every thread that runs it. A compiled model recompiles once for
    each choice it meets.

    Args:
        model: a model with ``MultiBatchNorm2d`` in it.
        branches: k: the whole batch through branch k; a sequence such as ``range(1, 5)``: a batch of that many
            segments, segment s through the s-th of them; None: a batch of K segments through all K branches.

    Raises:
        ValueError: if the model has no ``MultiBatchNorm2d``, or one without such a branch; nothing changes then.
    """
    choices = {layer: _choice(layer, branches) for layer in _layers(model)}
    for layer, choice in choices.items():
        layer.active = choice


@contextmanager
def branch(model: nn.Module, branches: int | Sequence[int] | None) -> Iterator[None]:
    """``set_branch`` for the length of a ``with`` block; what each layer had before is back at its end.

    Raises:
        ValueError: as ``set_branch`` does.
    """
    former = {layer: layer.active for layer in _layers(model)}
    set_branch(model, branches)
    try:
        yield
    finally:
        for layer, active in former.items():
            layer.active = active


def _layers(model: nn.Module) -> list[MultiBatchNorm2d]:
    layers = [module for module in model.modules() if isinstance(module, MultiBatchNorm2d)]
    if not layers:
        raise ValueError(f"branch needs a model with MultiBatchNorm2d in it, got a {type(model).__name__}")
    return layers


def _choice(layer: MultiBatchNorm2d, branches: int | Sequence[int] | None) -> tuple[int, ...]:
    if branches is None:
        return tuple(range(layer.branches))
    chosen = (branches,) if isinstance(branches, int) else tuple(branches)
    layer.check_branches(chosen)
    return chosen
