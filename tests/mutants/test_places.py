"""The list of faults fits the tree as it is; whether each is found is for the slow tests."""

from pathlib import Path

import pytest

from tests.mutants.faults import FAULTS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
def test_a_fault_has_one_place(fault):
    assert (ROOT / fault.file).read_text().count(fault.before) == 1
    assert fault.after != fault.before
    assert (ROOT / fault.tests.split()[0].split("::")[0]).is_file()


def test_there_are_twenty_at_least_and_no_two_are_alike():
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 20
