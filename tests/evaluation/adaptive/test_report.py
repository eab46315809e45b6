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
import torch
from PIL import Image

from fastdef.data import Dataset
from fastdef.evaluation.adaptive import Target, evaluate_adaptive, write_report
from fastdef.evaluation.adaptive.budget import AutoAttackEffort
from fastdef.evaluation.adaptive.first_screen import bars, pictures
from fastdef.evaluation.adaptive.report import robustbench
from fastdef.evaluation.adaptive.rows import sanity
from tests.evaluation.adaptive.linear import GUARDED, PLAIN, SIDE
from tests.evaluation.adaptive.lines import line, results, scoreless


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
    for one in found.lines:
        if one.score and one.case.counts:
            counting[one.case.row].append(one.score.mean)
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


@pytest.fixture(scope="module")
def six():
    pixels = torch.randint(0, 256, (6, 1, SIDE, SIDE), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    return Dataset(pixels, torch.arange(6) % 2, tuple("abcd"), "made", "test")


WHOLE = {"eps": 4 / 255, "images": 6, "budget": {"autoattack": AutoAttackEffort().__dict__}}
CLEAN, AUTOATTACK = line(0, sanity.CLEAN, 15, of=16), line(1, "AutoAttack standard", 3, of=16, counts=True)


def entry(*lines, target=PLAIN, settings=WHOLE, dataset=None):
    return robustbench(results(*lines, settings=settings), target, dataset, name="mine")


def test_a_plain_model_under_whole_autoattack_has_an_entry_of_robustbench_s_shape(six):
    found, reason = entry(CLEAN, AUTOATTACK, dataset=six)

    assert found == {
        "name": "mine",
        "dataset": "made",
        "architecture": "Linear",
        "eps": "4/255",
        "number_forward_passes": 1,
        "additional_data": False,
        "clean_acc": "93.75",
        "autoattack_acc": "18.75",
        "unreliable": False,
        "images": 16,
    }
    assert reason == "robustbench.json is shaped as its entries are; of the test set it covers 16 images."


def test_an_entry_whose_checks_failed_is_unreliable(six):
    found, _ = entry(CLEAN, AUTOATTACK, line(0, sanity.HUGE, 16), dataset=six)

    assert found["unreliable"]


CUT = {**WHOLE, "budget": {"autoattack": replace(AutoAttackEffort(), queries=4999).__dict__}}


@pytest.mark.parametrize(
    ("lines", "target", "settings", "reason"),
    [
        ([CLEAN, AUTOATTACK], Target.opaque(lambda x, ids: None, random=False), WHOLE, "gradients are needed"),
        ([CLEAN, AUTOATTACK], GUARDED, WHOLE, "it optimises, or draws noise, at test time"),
        ([CLEAN], PLAIN, WHOLE, "RobustBench needs rows 0 and 1."),
        ([AUTOATTACK], PLAIN, WHOLE, "RobustBench needs rows 0 and 1."),
        ([CLEAN, scoreless(1, "AutoAttack standard")], PLAIN, WHOLE, "RobustBench needs rows 0 and 1."),
        ([CLEAN, line(2, "AutoAttack standard", 3)], PLAIN, WHOLE, "RobustBench needs rows 0 and 1."),
        ([line(1, sanity.CLEAN, 3), AUTOATTACK], PLAIN, WHOLE, "RobustBench needs rows 0 and 1."),
        ([CLEAN, AUTOATTACK], PLAIN, CUT, "but this budget cuts AutoAttack down"),
    ],
)
def test_without_what_robustbench_asks_for_there_is_no_entry_and_a_reason(lines, target, settings, reason):
    found, told = entry(*lines, target=target, settings=settings)

    assert found is None
    assert reason in told


@pytest.fixture(scope="module")
def linear(six, tiny, tmp_path_factory):
    """What a linear model is worth, and the folder of its report."""
    folder = tmp_path_factory.mktemp("linear")
    budget = replace(tiny, images=4, curve_eps=(), curve_iterations=(1,), batch=3)
    found = evaluate_adaptive(PLAIN, six, budget=budget, rows=[0, 3])
    page = write_report(found, folder, PLAIN, six, name="<linear>")
    assert page == folder / "report.html"
    return found, folder


def test_the_report_is_a_page_and_two_tables(linear):
    found, folder = linear

    assert {path.name for path in folder.iterdir()} == {"report.html", "report.json", "report.csv"}
    assert json.loads((folder / "report.json").read_text()) == json.loads(json.dumps(found.to_json()))
    with (folder / "report.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [*table[0]] == [
        *("row", "name", "eps", "counts", "count", "noise_samples", "mean", "deviation", "interval", "worst"),
        *("majority", "one_shot", "loss", "unanswered", "steps_median", "steps_most", "capped"),
        *("seconds_to_attack_an_image", "seconds_to_answer_an_image", "seed", "device", "dtype"),
    ]
    told = [{name: line.get(name) for name in table[0]} for line in found.lines_json()]
    assert table == [{name: "" if value is None else str(value) for name, value in line.items()} for line in told]


def test_the_page_shows_the_images_in_the_order_in_which_they_were_evaluated(linear, six):
    found, folder = linear
    evaluated = six.subset(4)
    text = (folder / "report.html").read_text()

    (clean, *_), place = pictures(found, PLAIN, evaluated), found.headline.places[0]
    drawn = np.asarray(Image.open(io.BytesIO(base64.b64decode(clean.data))))

    assert np.array_equal(drawn, evaluated.images[place, 0])
    assert clean.data in text
    assert not np.array_equal(drawn, six.images[place, 0])


def test_a_name_is_text_and_no_markup(linear):
    text = (linear[1] / "report.html").read_text()

    assert "<title>What &lt;linear&gt; is worth</title>" in text
    assert "<linear>" not in text
    assert html.escape(json.dumps(linear[0].settings, indent=1), quote=False) in text.replace("&#34;", '"')
    assert "RobustBench needs rows 0 and 1." in text


def test_an_entry_is_a_file_beside_the_report(six, tmp_path):
    settings = {**WHOLE, "images": 6, "seed": 0, "device": "cpu", "defense": None, "data": "made test", "torch": "2"}
    settings["budget"] = {**WHOLE["budget"], "name": "full"}
    found = results(CLEAN, AUTOATTACK, settings=settings)

    text = write_report(found, tmp_path, PLAIN, six, name="mine").read_text()

    expected, reason = robustbench(found, PLAIN, six, name="mine")
    assert json.loads((tmp_path / "robustbench.json").read_text()) == expected
    assert reason in text
