"""The figures of the README and of the pages in docs, written from the results that are committed beside them.

    python -m tools.readme

Between ``<!-- table NAME -->``, or ``<!-- text NAME -->``, and ``<!-- end -->`` stands what the function NAME of
:mod:`tools.tables` makes of the files in ``benchmarks/results``; a test holds the pages to it.
"""

import re
from collections.abc import Iterable

from fastdef.io import atomic_write
from tools.tables import CPU, ROOT, TABLES

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
PICTURES = {ROOT / "docs" / "assets" / name: CPU / name for name in ("demo.png", "strengths.png")}
_MARKED = re.compile(r"(<!-- (?:table|text) (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def check(texts: Iterable[str]) -> None:
    """See that each table has one place on these pages.

    Raises:
        ValueError: if a table has no place, or several, or a place has no table.
    """
    places = sorted(match[2] for text in texts for match in _MARKED.finditer(text))
    if places != sorted(TABLES):
        raise ValueError(f"the pages need one place for each of {', '.join(TABLES)}, got {', '.join(places)}")


def filled(text: str) -> str:
    """``text`` with every marked table anew."""
    return _MARKED.sub(lambda match: f"{match[1]}{TABLES[match[2]]()}{match[3]}", text)


def write() -> None:
    """Write every page whose figures have changed, and the pictures that the site has copies of."""
    texts = {page: page.read_text() for page in PAGES}
    check(texts.values())
    for page, text in texts.items():
        if filled(text) != text:
            with atomic_write(page) as temporary:
                temporary.write_text(filled(text))
    for copy, picture in PICTURES.items():
        with atomic_write(copy) as temporary:
            temporary.write_bytes(picture.read_bytes())


if __name__ == "__main__":
    write()
