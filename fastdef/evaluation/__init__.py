"""What a classifier and its defense are worth: accuracies with their intervals, by the attack that they stood."""

from fastdef.evaluation.accuracy import Accuracy as Accuracy
from fastdef.evaluation.afa import Strengths as Strengths
from fastdef.evaluation.afa import evaluate_strengths as evaluate_strengths
from fastdef.evaluation.afa import rounds as rounds
from fastdef.evaluation.afa import submodels as submodels
from fastdef.evaluation.attack import Attack as Attack
from fastdef.evaluation.attack import Batch as Batch
from fastdef.evaluation.attack import accuracy as accuracy
from fastdef.evaluation.attack import attacked_batches as attacked_batches
from fastdef.evaluation.evaluate import Evaluation as Evaluation
from fastdef.evaluation.evaluate import evaluate as evaluate
from fastdef.evaluation.figure import draw_strengths as draw_strengths
