"""The state of a run: one .safetensors with weights, momentum and average, and how far it is. Never a pickle."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastdef.io import atomic_write

FILE = "state.safetensors"


@dataclass
class State:
    """What a run goes on from.

    Attributes:
        epochs: epochs done.
        config: of method, data and hyperparameters.
        figures: of the last epoch.
        tensors: by name.
    """

    epochs: int
    config: dict[str, Any]
    figures: dict[str, float]
    tensors: dict[str, Tensor]

    def write(self, folder: Path) -> None:
        """Write it, whole or not at all.

        Raises:
            ValueError: if it cannot be written.
        """
        from safetensors.torch import save

        content = {name: value.detach().cpu().contiguous().clone() for name, value in self.tensors.items()}
        parts = {"epochs": self.epochs, "config": self.config, "figures": self.figures}
        metadata = {name: json.dumps(value) for name, value in parts.items()}
        with atomic_write(folder / FILE) as temporary:
            temporary.write_bytes(save(content, metadata=metadata))

    @classmethod
    def read(cls, folder: Path) -> "State":
        """Read it back.

        Raises:
            ValueError: if there is none, or it is damaged.
        """
        from safetensors import SafetensorError, safe_open

        path = folder / FILE
        if not path.is_file():
            raise ValueError(f"--resume needs a run that finished an epoch, and there is no {path}")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
                epochs, config, figures = (json.loads(metadata[name]) for name in ("epochs", "config", "figures"))
                return cls(epochs, config, figures, tensors)
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise ValueError(f"{path} is not a whole training state: {' '.join(str(error).split())}") from error


def gather(model: nn.Module, optimizer: torch.optim.Optimizer, average: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every tensor that the next step depends on."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for index, weight in enumerate(optimizer.param_groups[0]["params"]):
        if (buffer := optimizer.state[weight].get("momentum_buffer")) is not None:
            tensors[f"momentum.{index}"] = buffer
    return tensors | {f"average.{name}": value for name, value in average.items()}


def scatter(state: State, model: nn.Module, optimizer: torch.optim.Optimizer, average: dict[str, Tensor]) -> None:
    """Put back what ``gather`` took.

    Raises:
        ValueError: if it is not of such a model.
    """
    try:
        _scatter(state.tensors, model, optimizer, average)
    except (RuntimeError, KeyError) as error:
        raise ValueError(f"--resume needs the state of this model: {' '.join(str(error).split())}") from error


def _scatter(
    tensors: dict[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer, average: dict[str, Tensor]
) -> None:
    model.load_state_dict({name[6:]: value for name, value in tensors.items() if name.startswith("model.")})
    for index, weight in enumerate(optimizer.param_groups[0]["params"]):
        if (buffer := tensors.get(f"momentum.{index}")) is not None:
            # With the weight's layout: a sum in another order would not be the same to the bit.
            optimizer.state[weight]["momentum_buffer"] = torch.empty_like(weight).copy_(buffer)
    for name, value in average.items():
        value.copy_(tensors[f"average.{name}"])
