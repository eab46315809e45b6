"""What a defense is worth against adaptive attacks: rows of them, and the strongest as the headline."""

from fastdef.evaluation.adaptive.budget import BUDGETS as BUDGETS
from fastdef.evaluation.adaptive.budget import Budget as Budget
from fastdef.evaluation.adaptive.report import write_report as write_report
from fastdef.evaluation.adaptive.results import AdaptiveResults as AdaptiveResults
from fastdef.evaluation.adaptive.suite import Progress as Progress
from fastdef.evaluation.adaptive.suite import evaluate_adaptive as evaluate_adaptive
from fastdef.evaluation.adaptive.target import Answers as Answers
from fastdef.evaluation.adaptive.target import Target as Target
