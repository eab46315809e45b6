"""The tables and sentences of the pages, one function each, from the files in ``benchmarks/results``."""

from collections.abc import Callable

from tools.tables import cifar10, cifar10_afa, deployment, speed, worth
from tools.tables._results import CPU as CPU
from tools.tables._results import ROOT as ROOT

_FUNCTIONS = (
    worth.headline,
    worth.demo,
    worth.adaptive,
    worth.strengths,
    speed.training,
    speed.formats,
    speed.formats_wrn_16_4,
    speed.defense,
    speed.step,
    speed.classifier,
    speed.large_images,
    speed.growth,
    speed.price,
    speed.solvers,
    speed.solvers_adaptive,
    speed.agreement,
    worth.sweep,
    cifar10.cifar10_paper,
    cifar10.cifar10_static,
    cifar10.cifar10_thresholds,
    cifar10.cifar10_solvers,
    cifar10_afa.cifar10_afa,
    cifar10_afa.cifar10_strongest,
    cifar10_afa.cifar10_generators,
    cifar10_afa.cifar10_both,
    deployment.replicas,
    deployment.replicas_on_paper,
)
TABLES: dict[str, Callable[[], str]] = {function.__name__: function for function in _FUNCTIONS}
