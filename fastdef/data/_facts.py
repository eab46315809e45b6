"""What is known of the data sets that have a name."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Facts:
    """A data set as the hub has it.

    Attributes:
        repository: its name on the hub.
        folder: where its parquet files lie there.
        image: column of the images, {bytes, path}.
        label: column of the labels.
        files: what the parquet files of each split are called at their beginning.
        mode: Pillow's mode to decode to: "L" or "RGB".
        size: height and width.
        classes: names of the classes.
        flip: a mirrored image is of the same class.
    """

    repository: str
    folder: str
    image: str
    label: str
    files: dict[str, str]
    mode: str
    size: int
    classes: tuple[str, ...]
    flip: bool = True


_SPLITS = {"train": "train", "test": "test"}


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(str(number) for number in range(count))


_CIFAR100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster
man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck
pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""

FACTS = {
    "cifar10": Facts(
        repository="uoft-cs/cifar10",
        folder="plain_text",
        image="img",
        label="label",
        files=_SPLITS,
        mode="RGB",
        size=32,
        classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    ),
    "cifar100": Facts(
        repository="uoft-cs/cifar100",
        folder="cifar100",
        image="img",
        label="fine_label",
        files=_SPLITS,
        mode="RGB",
        size=32,
        classes=tuple(_CIFAR100.split()),
    ),
    "svhn": Facts(
        repository="ufldl-stanford/svhn",
        folder="cropped_digits",
        image="image",
        label="label",
        files=_SPLITS,
        mode="RGB",
        size=32,
        classes=_numbered(10),
        flip=False,
    ),
    "tiny-imagenet": Facts(
        repository="zh-plus/tiny-imagenet",
        folder="data",
        image="image",
        label="label",
        files={"train": "train", "test": "valid"},
        mode="RGB",
        size=64,
        classes=_numbered(200),  # its files name them
    ),
    "fashion-mnist": Facts(
        repository="zalando-datasets/fashion_mnist",
        folder="fashion_mnist",
        image="image",
        label="label",
        files=_SPLITS,
        mode="L",
        size=28,
        classes=(
            "T-shirt",
            "trouser",
            "pullover",
            "dress",
            "coat",
            "sandal",
            "shirt",
            "sneaker",
            "bag",
            "ankle boot",
        ),
    ),
}
