"""What is decoded is what Chromium shows of the same file; or it is refused."""

import io
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from fastdef.data import Decoder
from tests.data.mutants import mutants

COUNT, CELL, COLUMNS, PAGE = 500, 20, 25, "#3060c0"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def screenshot(files, folder):
    """(ending, content) pairs -> what a window shows of each, (CELL, CELL, 3) of its upper left."""
    cells = []
    for number, (ending, content) in enumerate(files):
        (folder / f"{number}{ending}").write_bytes(content)
        place = f"left:{number % COLUMNS * CELL}px; top:{number // COLUMNS * CELL}px; width:{CELL}px; height:{CELL}px"
        image = f'<img src="{number}{ending}" onerror="this.remove()" style="display:block">'
        cells.append(f'<div style="position:absolute; overflow:hidden; {place}">{image}</div>')
    (folder / "page.html").write_text(f'<!doctype html><body style="background:{PAGE}">{"".join(cells)}')
    height = -(-len(files) // COLUMNS) * CELL
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--force-color-profile=srgb"]
    options += ["--force-device-scale-factor=1", f"--window-size={COLUMNS * CELL},{height + 200}"]
    options += [f"--user-data-dir={folder / 'profile'}", f"--screenshot={folder / 'shot.png'}"]
    page = (folder / "page.html").as_uri()
    subprocess.run([CHROMIUM, *options, page], check=True, capture_output=True, timeout=300)
    shot = np.asarray(Image.open(io.BytesIO((folder / "shot.png").read_bytes())).convert("RGB")).astype(int)
    corners = (divmod(number, COLUMNS) for number in range(len(files)))
    return [shot[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL] for row, column in corners]


def decoded(content):
    """(H, W, 3) of what is taken, None of what is refused."""
    try:
        return Decoder().decode(content, mode="RGB", name="x").permute(1, 2, 0).numpy().astype(int)
    except ValueError:
        return None


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_changed_files_are_decoded_to_what_a_browser_shows_or_refused(tmp_path):
    files = mutants(COUNT)
    page = np.array([int(PAGE[place : place + 2], 16) for place in (1, 3, 5)])

    shown = screenshot(files, tmp_path)

    images = [decoded(content) for _, content in files]
    others = []
    for number, (image, cell) in enumerate(zip(images, shown, strict=True)):
        if image is None:
            continue
        expected = np.broadcast_to(page, cell.shape).copy()
        expected[: image.shape[0], : image.shape[1]] = image[:CELL, :CELL]
        if np.abs(cell - expected).max() > 2:  # two libraries for colours round in different ways
            others.append((number, files[number][0]))
    assert others == []
    assert 200 < sum(image is not None for image in images) < 400  # most of the changes are seen
