"""An attack library on a defended model: python examples/attack_with_foolbox.py.

The gradient is the straight-through one: the weakest adaptive attack. What it leaves is an upper bound of what the
defense is worth; `fastdef evaluate-adaptive` does more.
"""

import argparse

import foolbox

import fastdef
from fastdef.assets import ASSETS
from fastdef.attacks import predicted


def main() -> None:
    """Print accuracy on clean images, and under PGD by Foolbox."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args()

    defense = fastdef.ActiveDefense.from_checkpoint(fastdef.load(ASSETS / "smoothing.safetensors"), compile=False)
    dataset = fastdef.load_dataset("fashion-mnist", "test", root=ASSETS).subset(options.images)
    images, labels = dataset.floats(0, len(dataset)), dataset.labels

    target = foolbox.PyTorchModel(defense.attackable(), bounds=(0, 1), device="cpu")
    attack = foolbox.attacks.LinfPGD(steps=options.steps)
    _, adversarial, _ = attack(target, images, labels, epsilons=8 / 255)

    for name, given in (("clean", images), ("attacked", adversarial)):
        right = predicted(defense.defend(given).logits) == labels
        print(f"{name}: {right.float().mean():.1%} of {len(labels)}")


if __name__ == "__main__":
    main()
