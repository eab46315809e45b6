"""Model files: ours, those of other code, and writing any file whole or not at all."""

from fastdef.checkpoint._file import Checkpoint as Checkpoint
from fastdef.checkpoint._file import load as load
from fastdef.checkpoint._file import save as save
from fastdef.checkpoint._fit import check_classes as check_classes
from fastdef.checkpoint._fit import check_images as check_images
from fastdef.checkpoint._fit import check_whole as check_whole
from fastdef.checkpoint._fit import load_for as load_for
from fastdef.checkpoint._foreign import import_foreign as import_foreign
from fastdef.checkpoint._hub import MODEL_FILE as MODEL_FILE
from fastdef.checkpoint._settings import check_same as check_same
from fastdef.checkpoint._shape import LARGEST as LARGEST
from fastdef.checkpoint._shape import image_shape as image_shape
