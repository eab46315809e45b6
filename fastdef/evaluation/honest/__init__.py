"""What a defense is worth against attackers who know it: rows of attacks, and the lowest mean as the headline."""

from fastdef.evaluation.honest.budget import BUDGETS as BUDGETS
from fastdef.evaluation.honest.budget import Budget as Budget
from fastdef.evaluation.honest.findings import Findings as Findings
from fastdef.evaluation.honest.report import write_report as write_report
from fastdef.evaluation.honest.suite import Progress as Progress
from fastdef.evaluation.honest.suite import honest as honest
from fastdef.evaluation.honest.target import Answers as Answers
from fastdef.evaluation.honest.target import Target as Target
