import pytest

from tools import readme

TEXTS = {str(page.relative_to(readme.ROOT)): page.read_text() for page in readme.PAGES}


@pytest.mark.parametrize("page", TEXTS)
def test_a_page_says_what_the_results_say(page):
    assert readme.filled(TEXTS[page]) == TEXTS[page]


def test_a_figure_that_was_changed_by_hand_is_put_right():
    text = next(text for text in TEXTS.values() if "| naive | " in text)

    assert readme.filled(text.replace("| naive | ", "| naive | 1")) == text


def test_each_table_has_one_place():
    readme.check(TEXTS.values())

    for texts in (["nothing"], [*TEXTS.values(), "<!-- table demo -->\n<!-- end -->"]):
        with pytest.raises(ValueError, match="one place for each of headline, demo, adaptive"):
            readme.check(texts)


@pytest.mark.parametrize("copy", readme.PICTURES, ids=lambda copy: copy.name)
def test_the_site_has_the_pictures_of_the_results(copy):
    assert copy.read_bytes() == readme.PICTURES[copy].read_bytes()


def test_the_readme_fits_on_three_screens():
    assert len(TEXTS["README.md"].splitlines()) <= 150
