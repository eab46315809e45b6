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


def both_loops(count, dtype):
    checkpoint, images, _ = shipped(count)
    model, images = checkpoint.model.to(dtype), images.to(dtype)
    defense = ActiveDefense.from_checkpoint(checkpoint, compile=False)
    noise = defense.noised(images) - images
    with whole_network(model, defense.layer) as losses:
        images_naive, steps_naive, _ = lockstep(
            losses, images, noise, beta=defense.beta, delta=defense.delta, max_steps=defense.max_steps
        )
    smoothed = defense.smooth(images, noise=noise)
    largest = (smoothed.images - images_naive).abs().amax((1, 2, 3))
    return (smoothed.steps - steps_naive).abs(), largest


def test_the_naive_loop_and_ours_agree_on_real_images():
    apart, largest = both_loops(128, torch.float64)

    assert int(apart.max()) <= 1
    assert float((apart == 0).float().mean()) >= 0.99
    assert float(largest.max()) <= 1e-5


def test_in_single_precision_they_part_only_where_a_sign_flips():
    """Two roundings of one feature that lies at the mean give it two signs, and its step is finite."""
    apart, largest = both_loops(128, torch.float32)

    assert float((apart <= 1).float().mean()) >= 0.99
    assert float(largest.median()) <= 1e-5


def test_the_shipped_model_classifies_clean_images():
    checkpoint, images, labels = shipped(512)

    with torch.no_grad():
        right = (checkpoint.model(images).argmax(1) == labels).float().mean()

    assert float(right) > 0.88
