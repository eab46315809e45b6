"""An exponential moving average of the weights, which is often the better model than the last step's."""

import torch
from torch import nn


class EMA:
    """The average of a model's weights over the last 1 / (1 - decay) steps or so.

    Buffers are copied: running statistics of these weights are not averages of those of others, and are estimated
    anew, see ``Method.update_bn``.

    Args:
        model: whose state is followed; its tensors must stay where they are.
        decay: share of the average that a step keeps. Early on it is less, (1 + step) / (10 + step), so that the
            initial weights are soon forgotten.

    Attributes:
        tensors: by name, as in the model's state dict.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        weights = {name for name, _ in model.named_parameters()}
        state = model.state_dict()
        self.tensors = {name: value.clone() for name, value in state.items()}
        self._weights = [(self.tensors[name], value) for name, value in state.items() if name in weights]
        self._others = [(self.tensors[name], value) for name, value in state.items() if name not in weights]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after ``step``, counted from 0 over the whole run."""
        share = 1 - min(self._decay, (1 + step) / (10 + step))
        averages, weights = zip(*self._weights, strict=True)
        torch._foreach_lerp_(averages, weights, share)
        for average, value in self._others:
            average.copy_(value)
