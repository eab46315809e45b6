"""Active Defense (Algorithm 1): add noise, smooth until the features are smooth enough, then classify."""

import secrets
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from fastdef._validate import check_images, check_positive
from fastdef.checkpoint import Checkpoint
from fastdef.defense.fixed import Fixed
from fastdef.defense.noise import uniform_noise
from fastdef.defense.parameters import (
    OnInvalid,
    check_budgets,
    check_config,
    check_ids,
    check_noise,
    check_parameters,
    check_seed,
)
from fastdef.defense.pipeline import Answer
from fastdef.defense.requests import of_batch, of_stream
from fastdef.defense.results import Defended, Smoothed
from fastdef.defense.runner import answers
from fastdef.nn import prefix
from fastdef.ops import smoothing_loss
from fastdef.runtime.cache import Engine, bucket_sizes
from fastdef.runtime.forward import check_model, check_weights, device_and_dtype, forward, to_device
from fastdef.runtime.scheduler import Start, Tally, run
from fastdef.runtime.slots import Slots
from fastdef.runtime.solvers import Gradient, Solver
from fastdef.runtime.step import MaskedStep

_CONFIGURED = ("layer", "sigma", "beta", "delta", "max_steps", "outer_loops")  # what a model file keeps


class ActiveDefense(nn.Module):
    """A classifier behind Active Defense: images in, logits out.

        t = x + U(-sigma, sigma)
        while L_F(t) > delta:  t = t - beta * dL_F/dt
        classify t

    ``outer_loops`` repeats this and averages the probabilities. An image's answer is a function of the image, its id,
    the seed and these parameters alone; neighbours, batch size, number of slots and order change no more than rounding
    does, and with ``deterministic``, on as many slots, nothing at all. Safe to call from several threads.

    Gradients do not flow through a call; an attacker's gradient is a matter for ``fastdef.evaluation``. ``sigma``,
    ``delta``, ``max_steps``, ``outer_loops`` and ``seed`` may be set later; what the compiled steps hold is fixed.
    They are made anew when the model's weights change; a change through ``weight.data`` goes unnoticed.

    Args:
        model: a classifier, in eval mode, images in [0, 1] to logits.
        layer: name of the submodule whose output is smoothed: a group's raw output, the first one in the paper.
        sigma: half width of the uniform noise, in pixel units.
        beta: step size.
        delta: threshold of L_F; see :meth:`calibrate`.
        max_steps: steps an outer loop may take. Not in the paper, whose loop may not end, and an attacker can aim for
            that; an image that reaches it is flagged.
        outer_loops: R, how often an image is noised, smoothed and classified.
        seed: of the noise. None draws one from the system, so that nobody can predict it.
        solver: step rule, :class:`Gradient` with ``beta`` unless another is given.
        slots: images in flight at once.
        dtype: of the convolutions in the loop. Image, loss and threshold stay float32, and so does the classifier. A
            model in float64 runs in float64 throughout, for reference.
        compile: run the step through torch.compile.
        clamp: keep the image in [0, 1] in every step. Not in the paper.
        deterministic: keep the number of slots while the queue drains, at the price of empty steps, and classify images
            one by one. Then an answer is bitwise the same alone, in any batch and in any order.

    Raises:
        ValueError: for a parameter out of its range, a layer that the model lacks, or weights in half precision.
    """

    layer = Fixed[str]()
    beta = Fixed[float]()
    solver = Fixed[Solver]()
    dtype = Fixed[torch.dtype]()

    def __init__(
        self,
        model: nn.Module,
        layer: str = "block1",
        *,
        sigma: float = 0.075,
        beta: float = 80.0,
        delta: float = 0.0124,
        max_steps: int = 1000,
        outer_loops: int = 1,
        seed: int | None = 0,
        solver: Solver | None = None,
        slots: int = 64,
        dtype: torch.dtype = torch.float32,
        compile: bool = True,
        clamp: bool = False,
        deterministic: bool = False,
    ) -> None:
        super().__init__()
        numbers = {"sigma": sigma, "beta": beta, "delta": delta}
        check_parameters(numbers, {"max_steps": max_steps, "outer_loops": outer_loops, "slots": slots}, dtype)
        check_weights(model)
        self.model = model
        self._layer, self._beta, self._dtype, self._solver = layer, float(beta), dtype, solver or Gradient(float(beta))
        self.sigma, self.delta = float(sigma), float(delta)
        self.max_steps = max_steps
        self.outer_loops = outer_loops
        self.seed = secrets.randbits(63) if seed is None else check_seed(seed)
        self.slots = slots
        self.deterministic = deterministic
        self.sizes = [slots] if deterministic else bucket_sizes(slots)
        self.tally = Tally()
        self._engine = Engine(model, layer, solver=self.solver, dtype=dtype, compile=compile, clamp=clamp)
        self.train(False)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, **options: Any) -> "ActiveDefense":
        """The defense that a model file describes, around its model.

        Args:
            checkpoint: from :func:`fastdef.load`.
            options: keyword arguments of the class that override what the file says.

        Raises:
            ValueError: if the file describes no Active Defense, or its parameters are none.
        """
        return cls(checkpoint.model, **{**check_config(checkpoint.defense, _CONFIGURED), **options})

    def config(self) -> dict[str, Any]:
        """What :func:`fastdef.save` takes as ``defense``, and :meth:`from_checkpoint` reads; a solver is not kept."""
        return {"kind": "active", **{name: getattr(self, name) for name in _CONFIGURED}}

    def train(self, mode: bool = True) -> "ActiveDefense":
        """Stays in eval mode: the defense is defined for a trained classifier."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) images in [0, 1] -> (N, classes) float32 logits, the log of the mean probability."""
        return self.defend(images).logits

    def defend(
        self,
        images: Tensor,
        *,
        ids: Tensor | None = None,
        budgets: Tensor | None = None,
        deadline: float | None = None,
        on_invalid: OnInvalid = "raise",
        progress: Callable[[int], object] | None = None,
    ) -> Defended:
        """Smooth and classify a batch.

        Args:
            images: (N, C, H, W) floats in [0, 1].
            ids: (N,) int64 what each image's noise hangs on; 0 to N - 1 if not given.
            budgets: (N,) int64 steps that each image's outer loops may take, where ``max_steps`` is too much for some.
            deadline: seconds after which an image is classified as it is then.
            on_invalid: what becomes of an image that is not finite or not in [0, 1]: "raise" refuses the batch, "flag"
                answers the others, and this one with ``invalid`` and NaN for logits.
            progress: called with the number of images that have just been answered.

        Raises:
            ValueError: for images that are not that, NaN and Inf included, or ids or budgets that do not fit them.
        """
        most = self.max_steps
        requests = of_batch(
            images, self._place, ids=ids, budgets=budgets, most=most, deadline=deadline, on_invalid=on_invalid
        )
        found = []
        for answer in answers(self, requests):
            found.append(answer)
            if progress is not None:
                progress(1)
        return Defended.of(found)

    def stream(
        self,
        images: Iterable[Tensor],
        *,
        ids: Iterable[int] | None = None,
        deadline: float | None = None,
        on_invalid: OnInvalid = "raise",
    ) -> Iterator[Answer]:
        """Defend images one by one as they come, and yield their answers in order.

        Any length, in bounded memory: images are pulled as slots fall empty. ``deadline`` counts, in seconds, from
        when an image is pulled.

        Args:
            images: (C, H, W) floats in [0, 1], all of one shape.
            ids: of the images; 0, 1, 2, ... if not given.
            deadline: seconds after which an image is classified as it is then.
            on_invalid: as of :meth:`defend`.

        Raises:
            ValueError: at an image that is not that, or has no id.
        """
        return answers(
            self, of_stream(images, self._place, ids=ids, most=self.max_steps, deadline=deadline, on_invalid=on_invalid)
        )

    def smooth(
        self,
        images: Tensor,
        *,
        noise: Tensor | None = None,
        ids: Tensor | None = None,
        budgets: Tensor | None = None,
    ) -> Smoothed:
        """The first outer loop without its classification.

        Args:
            images: (N, C, H, W) floats in [0, 1].
            noise: (N, C, H, W), added in place of the defense's own; zeros for none.
            ids: (N,) int64 what each image's noise hangs on; 0 to N - 1 if not given.
            budgets: (N,) int64 steps that each image may take, where ``max_steps`` is too much for some.

        Raises:
            ValueError: for images that are not that, or noise, ids or budgets that do not fit them.
        """
        check_images(images, where="ActiveDefense.smooth")
        ids = check_ids(ids, len(images))
        placed = self._place(images)
        noisy = placed + (self.noise(ids, 0, placed) if noise is None else check_noise(noise, placed))
        limits = check_budgets(budgets, len(images), self.max_steps)
        starts = (Start(key, image, limit) for key, (image, limit) in enumerate(zip(noisy, limits, strict=True)))
        with self.slots_for(noisy[0]) as lease:
            ends = sorted(run(starts, lease, self.sizes, self.tally), key=lambda end: end.key)
        return Smoothed.of(ends, self.delta)

    def noised(self, images: Tensor, *, ids: Tensor | None = None) -> Tensor:
        """Step 1 alone: the images with the noise that the first outer loop adds to them.

        Args:
            images: (N, C, H, W) floats in [0, 1].
            ids: (N,) int64 what each image's noise hangs on; 0 to N - 1 if not given.

        Raises:
            ValueError: for images that are not that, or ids that do not fit them.
        """
        check_images(images, where="ActiveDefense.noised")
        placed = self._place(images)
        return placed + self.noise(check_ids(ids, len(images)), 0, placed)

    def calibrate(self, images: Tensor, *, ratio: float = 0.92, batch_size: int = 256) -> float:
        """Set delta to ``ratio`` times the mean L_F of clean images, and return it.

        0.92 is the paper's ratio on CIFAR-10: a threshold of 0.0124 where clean test images have 0.0135.

        Args:
            images: (N, C, H, W) clean images in [0, 1], not the ones that will be reported on.
            ratio: delta over the clean mean.
            batch_size: images run at once.

        Raises:
            ValueError: for images that are not that, a ratio that is not above 0, or a model in training mode.
        """
        check_images(images, where="ActiveDefense.calibrate")
        check_positive(ratio, name="ratio", where="ActiveDefense.calibrate")
        check_model(self.model)
        features = prefix(self.model, self.layer)
        chunks = images.split(batch_size)
        losses = torch.cat([smoothing_loss(forward(features, self._place(chunk))) for chunk in chunks])
        self.delta = ratio * float(losses.double().mean())
        return self.delta

    def slots_for(self, image: Tensor) -> AbstractContextManager[Callable[[int], Slots]]:
        """Lease slots by size, for images like ``image`` (C, H, W): what the scheduler and the benchmarks run on."""
        check_model(self.model)
        return self._engine.lease(self._place(image), self.delta)

    def masked_step(self, like: Tensor) -> MaskedStep:
        """One step for a batch like ``like`` (N, C, H, W), traced and not compiled: what an exporter takes."""
        check_model(self.model)
        return self._engine.step(torch.zeros_like(self._place(like)))

    def extra_repr(self) -> str:
        """The parameters, as in the paper."""
        return (
            f"layer={self.layer!r}, sigma={self.sigma}, beta={self.beta}, delta={self.delta:.6g}, "
            f"max_steps={self.max_steps}, outer_loops={self.outer_loops}"
        )

    def noise(self, ids: Tensor, loop: int, like: Tensor) -> Tensor:
        """(N, C, H, W) noise of an outer loop for images like ``like``, by their (N,) ids."""
        ids = to_device(ids, like.device)
        return uniform_noise(ids, torch.full_like(ids, loop), like.shape[1:], seed=self.seed, sigma=self.sigma)

    def halve_slots(self) -> None:
        """Go on with half the slots, for good: what the memory cannot hold now it will not hold later. Warns."""
        self.slots //= 2
        self.sizes = [self.slots] if self.deterministic else bucket_sizes(self.slots)
        self._engine.forget()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        warnings.warn(f"out of memory: going on with {self.slots} slots", RuntimeWarning, stacklevel=2)

    def _place(self, images: Tensor) -> Tensor:
        device, precision = device_and_dtype(self.model)
        return to_device(images.detach().to(precision), device)
