import pytest

from fastdef.evaluation.batches import spans


@pytest.mark.parametrize(
    ("count", "size", "expected"),
    [(0, 4, []), (1, 4, [(0, 1)]), (4, 4, [(0, 4)]), (5, 4, [(0, 4), (4, 5)]), (3, 1, [(0, 1), (1, 2), (2, 3)])],
)
def test_every_image_is_in_one_batch_in_order(count, size, expected):
    assert spans(count, size) == expected
