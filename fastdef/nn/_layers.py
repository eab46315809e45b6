"""Finding a layer by name, watching its output, and checking that this is a feature map."""

import difflib
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

# Hooks are numbered without a lock, and two threads that got one number would overwrite each other's hook.
_REGISTERING = threading.Lock()


def find_layer(model: nn.Module, layer: str, *, where: str) -> nn.Module:
    """The submodule called ``layer``.

    Raises:
        ValueError: listing the nearest names and those at the top level.
    """
    names = {name: module for name, module in model.named_modules(remove_duplicate=False) if name}
    if isinstance(layer, str) and layer in names:  # a file may name it by anything
        return names[layer]
    near = difflib.get_close_matches(str(layer), names, n=3)
    top = ", ".join(name for name, _ in model.named_children())
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise ValueError(
        f"{where} needs a layer of {type(model).__name__}, got {layer!r}; {hint}top level: {top or 'none'}"
    )


def refuse_hooks(modules: Iterable[nn.Module], *, where: str) -> None:
    """Refuse modules that are to be replaced while hooks hang on them, which would be lost in silence.

    Raises:
        ValueError: naming the first.
    """
    for module in modules:
        if module._forward_hooks or module._forward_pre_hooks:
            raise ValueError(f"{where} needs batch norms without forward hooks, got one on {module}; remove it first")


def first_group(model: nn.Module) -> str:
    """The layer whose output the defenses smooth where none is named: that of the model's class, or ``block1``."""
    name = getattr(model, "first_group", None)
    return name if isinstance(name, str) else "block1"


def check_features(output: object, layer: str, *, where: str) -> Tensor:
    """``output`` itself, if it is one (N, ...) tensor.

    Raises:
        ValueError: if it is anything else, saying what.
    """
    if not isinstance(output, Tensor):
        raise ValueError(f"{where} needs a layer that outputs one tensor, but {layer!r} gave a {type(output).__name__}")
    if output.ndim < 2:
        raise ValueError(f"{where} needs (N, ...) features, but {layer!r} gave shape {tuple(output.shape)}")
    return output


@contextmanager
def hooked(layer: nn.Module, hook: Callable[[nn.Module, object, object], None]) -> Iterator[None]:
    """Call ``hook(layer, inputs, output)`` after every forward of ``layer`` inside the ``with``."""
    with _REGISTERING:
        handle = layer.register_forward_hook(hook)
    try:
        yield
    finally:
        with _REGISTERING:
            handle.remove()


def count_calls(model: nn.Module, layer: str, run: Callable[[], object]) -> int:
    """How often ``layer`` is called, in this thread, while ``run`` runs the model."""
    calls, thread = 0, threading.get_ident()

    def count(module: nn.Module, inputs: object, output: object) -> None:
        nonlocal calls
        calls += threading.get_ident() == thread

    with hooked(find_layer(model, layer, where="count_calls"), count):
        run()
    return calls
