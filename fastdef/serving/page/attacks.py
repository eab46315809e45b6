"""Attacks for the page: one at a time, each for a few seconds, on the CPU, behind whoever is served."""

import asyncio
import copy
import math
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastdef.attacks import Query, QueryResult, pgd, search, untargeted
from fastdef.defense import ActiveDefense
from fastdef.evaluation.adaptive.bpda import bpda
from fastdef.evaluation.adaptive.noise_seeds import NoiseSeeds, SeedStream
from fastdef.evaluation.adaptive.target import Target
from fastdef.serving.bodies import Refusal

EPS = 8 / 255
SECONDS = 5.0
_DRAWS, _DEPTH, _ITERATIONS, _PATIENCE = 8, 10, 100, 10  # row 3 of the adaptive evaluation, in brief
_FEWEST = 20  # gradients, as many as the static attack takes; of fewer nothing is shown, or the defense would look good


@dataclass(frozen=True)
class Attacked:
    """What an attack made.

    Attributes:
        image: (C, H, W), within 8/255 of the image, in steps of 1/255 as a file has them.
        change: what it added, (C, H, W), -8/255 to 8/255 as 0 to 1.
        gradients: that it took.
        seconds: that it took.
        cut: whether the clock ended it, so that a longer one may go further.
    """

    image: Tensor
    change: Tensor
    gradients: int
    seconds: float
    cut: bool


class Attacker:
    """Attacks a defense's copy on the CPU.

    Args:
        defense: whose weights and parameters the attacker knows; its noise he does not.
        seconds: that the adaptive attack may take.
    """

    def __init__(self, defense: ActiveDefense, seconds: float = SECONDS) -> None:
        model = copy.deepcopy(defense.model).cpu()
        self._defense = ActiveDefense.from_config(model, defense.config(), seed=None, compile=False, slots=_DRAWS)
        self._seconds = seconds
        self._busy = threading.Lock()
        self._thread = ThreadPoolExecutor(1, "fastdef-attack", initializer=_give_way)

    async def attack(self, kind: str, image: Tensor, label: int | None) -> Attacked:
        """Make another class of a (C, H, W) image than ``label``, or than the undefended answer.

        Args:
            kind: "static" knows the model alone, "adaptive" the defense too.
            image: of the model's shape, in [0, 1].
            label: the class to leave.

        Raises:
            ValueError: for another kind.
            Refusal: 503 while another attack runs, and where the machine was too busy for an attack that says anything.
        """
        attacks = {"static": self._static, "adaptive": self._adaptive}
        if kind not in attacks:
            raise ValueError(f"needs an attack among {', '.join(attacks)}, got {kind[:50]!r}")
        if not self._busy.acquire(blocking=False):
            raise self._later("one attack at a time")
        return await asyncio.wrap_future(self._thread.submit(self._run, attacks[kind], image, label))

    def _run(self, attack: Any, image: Tensor, label: int | None) -> Attacked:
        begin = time.monotonic()
        try:
            images = image[None].cpu()
            attacked, gradients, cut = attack(images, self._labels(images, label))
        finally:
            self._busy.release()  # here, where it ends, whether or not anybody still waits
        if cut and gradients < _FEWEST:
            had = f"{gradients} of at least {_FEWEST} gradients in {self._seconds:g} s"
            raise self._later(f"this machine is too busy for an attack: {had}")
        made = (attacked[0] * 255).round() / 255
        return Attacked(made, (made - images[0]) / (2 * EPS) + 0.5, gradients, time.monotonic() - begin, cut)

    def _later(self, reason: str) -> Refusal:
        return Refusal(503, f"{reason}; try again", {"Retry-After": str(math.ceil(self._seconds))})

    @torch.no_grad()
    def _labels(self, images: Tensor, label: int | None) -> Tensor:
        logits = self._defense.model(images)
        if label is not None and not 0 <= label < logits.shape[1]:
            raise ValueError(f"needs a label from 0 to {logits.shape[1] - 1}, got {label}")
        return logits.argmax(1) if label is None else torch.tensor([label])

    def _static(self, images: Tensor, labels: Tensor) -> tuple[Tensor, int, bool]:
        return pgd(self._defense.model, images, labels, eps=EPS, step=2 / 255, steps=20), 20, False

    def _adaptive(self, images: Tensor, labels: Tensor) -> tuple[Tensor, int, bool]:
        """Auto-PGD through the first steps of the loop, over draws of the noise, and the best point when time is up."""
        draws = NoiseSeeds(torch.zeros(1, dtype=torch.int64), SeedStream.ATTACK)
        ask = bpda(Target.defended(self._defense), untargeted(labels), draws, eot=_DRAWS, steps=_DEPTH)
        timed = _Timed(ask, images, self._seconds)
        try:
            search([timed], images, eps=EPS, iterations=_ITERATIONS, patience=_PATIENCE)
            cut = False
        except TimeoutError:
            cut = True
        return timed.best, timed.count, cut


class _Timed:
    """A query that keeps the best point, and ends the search by TimeoutError."""

    def __init__(self, ask: Query, images: Tensor, seconds: float) -> None:
        self._ask, self._until = ask, time.monotonic() + seconds
        self.best, self.count, self._score = images, 0, (-math.inf, -math.inf)

    def __call__(self, x: Tensor, rows: Tensor) -> QueryResult:
        if time.monotonic() > self._until:
            raise TimeoutError
        query = self._ask(x, rows)
        self.count += 1
        score = -float(query.right), float(query.loss)
        if score > self._score:
            self._score, self.best = score, x.detach()
        return query


def _give_way() -> None:
    """Let every other thread go first, where a thread can say so."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
