"""The shipped model on the shipped images: what the README says of it, and that ours is the loop as written."""

import torch

from fastdef import ActiveDefense, load
from fastdef.data import load_dataset
from fastdef.defense.naive import lockstep, whole_network
from fastdef.demo.run import ASSETS


def shipped(count):
    checkpoint = load(ASSETS / "smoothing.safetensors")
    images = load_dataset("fashion-mnist", "test", root=ASSETS).take(count)
    return checkpoint, images.floats(0, count), images.labels


def test_the_naive_loop_and_ours_agree_on_real_images():
    checkpoint, images, _ = shipped(48)
    defense = ActiveDefense.from_checkpoint(checkpoint, compile=False)
    noise = defense.noised(images) - images

    smoothed = defense.smooth(images, noise=noise)

    with whole_network(checkpoint.model, defense.layer) as losses:
        expected, steps, _ = lockstep(
            losses, images, noise, beta=defense.beta, delta=defense.delta, max_steps=defense.max_steps
        )
    apart = (smoothed.steps - steps).abs()
    assert int(apart.max()) <= 1
    assert float((apart == 0).float().mean()) >= 0.99
    torch.testing.assert_close(smoothed.images[apart == 0], expected[apart == 0], rtol=0, atol=1e-5)


def test_the_shipped_model_classifies_clean_images():
    checkpoint, images, labels = shipped(512)

    with torch.no_grad():
        right = (checkpoint.model(images).argmax(1) == labels).float().mean()

    assert float(right) > 0.88
