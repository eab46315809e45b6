import base64
import csv
import html
import io
import json
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from fastdef.evaluation.adaptive import Target, evaluate_adaptive, write_report
from fastdef.evaluation.adaptive.budget import AutoAttackEffort
from fastdef.evaluation.adaptive.first_screen import bars, pictures
from fastdef.evaluation.adaptive.rows import sanity


@pytest.fixture(scope="module")
def made(defense, dataset, tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    target = Target.defended(defense)
    found = evaluate_adaptive(target, dataset, budget=tiny)
    return found, write_report(found, folder, target, dataset, name="a <model>"), folder


def test_the_page_needs_nothing_beside_it(made):
    _, page, _ = made
    text = page.read_text()

    assert not re.findall(r"(?:src|href)=\"(?!data:|#)", text)
    assert "<script" not in text
    assert "data:image/png;base64," in text
    assert text.count("<svg") == 2  # curves, steps


def test_the_page_begins_with_the_plain_sentence_and_has_every_line(made):
    found, page, _ = made
    text = html.unescape(page.read_text())

    assert found.sentence in text
    assert text.index(found.sentence) < text.index("<h2>")
    assert all(line.label in text for line in found.lines if line.score)
    assert "a &lt;model&gt;" in page.read_text()
    assert all(case.reason in text for case in found.not_run)


def test_the_first_screen_has_the_headline_a_bar_for_each_row_and_one_image_in_three_states(made, defense, dataset):
    found, page, _ = made
    text = html.unescape(page.read_text())
    first = text[: text.index("<h2>")]

    drawn = bars(found)
    (headline,) = [bar for bar in drawn if bar.kind == "headline"]
    assert headline.mean == found.headline.score.judgement
    assert f">{100 * headline.mean:.1f} %<" in first
    assert drawn[0].label == "clean images"
    assert len(drawn) == 1 + len({line.case.row for line in found.lines if line.score and line.case.row})
    for bar in drawn:
        assert bar.low <= bar.mean <= bar.high
        assert f"width: {100 * bar.mean:.1f}%" in first
    counting = {line.case.row: [] for line in found.lines if line.score and line.case.counts}
    for line in found.lines:
        if line.score and line.case.counts:
            counting[line.case.row].append(line.score.mean)
    lowest = {row: min(means) for row, means in counting.items() if row != found.headline.case.row}
    assert {int(bar.label[0]): bar.mean for bar in drawn if bar.kind == "counts"} == lowest
    titles = [picture.title for picture in pictures(found, Target.defended(defense), dataset)]
    assert titles == ["clean", "attacked", "attacked, after the defense"]
    assert first.count("data:image/png;base64,") == 3
    assert "<details><summary>Settings" in text


def test_the_image_before_the_attack_is_the_one_that_was_attacked(made):
    found, page, _ = made

    encoded = re.findall(r"data:image/png;base64,([^\"]+)", html.unescape(page.read_text()))[:2]
    clean, attacked = (np.asarray(Image.open(io.BytesIO(base64.b64decode(one)))).astype(int) for one in encoded)

    assert 0 < np.abs(attacked - clean).max() <= 255 * found.settings["eps"] + 1


def test_json_and_csv_have_the_same_lines(made):
    found, _, folder = made
    report = json.loads((folder / "report.json").read_text())
    with (folder / "report.csv").open() as file:
        table = list(csv.DictReader(file))

    assert report["headline"] == found.headline.score.judgement
    assert [line["name"] for line in report["lines"]] == [line["name"] for line in table]
    assert [line["mean"] for line in report["lines"]] == [float(line["mean"]) for line in table]
    assert {"seed", "eps", "device", "budget"} <= set(report["settings"])


def test_without_its_library_one_line_says_what_to_install(made, defense, dataset, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)

    with pytest.raises(ValueError, match=r"needs jinja2: pip install 'fastdef\[eval\]'"):
        write_report(made[0], tmp_path, Target.defended(defense), dataset, name="x")

    assert list(tmp_path.iterdir()) == []


def test_a_failed_check_stands_at_the_top(made, defense, dataset, tmp_path):
    found, _, _ = made
    huge = found.line(0, sanity.HUGE)
    stands = replace(huge, score=replace(huge.score, mean=0.5))
    broken = replace(found, lines=[stands if line is huge else line for line in found.lines])

    page = write_report(broken, tmp_path, Target.defended(defense), dataset, name="x").read_text()

    assert page.index("at best an upper bound") < page.index("The evaluation's checks")
    assert "at best an upper bound" not in made[1].read_text()


def test_active_defense_is_none_of_robustbench_s_kind_and_the_page_says_why(made):
    _, page, folder = made

    assert not (folder / "robustbench.json").exists()
    assert "it optimises, or draws noise, at test time" in page.read_text()


def test_a_plain_model_has_a_robustbench_entry_where_autoattack_is_whole(model, dataset, tiny, tmp_path):
    target = Target.plain(model)
    cut = evaluate_adaptive(target, dataset, budget=tiny, rows=[0, 1])
    published = {**cut.settings, "budget": {**cut.settings["budget"], "autoattack": AutoAttackEffort().__dict__}}
    whole = replace(cut, settings=published)

    assert "cuts AutoAttack down" in write_report(cut, tmp_path, target, dataset, name="x").read_text()
    assert not (tmp_path / "robustbench.json").exists()
    write_report(whole, tmp_path, target, dataset, name="x")
    entry = json.loads((tmp_path / "robustbench.json").read_text())
    assert entry["eps"] == "8/255"
    assert entry["autoattack_acc"] == f"{100 * whole.line(1, 'AutoAttack standard').score.mean:.2f}"
    assert entry["images"] == 6
