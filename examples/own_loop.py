"""Requests with deadlines on a Session, as a server of your own would drive it: python examples/own_loop.py."""

import time
from collections import deque

import fastdef
from fastdef.assets import ASSETS
from fastdef.defense import Request

SECONDS = 10.0  # that an image may take


def main() -> None:
    """Feed 64 shipped images while there is capacity, and print each result when it comes."""
    checkpoint = fastdef.load(ASSETS / "smoothing.safetensors")
    defense = fastdef.ActiveDefense.from_checkpoint(checkpoint, seed=None, slots=16, compile=False)
    images = fastdef.load_dataset("fashion-mnist", "test", root=ASSETS).floats(0, 64)

    waiting = deque(images)
    with defense.session() as session:
        while waiting or session.unfinished:
            while waiting and session.has_capacity:
                session.add(Request(waiting.popleft(), deadline=time.monotonic() + SECONDS))
            for result in session.step():  # in the order in which they are done
                # An image whose smoothing never began has no result: never take its logits for one.
                name = checkpoint.classes[result.logits.argmax()] if result.started else "no result in time"
                print(f"{result.request_id}: {name}, {result.steps} steps, converged {result.converged}")


if __name__ == "__main__":
    main()
