"""A defended classifier with a gradient, for the attack libraries that people have."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import log_softmax

Smooth = Callable[[Tensor, Tensor], Tensor]  # (N, C, H, W) images, (N,) ids of their noise -> smoothed images


class Attackable(nn.Module):
    """Images to logits as the defense answers them, with the straight-through gradient (BPDA, Athalye et al., 2018).

        z(x) = log mean over n of p(S_n(x)),        dz/dx = dz/dt at t = S_n(x), taken for dz/dx

    S_n noises and smooths, with new noise in every call, drawn from torch's generator: ``torch.manual_seed`` repeats a
    run. The weights get no gradient.

    Args:
        model: the classifier.
        smooth: S.
        answers: n that are averaged.
    """

    def __init__(self, model: nn.Module, smooth: Smooth, *, answers: int) -> None:
        super().__init__()
        self.model = model
        self._smooth = smooth
        self._answers = answers
        self.train(False)

    def train(self, mode: bool = True) -> "Attackable":
        """Stays in eval mode, as what is deployed does."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) images, clamped to [0, 1], -> (N, classes) float32 logits: log probabilities."""
        frozen = {name: value.detach() for name, value in self.model.state_dict(keep_vars=True).items()}
        answers = []
        for _ in range(self._answers):
            ids = torch.randint(1 << 62, (len(images),))
            smoothed = self._smooth(images.detach().clamp(0, 1), ids)
            through = images + (smoothed - images).detach()
            answers.append(log_softmax(functional_call(self.model, frozen, (through,)).float(), dim=1))
        return torch.stack(answers).logsumexp(0) - math.log(len(answers))
