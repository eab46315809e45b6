"""A server's options, and from them the application of one device: what each process, or each replica, makes."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import torch
from fastapi import FastAPI
from pydantic import BaseModel, Field, model_validator

from fastdef.checkpoint import LARGEST, Checkpoint, image_shape, load
from fastdef.data import Decoder
from fastdef.defense import ActiveDefense
from fastdef.serving.app import application
from fastdef.serving.page import Page
from fastdef.serving.worker import Worker


class Options(BaseModel, extra="forbid"):
    """Of ``fastdef serve``, and under the same names the ``args`` of an application in a configuration of Ray's.

    Attributes:
        model: a model file with an active defense, where every replica can read it.
        size: height and width; the model's own if it says.
        background: colour to put under images that are not opaque; they are refused without.
        resize: scale image files of another size.
        queue: images that may wait for a slot.
        slots: images in flight.
        max_steps: steps an image may take.
        longest: seconds an image may take, its wait included.
        max_bytes: of a request's body.
        body_seconds: that a request may take to come.
        grace: seconds for what was accepted, once it has to stop.
        replay: let requests choose the id of their noise.
        seed: of the noise, with ``replay``; else each process's own, from the system.
        dtype: of the networks; "auto" as :class:`fastdef.ActiveDefense` takes it.
        compile: torch.compile the step, and the classifier where it is in 16 bit.
        device: where the defense runs; each replica of "cuda" has a GPU of its own.
        source: code that builds the network, where the file says that one does.
        replicas: of a cluster, a fixed number; where it is not given, the configuration's ``autoscaling_config`` says.
        threads: CPU cores of a replica.
    """

    model: Path
    size: int | None = Field(default=None, ge=1, le=LARGEST)
    background: str | None = None
    resize: bool = False
    queue: int = Field(default=256, ge=1)
    slots: int = Field(default=64, ge=1)
    max_steps: int | None = Field(default=None, ge=1)
    longest: float = Field(default=30.0, gt=0)
    max_bytes: int = Field(default=1 << 20, ge=1)
    body_seconds: float = Field(default=10.0, gt=0)
    grace: float = Field(default=35.0, ge=0)
    replay: bool = False
    seed: int | None = Field(default=None, ge=0)
    dtype: str = Field(default="float32", pattern="^(float32|float16|bfloat16|auto)$")
    compile: bool = True
    device: str = "cpu"
    source: str | None = None
    replicas: int | None = Field(default=None, ge=1)
    threads: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _check(self) -> "Options":
        Decoder(self.background)  # refuses what is no colour
        if self.seed is not None and not self.replay:
            raise ValueError("seed is for replay: without it nobody may know the noise")
        return self

    def application(
        self, *, token: str | None = None, merge: Callable[[bytes], Awaitable[bytes]] | None = None
    ) -> FastAPI:
        """The application, warm.

        Args:
            token: of the page; None for no page.
            merge: as of :func:`fastdef.serving.application`.

        Raises:
            ValueError: for a file, a size or options that do not fit.
        """
        checkpoint = load(self.model, device=self.device, source=self.source)
        shape = image_shape(checkpoint, self.size)
        defense = self._defense(checkpoint)
        worker = Worker(defense, shape, queue_size=self.queue, longest=self.longest)
        worker.warm()
        return application(
            worker,
            classes=checkpoint.classes,
            shape=shape,
            name=self.model.stem,
            max_bytes=self.max_bytes,
            body_seconds=self.body_seconds,
            grace=self.grace,
            replay=self.replay,
            background=self.background,
            resize=self.resize,
            page=None if token is None else Page.of_file(token, defense, self.model),
            merge=merge,
        )

    def _defense(self, checkpoint: Checkpoint) -> ActiveDefense:
        steps = {} if self.max_steps is None else {"max_steps": self.max_steps}
        return ActiveDefense.from_checkpoint(
            checkpoint,
            seed=self.seed,
            slots=self.slots,
            dtype="auto" if self.dtype == "auto" else getattr(torch, self.dtype),
            compile=self.compile,
            **steps,
        )
