import torch
from torch import nn

from fastdef.runtime import cache, cpu_chunk, memory

KEPT = 4 * 64 * 64 * 4  # bytes of the features before the ReLU, which its backward looks at


def test_a_step_is_measured_by_what_autograd_keeps():
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())

    needed = memory.step_bytes(network, torch.rand(1, 3, 64, 64))

    assert KEPT <= needed <= 2.5 * KEPT  # the image and the weights come on top


def test_a_machine_has_memory_and_a_container_what_it_is_given(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_CGROUP", tmp_path / "none")
    whole = memory.machine_bytes()
    monkeypatch.setattr(memory, "_CGROUP", tmp_path / "memory.max")
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.machine_bytes() == whole > 1 << 28
    (tmp_path / "memory.max").write_text(f"{1 << 27}\n")
    assert memory.machine_bytes() == 1 << 27


def test_large_images_run_fewer_at_once_and_answer_the_same(defense_for, model, images, monkeypatch):
    wide, narrow = defense_for(model, images, slots=8), defense_for(model, images, slots=8)
    narrow.delta = wide.delta
    expected = wide.smooth(images[:8])
    needed = memory.step_bytes(nn.Sequential(*[model.conv1, model.block1]), images[:1])
    monkeypatch.setattr(cache, "machine_bytes", lambda: 4 * 3 * needed)  # a quarter of it holds three

    made = narrow.empty_slots(8, images[0])
    result = narrow.smooth(images[:8])

    assert made._chunk in (1, 2)
    assert result.steps.tolist() == expected.steps.tolist()
    torch.testing.assert_close(result.images, expected.images, rtol=0, atol=1e-5)


def test_chunks_divide_the_slots():
    for slots in (1, 6, 8, 24, 64, 100):
        for most in (1, 2, 3, 7, 16, 1000):
            chunk = cpu_chunk(slots, most)
            assert slots % chunk == 0
            assert chunk <= most or most >= slots
