import pytest
import torch
from torch import nn

from fastdef.defense import ActiveDefense
from fastdef.serving import Reply
from fastdef.serving.page.look import describe_stages

CLASSES = 12


@pytest.fixture(scope="module")
def defense():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 6, CLASSES)).eval()
    return ActiveDefense(model, layer="1", beta=1.0, delta=0.1, compile=False, slots=2)


def reply(probabilities):
    options = {"steps": 3, "converged": False, "expired": True, "started": True, "id": 7, "seconds": 0.2}
    return Reply(probabilities=probabilities, smoothed=torch.full((1, 6, 6), 0.5), **options)


def test_of_many_classes_the_ten_likeliest_by_either_answer_are_told_in_the_order_of_the_model_s(defense):
    image = torch.rand(1, 6, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        undefended = defense.model(image[None])[0].softmax(0)
    defended = torch.zeros(CLASSES)
    defended[int(undefended.argmin())] = 1.0  # the least likely by one answer is the likeliest by the other
    out = undefended.argsort()[1:3].tolist()

    told = describe_stages(defense, image, reply(defended), [f"class {n}" for n in range(CLASSES)])["answers"]

    assert [answer["label"] for answer in told] == [n for n in range(CLASSES) if n not in out]
    assert [answer["class"] for answer in told] == [f"class {answer['label']}" for answer in told]
    labels = [answer["label"] for answer in told]
    assert [answer["undefended"] for answer in told] == pytest.approx(undefended[labels].tolist(), abs=1e-6)
    assert [answer["defended"] for answer in told] == defended[labels].tolist()


def test_what_became_of_the_image_is_told_with_it(defense):
    told = describe_stages(defense, torch.zeros(1, 6, 6), reply(torch.zeros(CLASSES)), range(CLASSES))

    kept = {key: told[key] for key in ("delta", "steps", "converged", "expired", "seconds")}
    assert kept == {"delta": 0.1, "steps": 3, "converged": False, "expired": True, "seconds": 0.2}
