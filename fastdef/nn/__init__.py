"""Networks by name, and the parts of a network that the defenses use."""

from fastdef.nn._afa import AFA2d as AFA2d
from fastdef.nn._afa_model import convert_to_afa as convert_to_afa
from fastdef.nn._afa_model import fixed_fusing_weight as fixed_fusing_weight
from fastdef.nn._afa_model import fusing_weights as fusing_weights
from fastdef.nn._architecture import architecture_of as architecture_of
from fastdef.nn._architecture import build as build
from fastdef.nn._architecture import check_architecture as check_architecture
from fastdef.nn._architecture import parse_architecture as parse_architecture
from fastdef.nn._branches import branch as branch
from fastdef.nn._branches import convert_to_multi_bn as convert_to_multi_bn
from fastdef.nn._branches import keep_branch as keep_branch
from fastdef.nn._branches import set_branch as set_branch
from fastdef.nn._conversions import convert as convert
from fastdef.nn._conversions import register_conversion as register_conversion
from fastdef.nn._joint import joint_statistics as joint_statistics
from fastdef.nn._multi_bn import MultiBatchNorm2d as MultiBatchNorm2d
from fastdef.nn._normalize import Normalize as Normalize
from fastdef.nn._normalized_features import normalize_features as normalize_features
from fastdef.nn._normalized_features import normalized as normalized
from fastdef.nn._preact_resnet import PreActResNet18 as PreActResNet18
from fastdef.nn._prefix import prefix as prefix
from fastdef.nn._resnet import ResNet as ResNet
from fastdef.nn._tap import Tapped as Tapped
from fastdef.nn._tap import tap as tap
from fastdef.nn._weight_generator import WeightGenerator as WeightGenerator
from fastdef.nn._wide_resnet import WideResNet as WideResNet
