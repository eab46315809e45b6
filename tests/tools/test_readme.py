import pytest

from tools import readme


def test_the_readme_says_what_the_results_say():
    text = readme.README.read_text()

    assert readme.filled(text) == text


def test_a_figure_that_was_changed_by_hand_is_put_right():
    text = readme.README.read_text()
    changed = text.replace("| naive | ", "| naive | 1")
    assert changed != text

    assert readme.filled(changed) == text


def test_a_table_without_a_place_is_told():
    with pytest.raises(ValueError, match="one place for each of adaptive, strengths"):
        readme.filled("nothing")
