"""A defended classifier on LitServe: ``python litserve_server.py model.safetensors 8000``, then POST /predict."""

import sys
from typing import Annotated, Any

import litserve
from pydantic import BaseModel, Field
from torch import Tensor, tensor

import fastdef

CHANNELS, SIZE = 1, 28  # of the model's images
Pixel = Annotated[float, Field(ge=0, le=1)]
Row = Annotated[list[Pixel], Field(min_length=SIZE, max_length=SIZE)]
Channel = Annotated[list[Row], Field(min_length=SIZE, max_length=SIZE)]


class Item(BaseModel):
    """What is no such image is refused at the door: in a batch it would spoil the others' answers."""

    image: Annotated[list[Channel], Field(min_length=CHANNELS, max_length=CHANNELS)]


class Defended(litserve.LitAPI):
    """An image to class, steps and whether the smoothing converged."""

    def __init__(self, file: str, **options: Any) -> None:
        super().__init__(**options)
        self.file = file

    def setup(self, device: str) -> None:
        """In each worker: a defense whose noise nobody can predict."""
        checkpoint = fastdef.load(self.file, device=device)
        self.classes = checkpoint.classes
        self.defense = fastdef.ActiveDefense.from_checkpoint(checkpoint, seed=None)

    def decode_request(self, request: Item) -> Tensor:
        """One image of a batch."""
        return tensor(request.image)

    def predict(self, images: Tensor) -> list[dict[str, Any]]:
        """A batch, answered when its last image is smooth."""
        result = self.defense.defend(images)
        rows = zip(result.logits.argmax(1).tolist(), result.steps.tolist(), result.converged.tolist(), strict=True)
        return [{"class": self.classes[label], "steps": steps, "converged": done} for label, steps, done in rows]


if __name__ == "__main__":
    api = Defended(sys.argv[1], max_batch_size=64, batch_timeout=0.01)
    litserve.LitServer(api, timeout=120).run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False)
