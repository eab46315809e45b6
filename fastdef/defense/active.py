"""Active Defense (Algorithm 1): add noise, smooth until the features are smooth enough, then classify."""

import copy
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, repeat
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fastdef._validate import check_count, check_images, check_positive
from fastdef.checkpoint import Checkpoint
from fastdef.defense.attackable import Attackable
from fastdef.defense.layers import choose_layers
from fastdef.defense.parameters import (
    Fixed,
    OnInvalid,
    check_budgets,
    check_config,
    check_id,
    check_noise,
    check_parameters,
    images_of,
    sanitize_images,
)
from fastdef.defense.precision import JUDGED, agrees, check_agreed, choose_dtype
from fastdef.defense.seeded import SeededNoise
from fastdef.nn import first_group, prefix
from fastdef.ops import smoothing_loss
from fastdef.runtime import (
    BatchResult,
    Gradient,
    MaskedStep,
    Program,
    Request,
    Result,
    Session,
    Slots,
    Solver,
    Stats,
    StepCache,
    check_model,
    check_weights,
    describe_solver,
    device_and_dtype,
    forward,
    in_order,
    own_modes,
    parse_solver,
    run_batch,
    to_device,
)

_CONFIGURED = ("layer", "sigma", "beta", "delta", "max_steps", "outer_loops")  # what a model file keeps
_WHERE_UNUSUAL = ("clamp", "solver", "bfloat16")  # and that, where it is not the paper's, or was asked for


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
    They are made anew when the model's weights have changed since the last call. A copy or an unpickled defense makes
    its own; with ``seed=None`` its noise is its own too. ``torch.compile`` around a defense changes nothing.

    Args:
        model: a classifier, in eval mode, images in [0, 1] to logits.
        layer: name of the submodule whose output is smoothed: a group's raw output, the first one in the paper and
            where None is given.
        sigma: half width of the uniform noise, in pixel units.
        beta: step size.
        delta: threshold of L_F; see :meth:`calibrate`.
        max_steps: steps an outer loop may take. Not in the paper, whose loop may not end, and an attacker can aim for
            that; an image that reaches it is flagged.
        outer_loops: R, how often an image is noised, smoothed and classified.
        seed: of the noise. None draws one from the system, so that nobody can predict it, and images that are given
            no id get one that no image had before: the same image asked twice meets new noise.
        solver: step rule, :class:`Gradient` with ``beta`` unless another is given.
        slots: images in flight at once.
        dtype: of the networks' weights and activations, in the loop and in the classifier: float32, float16, bfloat16,
            or "auto": bfloat16 once :meth:`calibrate` has seen that it decides as float32 does, where the device has
            instructions for it, and float32 until then. Image, loss, threshold and logits stay float32. A model in
            float64 runs in float64 throughout, for reference.
        compile: run the step through torch.compile, and the classifier where it is in 16 bit.
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
    clamp = Fixed[bool]()

    def __init__(
        self,
        model: nn.Module,
        layer: str | None = None,
        *,
        sigma: float = 0.075,
        beta: float = 80.0,
        delta: float = 0.0124,
        max_steps: int = 1000,
        outer_loops: int = 1,
        seed: int | None = 0,
        solver: Solver | None = None,
        slots: int = 64,
        dtype: torch.dtype | Literal["auto"] = torch.float32,
        compile: bool = True,
        clamp: bool = False,
        deterministic: bool = False,
    ) -> None:
        super().__init__()
        numbers = {"sigma": sigma, "beta": beta, "delta": delta}
        check_parameters(numbers, {"max_steps": max_steps, "outer_loops": outer_loops, "slots": slots}, dtype)
        check_weights(model)
        self.model = model
        layer = first_group(model) if layer is None else layer
        self._layer, self._beta, self._clamp = layer, float(beta), clamp
        self._chooses = dtype == "auto"
        self._agreed: bool | None = None  # bfloat16 with float32, where that was seen
        self._dtype = torch.float32 if dtype == "auto" else dtype
        self._solver = solver or Gradient(float(beta))
        self.sigma, self.delta = float(sigma), float(delta)
        self.max_steps = max_steps
        self.outer_loops = outer_loops
        self.seed = seed
        self.deterministic = deterministic
        self.stats = Stats()
        self._steps = StepCache(
            model,
            layer,
            solver=self.solver,
            dtype=self._dtype,
            compile=compile,
            clamp=self.clamp,
            slots=slots,
            shrinks=not deterministic,
        )
        self.train(False)

    @property
    def seed(self) -> int:
        """Of the noise; None sets one from the system."""
        return self._noise.seed

    @seed.setter
    def seed(self, seed: int | None) -> None:
        self._noise = SeededNoise(seed)

    @property
    def slots(self) -> int:
        """Images in flight at once; fewer than at first where the memory did not hold them."""
        return self._steps.slots

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, **options: Any) -> "ActiveDefense":
        """The defense that a model file describes, around its model.

        Args:
            checkpoint: from :func:`fastdef.load`.
            options: keyword arguments of the class that override what the file says.

        Raises:
            ValueError: if the file describes no Active Defense, or its parameters are none.
        """
        return cls.from_config(checkpoint.model, checkpoint.defense, **options)

    @classmethod
    def from_config(cls, model: nn.Module, config: dict[str, Any] | None, **options: Any) -> "ActiveDefense":
        """The defense that :meth:`config` described, around a model; as :meth:`from_checkpoint`."""
        described = check_config(config, (*_CONFIGURED, *_WHERE_UNUSUAL))
        if "solver" in described:
            described["solver"] = parse_solver(described["solver"])
            if "beta" in options and "solver" not in options:  # it would do nothing
                there = f"the file's {described['solver']} takes no beta"
                raise ValueError(f"ActiveDefense needs the solver gradient beside a beta, and {there}; give both")
        agreed = check_agreed(described.pop("bfloat16", None))
        defense = cls(model, **{**described, **options})
        if options.keys() & {*_CONFIGURED, *_WHERE_UNUSUAL}:
            agreed = None  # it was seen with other parameters
        defense._settle(agreed)
        return defense

    @classmethod
    def auto(cls, model: nn.Module, images: Tensor, *, ratio: float = 0.92, **options: Any) -> "ActiveDefense":
        """A defense whose layer, step size and threshold are chosen by clean images.

        The layer is the first of :func:`choose_layers`, beta is the paper's 80 scaled by its size M, and delta is
        calibrated. Whether it helps against an attack, ``fastdef evaluate-adaptive`` says.

        Args:
            model: a classifier, in eval mode.
            images: (N, C, H, W) clean images in [0, 1], two or more; not the ones that will be reported on.
            ratio: delta over the clean mean of L_F.
            options: keyword arguments of the class; ``layer``, ``beta`` or ``delta`` among them are not chosen.

        Raises:
            ValueError: for images that are not that, or a model without a layer to smooth.
        """
        chosen = choose_layers(model, images, sigma=options.get("sigma", 0.075))
        if (layer := options.get("layer")) is not None:
            chosen = [choice for choice in chosen if choice.name == layer]
        suggested = {"layer": chosen[0].name, "beta": chosen[0].beta} if chosen else {}
        defense = cls(model, **{**suggested, **options})
        if "delta" not in options:
            defense.calibrate(images, ratio=ratio)
        return defense

    def config(self) -> dict[str, Any]:
        """What :func:`fastdef.save` takes as ``defense``, and :meth:`from_checkpoint` reads.

        Raises:
            ValueError: for a solver of the caller's own, which a file cannot hold.
        """
        unusual: dict[str, Any] = {"clamp": True} if self.clamp else {}
        if self._agreed is not None:
            unusual["bfloat16"] = self._agreed
        if self.solver != Gradient(self.beta):
            unusual["solver"] = describe_solver(self.solver)
        return {"kind": "active", **{name: getattr(self, name) for name in _CONFIGURED}, **unusual}

    def train(self, mode: bool = True) -> "ActiveDefense":
        """Stays in eval mode: the defense is defined for a trained classifier."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) images in [0, 1] -> (N, classes) float32 logits, the log of the mean probability."""
        if torch.compiler.is_dynamo_compiling():  # what there is to compile, the defense compiles
            return torch.compiler.disable(self.defend)(images).logits
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
    ) -> BatchResult:
        """Smooth and classify a batch.

        Args:
            images: (N, C, H, W) floats in [0, 1].
            ids: (N,) int64 what each image's noise hangs on. If not given: 0 to N - 1, and with ``seed=None`` such that
                no image had before.
            budgets: (N,) int64 steps that each image's outer loops may take, where ``max_steps`` is too much for some.
            deadline: seconds after which an image is classified as it is then; one whose smoothing had not begun is
                not: its logits are NaN, and ``started`` is False.
            on_invalid: what becomes of an image that is not finite or not in [0, 1]: "raise" refuses the batch, "flag"
                answers the others, and this one with ``invalid`` and NaN for logits.
            progress: called with the number of images that have just been answered.

        Raises:
            ValueError: for images that are not that, NaN and Inf included, or ids or budgets that do not fit them.
        """
        images, valid = sanitize_images(images, on_invalid, where="ActiveDefense")
        requests = self._requests(images, ids, budgets, valid, until=_after(deadline))
        return run_batch(self.session(), requests, progress)

    def stream(
        self,
        images: Iterable[Tensor],
        *,
        ids: Iterable[int] | None = None,
        deadline: float | None = None,
        on_invalid: OnInvalid = "raise",
    ) -> Iterator[Result]:
        """Defend images one by one as they come, and yield their results in order.

        Any length, in bounded memory: images are pulled as slots fall empty. ``deadline`` counts, in seconds, from
        when an image is pulled.

        Args:
            images: (C, H, W) floats in [0, 1], all of one shape.
            ids: of the images. If not given: 0, 1, 2, ..., and with ``seed=None`` such that no image had before.
            deadline: as of :meth:`defend`.
            on_invalid: as of :meth:`defend`.

        Raises:
            ValueError: at an image that is not that, or has no id; after the results of those before it, as whatever
                ``images`` itself raises.
        """
        check_model(self.model)  # before an image is pulled
        where = "ActiveDefense.stream"
        numbers: Iterator[int | None] = repeat(None) if ids is None else map(check_id, ids)

        def requests() -> Iterator[Request]:
            for image, valid in images_of(images, on_invalid, where=where):
                try:
                    number = next(numbers)
                except StopIteration:
                    raise ValueError(f"{where} needs an id for every image, got more images than ids") from None
                yield Request(image, number, deadline=_after(deadline), valid=valid)

        source = requests()
        first = next(source, None)
        if first is not None:
            yield from in_order(self.session(), chain([first], source))

    def smooth(
        self,
        images: Tensor,
        *,
        noise: Tensor | None = None,
        ids: Tensor | None = None,
        budgets: Tensor | None = None,
    ) -> BatchResult:
        """The first outer loop without its classification: ``logits`` are (N, 0).

        Args:
            images: (N, C, H, W) floats in [0, 1].
            noise: (N, C, H, W), added in place of the defense's own; zeros for none.
            ids: as of :meth:`defend`.
            budgets: (N,) int64 steps that each image may take, where ``max_steps`` is too much for some.

        Raises:
            ValueError: for images that are not that, or noise, ids or budgets that do not fit them.
        """
        images = check_images(images, where="ActiveDefense.smooth")
        added = None if noise is None else check_noise(noise, images)
        requests = self._requests(images, ids, budgets, [True] * len(images), noise=added)
        return run_batch(self._session(None, 1), requests)

    def attackable(self, gradient: Literal["bpda"] = "bpda", *, samples: int = 1) -> Attackable:
        """This defense as a module that torchattacks, Foolbox, ART and AutoAttack (``rand``) can attack.

        It answers as deployed, with new noise in every call, but by a classifier in float32, and gives the
        straight-through gradient. That is the *weakest* adaptive attack: a library's attack on it is an upper bound of
        what the defense is worth, and AutoAttack's ``standard`` version is not meant for what is random. ``fastdef
        evaluate-adaptive`` does more.

        Args:
            gradient: "bpda": the smoothing's is taken for the identity's.
            samples: answers that are averaged, of ``outer_loops`` each: expectation over the noise.

        Raises:
            ValueError: for another gradient, or no sample.
        """
        if gradient != "bpda":
            raise ValueError(f'attackable needs gradient="bpda", got {gradient!r}')
        check_count(samples, name="samples", where="attackable")

        def smooth(images: Tensor, ids: Tensor) -> Tensor:
            return self.smooth(images, ids=ids).images.to(images)

        return Attackable(self.model, smooth, answers=samples * self.outer_loops)

    def session(self, *, classify_batch: int | None = None, quantum: int | None = None) -> Session:
        """What :meth:`defend`, :meth:`stream` and a server run on: requests in, results out, one look at a time.

        All of its images have one shape.

        Args:
            classify_batch: smoothed images that are classified together, where as many are to come; as many as there
                are slots if not given.
            quantum: looks at the device by which an image may be ahead of one that waits before it makes room; nobody
                makes room if not given.

        Raises:
            ValueError: for a model in training mode.
        """
        return self._session(self._classify, self.outer_loops, classify_batch=classify_batch, quantum=quantum)

    def noised(self, images: Tensor, *, ids: Tensor | None = None) -> Tensor:
        """Step 1 alone: the images with the noise that the first outer loop adds to them.

        Args:
            images: (N, C, H, W) floats in [0, 1].
            ids: as of :meth:`defend`.

        Raises:
            ValueError: for images that are not that, or ids that do not fit them.
        """
        images = check_images(images, where="ActiveDefense.noised")
        placed = self._place(images)
        return placed + self.noise(self._noise.ids(ids, len(images)), 0, placed)

    def calibrate(self, images: Tensor, *, ratio: float = 0.92, batch_size: int = 256, compare: bool = False) -> float:
        """Set delta to ``ratio`` times the mean L_F of clean images, and return it.

        0.92 is the paper's ratio on CIFAR-10: a threshold of 0.0124 where clean test images have 0.0135. With
        ``dtype="auto"`` the first of the images are then defended in float32 and in bfloat16, and the dtype is chosen.

        Args:
            images: (N, C, H, W) clean images in [0, 1], not the ones that will be reported on.
            ratio: delta over the clean mean.
            batch_size: images run at once.
            compare: see whether bfloat16 decides as float32 does, and keep that in :meth:`config`, whatever the dtype.

        Raises:
            ValueError: for images that are not that, a ratio that is not above 0, or a model in training mode.
        """
        images = check_images(images, where="ActiveDefense.calibrate")
        check_positive(ratio, name="ratio", where="ActiveDefense.calibrate")
        check_model(self.model)
        features = prefix(self.model, self.layer)
        chunks = images.split(batch_size)
        losses = torch.cat([smoothing_loss(forward(features, self._place(chunk))) for chunk in chunks])
        self.delta = ratio * float(losses.double().mean())
        self._settle(self._compare(images[:JUDGED]) if compare or self._chooses else None)
        return self.delta

    def empty_slots(self, size: int, image: Tensor) -> Slots:
        """As many slots for images like ``image`` (C, H, W), for a benchmark that drives them itself."""
        check_model(self.model)
        slots = self._steps.acquire(size, self._place(image))
        slots.clear(self.delta)
        return slots

    def masked_step(self, like: Tensor) -> MaskedStep:
        """One step for a batch like ``like`` (N, C, H, W), traced and not compiled: what an exporter takes."""
        check_model(self.model)
        example = torch.zeros_like(self._place(like))
        step = self._steps.step(example)
        step.write_out(example)
        return step

    def extra_repr(self) -> str:
        """The parameters, as in the paper."""
        return (
            f"layer={self.layer!r}, sigma={self.sigma}, beta={self.beta}, delta={self.delta:.6g}, "
            f"max_steps={self.max_steps}, outer_loops={self.outer_loops}"
        )

    def noise(self, ids: Tensor, loop: int, like: Tensor) -> Tensor:
        """(N, C, H, W) noise of an outer loop for images like ``like``, by their (N,) ids."""
        return self._noise(to_device(ids, like.device), loop, like.shape[1:], sigma=self.sigma)

    def _compare(self, images: Tensor) -> bool | None:
        """Whether bfloat16 decides images as float32 does; None for a model in float64, which stays in that."""
        if device_and_dtype(self.model)[1] == torch.float64:
            return None
        ids = torch.arange(len(images))
        return agrees(*(self._in(dtype).defend(images, ids=ids) for dtype in (torch.float32, torch.bfloat16)))

    def _in(self, dtype: torch.dtype) -> "ActiveDefense":
        """This defense in another dtype, with steps and statistics of its own."""
        other = copy.copy(self)
        other._steps, other.stats, other._dtype = copy.copy(self._steps), Stats(), dtype
        other._steps.compute_in(dtype)
        return other

    def _settle(self, agreed: bool | None) -> None:
        """Note whether bfloat16 decides as float32 does, and where it is left to the defense, choose between them."""
        self._agreed = agreed
        if self._chooses:
            self._dtype = choose_dtype(agreed, device_and_dtype(self.model)[0])
            self._steps.compute_in(self._dtype)

    def _session(
        self,
        classify: Callable[[Tensor], Tensor] | None,
        outer_loops: int,
        *,
        classify_batch: int | None = None,
        quantum: int | None = None,
    ) -> Session:
        numbers = self._noise.numbers()
        program = Program(
            place=self._place,
            noise=self.noise,
            classify=classify,
            next_id=lambda: next(numbers),
            delta=self.delta,
            outer_loops=outer_loops,
            max_steps=self.max_steps,
            classify_batch=classify_batch or self.slots,
            quantum=quantum,
        )
        check_model(self.model)
        return Session(self._steps, program, self.stats)

    def _classify(self, images: Tensor) -> Tensor:
        # In a batch, a row of the last matrix product is rounded by where it stands.
        parts = images.split(1 if self.deterministic else len(images))
        classifier = self._steps.classifier(images)
        with own_modes(images.device):
            return torch.cat([forward(classifier, part) for part in parts])

    def _requests(
        self,
        images: Tensor,
        ids: Tensor | None,
        budgets: Tensor | None,
        valid: list[bool],
        *,
        until: float | None = None,
        noise: Tensor | None = None,
    ) -> Iterator[Request]:
        numbers = self._noise.ids(ids, len(images)).tolist()
        limits = check_budgets(budgets, len(images), self.max_steps)
        added: Iterable[Tensor | None] = repeat(None) if noise is None else noise
        rows = zip(self._place(images), numbers, limits, valid, added, strict=False)
        return (Request(image, number, most, until, good, own) for image, number, most, good, own in rows)

    def _place(self, images: Tensor) -> Tensor:
        device, precision = device_and_dtype(self.model)
        return to_device(images.detach().to(precision), device)


def _after(seconds: float | None) -> float | None:
    """``time.monotonic()`` then."""
    return None if seconds is None else time.monotonic() + seconds
