"""Data sets by name, whole and as uint8; batches and augmentation on the device; image files."""

from fastdef.data._decode import Decoder as Decoder
from fastdef.data._idx import write_idx as write_idx
from fastdef.data._names import numbering as numbering
from fastdef.data._sha256 import sha256 as sha256
from fastdef.data._tree import ClassOrder as ClassOrder
from fastdef.data.batches import Batches as Batches
from fastdef.data.batches import RandomCropFlip as RandomCropFlip
from fastdef.data.dataset import Dataset as Dataset
from fastdef.data.encoded import EncodedImages as EncodedImages
from fastdef.data.files import decode_image as decode_image
from fastdef.data.files import load_images as load_images
from fastdef.data.load import load_dataset as load_dataset
from fastdef.data.load import load_training as load_training
