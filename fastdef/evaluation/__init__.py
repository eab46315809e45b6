"""What a classifier and its defense are worth: accuracies with their intervals, by the attack that they stood."""

from fastdef.evaluation.accuracy import Accuracy as Accuracy
from fastdef.evaluation.evaluate import Attack as Attack
from fastdef.evaluation.evaluate import Evaluation as Evaluation
from fastdef.evaluation.evaluate import evaluate as evaluate
