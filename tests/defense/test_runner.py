import pytest
import torch


def starved(defense, monkeypatch, room, after=0):
    """An allocator that has no room for more than ``room`` slots, once ``after`` slots have been made."""
    make, made = defense._engine._make, []

    def allocate(key):
        made.append(key)
        if key[0][0] > room and len(made) > after:
            raise torch.OutOfMemoryError("CUDA out of memory (simulated)")
        return make(key)

    monkeypatch.setattr(defense._engine, "_make", allocate)


@pytest.mark.parametrize("deterministic", [True, False])
def test_out_of_memory_the_slots_are_halved_and_every_image_is_answered(
    defense_for, model, images, monkeypatch, deterministic
):
    defense = defense_for(model, images, slots=8, deterministic=deterministic)
    expected = defense_for(model, images, slots=2).defend(images)
    starved(defense, monkeypatch, room=2)

    with pytest.warns(RuntimeWarning, match="out of memory: going on with") as told:
        answers = defense.defend(images)
    again = defense.defend(images)

    assert defense.slots == 2
    assert len(told) == 2  # 4, and 2; and never again
    torch.testing.assert_close(answers.steps, expected.steps)
    torch.testing.assert_close(answers.logits, expected.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(again.logits, answers.logits)


def test_out_of_memory_in_the_midst_of_a_stream_nothing_is_lost_or_answered_twice(
    defense_for, model, images, monkeypatch
):
    defense = defense_for(model, images, slots=8)
    expected = defense_for(model, images, slots=2).defend(images)
    advance, calls = defense._engine._make, []

    def failing(key):
        slots = advance(key)
        step = slots.advance

        def once():
            calls.append(1)
            if len(calls) == 12:
                raise torch.OutOfMemoryError("CUDA out of memory (simulated)")
            return step()

        slots.advance = once
        return slots

    monkeypatch.setattr(defense._engine, "_make", failing)

    with pytest.warns(RuntimeWarning, match="4 slots"):
        answers = list(defense.stream(iter(images)))

    assert [answer.steps for answer in answers] == expected.steps.tolist()
    torch.testing.assert_close(torch.stack([a.logits for a in answers]), expected.logits, rtol=1e-4, atol=1e-4)


def test_where_one_slot_is_too_much_the_error_is_the_memory_s(defense_for, model, images, monkeypatch):
    defense = defense_for(model, images, slots=2)
    starved(defense, monkeypatch, room=0)

    with pytest.warns(RuntimeWarning), pytest.raises(torch.OutOfMemoryError, match="simulated"):
        defense.defend(images)
