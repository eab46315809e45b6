"""Any network of timm behind Active Defense.

    python examples/defend_timm_model.py photos mine.safetensors model.safetensors

Photos are in photos/<class>/*.jpg, in any size. The classes are those that the network was trained on, in the order of
their names.
"""

import argparse

import timm
import torch

import fastdef


def main() -> None:
    """Defend the network, print what it makes of some photos, and save it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", help="folder of images by class")
    parser.add_argument("weights", help="checkpoint of the network")
    parser.add_argument("out", help="model file to write")
    parser.add_argument("--network", default="resnet18", help="its name in timm")
    parser.add_argument("--size", type=int, default=224, help="height and width of its images")
    options = parser.parse_args()

    photos = fastdef.load_dataset("photos", "all", root=options.photos, size=options.size)
    arguments = {"num_classes": len(photos.classes)}
    network = timm.create_model(options.network, checkpoint_path=options.weights, **arguments)
    mean, std = network.default_cfg["mean"], network.default_cfg["std"]
    model = torch.nn.Sequential(fastdef.nn.Normalize(mean, std), network).eval()

    defense = fastdef.ActiveDefense.auto(model, photos.validation().floats(0, 256), seed=None)
    print(f"layer {defense.layer}, beta {defense.beta:.4g}, delta {defense.delta:.4g}")
    tried = photos.fit().subset(8)
    result = defense.defend(tried.floats(0, len(tried)))
    for label, logits, steps in zip(tried.labels, result.logits, result.steps, strict=True):
        print(f"{photos.classes[label]}: {photos.classes[logits.argmax()]}, {int(steps)} steps")

    fastdef.save(
        options.out,
        model,
        source=f"timm:{options.network}",
        source_args=arguments,
        classes=photos.classes,
        defense=defense.config(),
        training={"shape": [3, options.size, options.size]},
    )
    print(f"wrote {options.out}; next: fastdef evaluate-adaptive {options.out} --data photos --root {options.photos}")


if __name__ == "__main__":
    main()
