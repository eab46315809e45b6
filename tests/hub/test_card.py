import json
import re
from dataclasses import replace

import pytest
import torch

from fastdef import ActiveDefense, load
from fastdef.assets import ASSETS
from fastdef.hub import Evidence, describe, known_answers, known_images, model_card

SHAPE = (1, 28, 28)
REPORT = {
    "headline": 0.2583,
    "sentence": "The strongest attack leaves 25.8%.",
    "passed": True,
    "settings": {"data": "fashion-mnist test", "images": 48, "eps": 8 / 255, "budget": {"name": "standard"}},
}


@pytest.fixture(scope="module")
def checkpoint():
    return load(ASSETS / "smoothing.safetensors")


def metadata(card):
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)[1])


def test_the_adaptive_figure_comes_first_and_is_in_the_hub_s_metadata(checkpoint):
    card = model_card(checkpoint, name="small", shape=SHAPE, evidence=Evidence(REPORT), license="mit")

    described = metadata(card)
    assert described["license"] == "mit"
    assert described["datasets"] == ["fashion-mnist"]
    assert {"active-defense", "adversarial-robustness"} <= set(described["tags"])
    (result,) = described["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == 0.2583
    assert "eps 8/255, 48 images" in result["metrics"][0]["name"]
    assert card.partition("# small\n\n")[2].startswith("**25.8% of the images under adaptive attacks.**")


def test_a_model_that_was_not_evaluated_or_whose_evaluation_failed_says_so(checkpoint):
    bare = model_card(checkpoint, name="small", shape=SHAPE)
    failed = model_card(checkpoint, name="small", shape=SHAPE, evidence=Evidence({**REPORT, "passed": False}))

    assert "model-index" not in metadata(bare)
    assert bare.partition("# small\n\n")[2].startswith("**Not evaluated against adaptive attacks.**")
    assert "do not trust its figures" in failed


def test_the_known_answers_are_what_the_model_gives(checkpoint):
    answers = known_answers(checkpoint, SHAPE)

    result = ActiveDefense.from_checkpoint(checkpoint, compile=False).defend(known_images(SHAPE))
    best = result.logits.exp().max(1)
    assert [one["steps"] for one in answers] == result.steps.tolist()
    assert [one["class"] for one in answers] == [checkpoint.classes[k] for k in best.indices]
    torch.testing.assert_close(torch.tensor([one["probability"] for one in answers]), best.values, rtol=0, atol=1e-4)


def test_the_facts_of_a_model_of_afa():
    path = ASSETS / "afa.safetensors"

    facts = describe(load(path), path)

    assert facts["architecture"] == "wrn-10-2"
    assert facts["afa"] == {"branches": 5, "placement": "shared", "stage": 2}
    assert facts["bytes"] == path.stat().st_size
    assert facts["training"]["images"] == 18000
    assert json.dumps(facts)


def test_what_a_file_says_is_no_markup_of_the_card(checkpoint):
    hostile = replace(checkpoint, classes=("a|b\n# c <script>", *checkpoint.classes[1:]))

    card = model_card(hostile, name="small", shape=SHAPE)

    assert "a\\|b \\# c \\<script\\>" in card
    assert "<script>" not in card


@pytest.mark.parametrize("content", ["[]", '{"headline": 1}', "no JSON"])
def test_another_file_than_a_report_is_refused(tmp_path, content):
    (tmp_path / "report.json").write_text(content)

    with pytest.raises(ValueError, match=r"report\.json needs"):
        Evidence.read(tmp_path, None)
