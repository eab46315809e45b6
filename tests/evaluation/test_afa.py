import pytest
import torch

from fastdef.attacks import RATIOS, adaptive_pgd
from fastdef.data import Dataset
from fastdef.evaluation import draw_strengths, evaluate_strengths, rounds, submodels
from fastdef.evaluation.attack import Attack
from fastdef.evaluation.figure import strengths_figure
from fastdef.nn import branch, build, convert_to_afa, convert_to_multi_bn, fixed_fusing_weight, parse_architecture, tap

EPS = (0.0, 8 / 255)


def plain():
    torch.manual_seed(0)
    model = build(parse_architecture("wrn-10-1", in_channels=1))
    model(torch.rand(16, 1, 12, 12))
    return model


def branched():
    model = convert_to_multi_bn(plain(), 3)
    with torch.no_grad():
        model.bn1.bias.copy_(torch.randn(model.bn1.bias.shape, generator=torch.Generator().manual_seed(2)))
    return model


def data(count=24):
    pixels = torch.randint(0, 256, (count, 1, 12, 12), generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, 10, (count,), generator=torch.Generator().manual_seed(1))
    return Dataset(pixels.to(torch.uint8), labels, tuple("abcdefghij"), "noise", "test")


def right(model, dataset, eps, steps):
    """As ``evaluate_strengths`` should count, in one batch."""
    images, labels = dataset.floats(0, len(dataset)), dataset.labels
    if eps:
        images = Attack(eps=eps, steps=steps)(model, images, labels)
    with torch.no_grad():
        return int((model.eval()(images).argmax(1) == labels).sum())


def test_every_part_is_attacked_and_counted_by_itself():
    model = convert_to_afa(branched())

    found = evaluate_strengths(model, data(), strengths=EPS, steps=3)

    assert list(found.rows) == ["AFA", "branch 0 (W0 = 1)", "blend (W0 = 0.5)", "branch K-1 (W0 = 0)"]
    counted = [[accuracy.correct for accuracy in row] for row in found.rows.values()]
    expected = [[right(model, data(), eps, 3) for eps in EPS]]
    for w0 in (1.0, 0.5, 0.0):
        with fixed_fusing_weight(model, w0):
            expected.append([right(model, data(), eps, 3) for eps in EPS])
    assert counted == expected
    assert found.mean("AFA") == pytest.approx(sum(expected[0]) / 2 / 24)


def test_a_model_of_stage_one_answers_branch_by_branch_and_a_plain_one_alone():
    model = branched()

    found = evaluate_strengths(model, data(), strengths=EPS, steps=2)

    for k in range(3):
        with branch(model, k):
            assert [a.correct for a in found.rows[f"branch {k}"]] == [right(model, data(), eps, 2) for eps in EPS]
    assert list(submodels(plain())) == ["model"]


def test_channels_and_weights_are_followed_over_the_strengths():
    model, dataset = convert_to_afa(branched()), data()

    found = evaluate_strengths(model, dataset, strengths=EPS, steps=2, batch_size=10)

    with tap(model, "block1") as tapped, torch.no_grad():
        model(dataset.floats(0, 24))
        features = tapped.features
    torch.testing.assert_close(torch.tensor(found.shifts[0].mean), features.mean((0, 2, 3)))
    torch.testing.assert_close(torch.tensor(found.shifts[0].variance), features.var((0, 2, 3), correction=0))
    assert 0 < found.shifts[1].w1[0] < 1
    assert found.shifts[0].mean != found.shifts[1].mean
    assert evaluate_strengths(plain(), dataset, strengths=EPS, steps=2).shifts[0].w1 is None


def test_the_channels_of_a_layer_without_a_plane_are_followed_too():
    model, dataset = plain().eval(), data()

    found = evaluate_strengths(model, dataset, strengths=EPS, steps=1, layer="fc")

    with torch.no_grad():
        logits = model(dataset.floats(0, len(dataset))).double()
    torch.testing.assert_close(torch.tensor(found.shifts[0].mean).double(), logits.mean(0), rtol=1e-5, atol=1e-6)


def test_the_adaptive_attack_counts_the_images_that_stand_all_seven():
    model, dataset = convert_to_afa(branched()).eval(), data()
    images, labels = dataset.floats(0, 24), dataset.labels
    with torch.no_grad():
        labels[:16] = model(images).argmax(1)[:16]  # right before the attack
    stood = []
    for ratio in RATIOS:
        generator = torch.Generator().manual_seed(0)
        how = {"eps": 1 / 255, "step": 1 / 255, "steps": 2, "ratio": ratio, "generator": generator}
        with torch.no_grad():
            stood.append(model(adaptive_pgd(model, images, labels, **how)).argmax(1) == labels)

    found = evaluate_strengths(model, dataset, strengths=(0.0, 1 / 255), steps=2).strongest

    assert list(found)[:2] == ["FGSM", "C&W margin, PGD-2"]
    assert found["adaptive PGD, images that stand all seven"].correct == int(torch.stack(stood).all(0).sum()) > 0
    assert found["adaptive PGD, lowest of seven"].correct == min(int(one.sum()) for one in stood)


@pytest.mark.parametrize("make", [plain, branched, lambda: convert_to_afa(branched())])
def test_rounds_are_what_is_reported(make):
    told, model = [], make()

    evaluate_strengths(model, data(), strengths=EPS, steps=1, progress=told.append)

    assert sum(told) == 24 * rounds(model, strengths=EPS)
    assert len(RATIOS) == 7


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"strengths": ()}, {"strengths": (-0.1,)}])
def test_what_does_not_fit_is_refused(wrong):
    with pytest.raises(ValueError, match="evaluate_strengths needs"):
        evaluate_strengths(plain(), data(), **wrong)


def test_a_picture_is_drawn_of_any_kind_of_model(tmp_path):
    found = {
        "plain": evaluate_strengths(plain(), data(), strengths=EPS, steps=1),
        "afa": evaluate_strengths(convert_to_afa(branched()), data(), strengths=EPS, steps=1),
    }

    draw_strengths(found, tmp_path / "out.png", title="noise")

    assert (tmp_path / "out.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_picture_shows_what_was_measured():
    found = {
        "plain": evaluate_strengths(plain(), data(), strengths=EPS, steps=1, parts=False),
        "afa": evaluate_strengths(convert_to_afa(branched()), data(), strengths=EPS, steps=1, parts=False),
    }

    accuracy, weight, mean, variance = strengths_figure(found, title="noise").axes

    for container, strengths in zip(accuracy.containers, found.values(), strict=True):
        (row,) = strengths.rows.values()
        line, _, (bars,) = container
        assert line.get_xdata().tolist() == pytest.approx([0, 8])
        assert line.get_ydata().tolist() == pytest.approx([100 * one.value for one in row])
        assert bars.get_segments()[1][:, 1].tolist() == pytest.approx([100 * end for end in row[1].interval])
    ((line, _, _),) = weight.containers
    assert line.get_ydata().tolist() == pytest.approx([shift.w1[0] for shift in found["afa"].shifts])
    for axis, what in ((mean, "mean"), (variance, "variance")):
        assert len(axis.lines) == 12
        shown = axis.lines[3].get_ydata().tolist()
        assert shown == pytest.approx([getattr(shift, what)[3] for shift in found["afa"].shifts])
    assert "255ths" in accuracy.get_xlabel()
    assert "accuracy" in accuracy.get_ylabel()
