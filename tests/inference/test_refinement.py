from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medals_rt.common.arrays import to_host
from medals_rt.inference.refinement import (
    BlockMask,
    MaskRequest,
    block_grid,
    collect,
    expand_mask,
    mask_from_order,
    masked_pass,
    refine,
    seeded_masks,
)
from medals_rt.inference.spatial_prompts import (
    Blocks,
    ChannelPrompts,
    SpatialPrompts,
    channel_prompts,
)
from medals_rt.planning.policy import MaskedPass
from medals_rt.planning.window_pass import WindowPass, passes_per_window

WINDOW = (16, 12, 8)
EIGHT = MaskedPass(block_sizes=(8,), repetitions=1, iterations=1)
FOUR = MaskedPass(block_sizes=(4,), repetitions=1, iterations=1)


def request(**changes: Any) -> MaskRequest:
    fields: dict[str, Any] = {
        "stage": 2,
        "window_index": 3,
        "iteration": 0,
        "repetition": 0,
        "window_hwd": WINDOW,
        "block_sizes": (4, 8),
    }
    return MaskRequest(**{**fields, **changes})


def window_pass(**changes: Any) -> WindowPass:
    fields: dict[str, Any] = {
        "stage": 2,
        "window_index": 0,
        "window_hwd": WINDOW,
        "prompted": EIGHT,
        "further": FOUR,
        "further_iterations": 0,
        "count": 2,
    }
    return WindowPass(**{**fields, **changes})


class Recorder:
    """A network that answers with what it was shown: 0.9 where a prompt was seen, else 0.2.

    Classes come one at a time, as they do where there are many.
    """

    def __init__(self, xp: Any, classes: int = 2) -> None:
        self.xp = xp
        self.classes = classes
        self.seen: list[np.ndarray | None] = []
        self.wanted: list[slice] = []

    def __call__(self, prompts: SpatialPrompts | None, classes: slice) -> Any:
        shown = None if prompts is None else prompts.channels(self.classes)
        self.seen.append(None if shown is None else to_host(shown))
        self.wanted.append(classes)
        for n in range(classes.start, classes.stop):
            chunk = slice(n, n + 1)
            if shown is None:
                yield chunk, self.xp.full((1, *WINDOW), 0.2, dtype=self.xp.float32)
            else:
                yield chunk, shown[chunk, ...] * 0.7 + 0.2


def answering(answers: Any, seen: list[np.ndarray | None] | None = None, xp: Any = np) -> Any:
    """A network that gives these arrays of all classes, one a pass."""
    remaining = iter(answers)

    def predict(prompts: SpatialPrompts | None, classes: slice) -> Any:
        if seen is not None:
            seen.append(None if prompts is None else to_host(prompts.channels(2)))
        yield classes, xp.asarray(next(remaining))[classes, ...]

    return predict


def masks_of(xp: Any, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return xp.asarray(rng.random((2, *WINDOW)) > 0.4)


def prompts_of(xp: Any, seed: int = 0) -> ChannelPrompts:
    found = channel_prompts(masks_of(xp, seed), 4)
    assert found is not None
    return found


def refined(predict: Any, prompts: Any, what: WindowPass, masks: Any, **options: Any) -> Any:
    parts = refine(predict, prompts, what, masks, **options)
    return collect(parts, what.wanted or slice(0, what.count))


@given(
    st.integers(0, 2**31),
    st.text(max_size=20),
    st.tuples(*[st.integers(1, 40)] * 3),
    st.integers(0, 500),
)
def test_masks_show_half_of_the_blocks(
    seed: int, case: str, window: tuple[int, int, int], index: int
) -> None:
    mask = seeded_masks(seed, case)(request(window_hwd=window, window_index=index))
    assert mask.size in {4, 8}
    assert mask.chosen.shape == block_grid(window, mask.size)
    assert np.count_nonzero(mask.chosen) == max(1, mask.chosen.size // 2)


def test_masks_follow_from_what_the_pass_is_and_from_nothing_else() -> None:
    def drawn(seed: int = 0, case: str = "a", **changes: Any) -> tuple[int, bytes]:
        mask = seeded_masks(seed, case)(request(window_hwd=(64, 64, 64), **changes))
        return mask.size, mask.chosen.tobytes()

    source = seeded_masks(0, "a")
    source(request(window_index=7))  # what was drawn before has no part in it
    again = source(request(window_hwd=(64, 64, 64)))
    assert (again.size, again.chosen.tobytes()) == drawn()
    others = [
        drawn(seed=1),
        drawn(case="b"),
        drawn(stage=1),
        drawn(window_index=4),
        drawn(iteration=1),
        drawn(repetition=1),
    ]
    assert len({drawn(), *others}) == 7


def test_masks_stay_the_same_from_version_to_version() -> None:
    """Frozen figures: a change here changes every user's results for a seed."""
    mask = seeded_masks(0, "case")(request(window_hwd=(32, 24, 16), block_sizes=(8,)))
    assert "".join(str(int(block)) for block in mask.chosen.flat) == "100100001011110010010111"


def test_both_block_sizes_come_up() -> None:
    source = seeded_masks(0, "case")
    sizes = [source(request(window_index=i)).size for i in range(200)]
    assert 60 < sizes.count(4) < 140


def test_expanded_masks_are_complementary_blocks(xp: Any) -> None:
    mask = seeded_masks(5, "case")(request(window_hwd=(10, 9, 7), block_sizes=(4,)))
    expanded = expand_mask(mask, (10, 9, 7), xp)
    assert expanded.dtype == xp.bool
    expected = np.kron(mask.chosen, np.ones((4, 4, 4)))[:10, :9, :7]
    np.testing.assert_array_equal(to_host(expanded), expected)


def test_mask_from_order_shows_the_first_half() -> None:
    mask = mask_from_order(np.array([4, 2, 0, 1, 3]), (1, 1, 5), 8)
    assert mask.chosen.ravel().tolist() == [False, False, True, False, True]
    assert mask_from_order(np.array([0]), (1, 1, 1), 8).chosen.all()


def test_a_voxel_keeps_the_pass_that_did_not_see_its_prompt(xp: Any) -> None:
    """The recorder says 0.9 where it saw a prompt: nothing of that may be left."""
    predict = Recorder(xp)
    mask = seeded_masks(0, "case")(request())
    parts = list(masked_pass(predict, prompts_of(xp), mask, WINDOW, slice(0, 2)))
    assert [part.classes for part in parts] == [slice(0, 1), slice(1, 2)] * 2
    found = collect(parts, slice(0, 2))
    np.testing.assert_array_equal(to_host(found), np.float32(0.2))
    first, second = predict.seen
    assert first is not None
    assert second is not None
    np.testing.assert_array_equal(first + second, to_host(masks_of(xp)))
    assert not (first * second).any()


@given(st.integers(0, 10_000))
def test_masked_pass_is_the_papers_formula(seed: int) -> None:
    rng = np.random.default_rng(seed)
    answers = rng.random((2, 2, *WINDOW), dtype=np.float32)
    mask = seeded_masks(seed, "case")(request())
    parts = masked_pass(answering(answers), prompts_of(np, seed), mask, WINDOW, slice(0, 2))
    found = collect(parts, slice(0, 2))
    m = expand_mask(mask, WINDOW)
    np.testing.assert_array_equal(found, answers[0] * (1 - m) + answers[1] * m)


def test_logits_combine_to_the_same_probabilities() -> None:
    """What the release does, at R = 1; float32's sigmoid and logit cost 1e-6."""
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 4, (2, 2, *WINDOW)).astype(np.float32)
    probabilities = 1 / (1 + np.exp(-logits))
    mask = seeded_masks(0, "case")(request())
    parts = masked_pass(answering(probabilities), prompts_of(np), mask, WINDOW, slice(0, 2))
    m = expand_mask(mask, WINDOW)
    combined = logits[0] * (1 - m) + logits[1] * m
    found = collect(parts, slice(0, 2))
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-combined)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("combine", ["probability", "logit"])
def test_repetitions_are_averaged(xp: Any, combine: str) -> None:
    rng = np.random.default_rng(4)
    answers = rng.random((6, 2, *WINDOW), dtype=np.float32)
    answers[0, 0, 0, 0, 0] = 1.0  # a logit that isn't finite
    what = window_pass(
        prompted=MaskedPass(block_sizes=(4, 8), repetitions=3, iterations=1), combine=combine
    )
    drawn: list[BlockMask] = []

    def masks(asked: MaskRequest) -> BlockMask:
        assert asked.repetition == len(drawn)
        drawn.append(seeded_masks(0, "case")(asked))
        return drawn[-1]

    found = refined(answering(answers, xp=xp), prompts_of(xp), what, masks)
    each = []
    for r, mask in enumerate(drawn):
        m = expand_mask(mask, WINDOW)
        each.append((answers[2 * r] * (1 - m) + answers[2 * r + 1] * m).astype(np.float64))
    assert len(each) == 3
    if combine == "logit":
        nearest_one = float(np.float32(1 - 1e-7))
        each = [np.log(p / (1 - p)) for p in (np.clip(p, 1e-7, nearest_one) for p in each)]
    expected = np.mean(each, axis=0)
    if combine == "logit":
        expected = 1 / (1 + np.exp(-expected))
    assert found.dtype == xp.float32
    np.testing.assert_allclose(to_host(found), expected, rtol=0, atol=1e-5)


def test_text_only_is_one_pass_without_prompts(xp: Any) -> None:
    text_only = window_pass(prompted=None)
    for what, prompts in ((text_only, None), (window_pass(mode="none"), prompts_of(xp))):
        predict = Recorder(xp)
        refined(predict, prompts, what, seeded_masks(0, "case"))
        assert predict.seen == [None]


def test_unmasked_shows_the_whole_prompts_once(xp: Any) -> None:
    predict = Recorder(xp)
    what = window_pass(
        mode="unmasked", prompted=MaskedPass(block_sizes=(8,), repetitions=5, iterations=1)
    )
    refined(predict, prompts_of(xp), what, seeded_masks(0, "case"))
    (seen,) = predict.seen
    np.testing.assert_array_equal(seen, to_host(masks_of(xp)))
    assert passes_per_window(what) == 1


def test_lesions_iterate_on_their_own_answer(xp: Any) -> None:
    """The second pair is shown where the first answer exceeds one half, in blocks of four.

    One half itself does not, though it would be enough for a label.
    """
    asked = []
    first_answer = np.random.default_rng(6).random((2, *WINDOW), dtype=np.float32)
    first_answer[:, ::3] = 0.5
    seen: list[np.ndarray | None] = []

    def masks(wanted: MaskRequest) -> BlockMask:
        asked.append((wanted.iteration, wanted.block_sizes))
        return seeded_masks(0, "case")(wanted)

    what = window_pass(prompted=None, further_iterations=2)
    refined(answering([first_answer] * 5, seen, xp), None, what, masks)
    assert asked == [(0, (4,)), (1, (4,))]
    assert seen[0] is None
    assert len(seen) == 5 == passes_per_window(what)
    np.testing.assert_array_equal(seen[1] + seen[2], first_answer > 0.5)
    asked.clear()
    what = window_pass(further_iterations=2)
    refined(answering([first_answer] * 6, xp=xp), prompts_of(xp), what, masks)
    assert asked == [(0, (8,)), (1, (4,)), (2, (4,))]
    assert passes_per_window(what) == 6


def test_empty_prompts_cost_one_pass_but_draw_their_mask(xp: Any) -> None:
    """Hiding nothing leaves both predictions equal; the masks of later windows must not shift."""
    drawn = []

    def masks(wanted: MaskRequest) -> BlockMask:
        drawn.append(wanted)
        return seeded_masks(0, "case")(wanted)

    predict = Recorder(xp)
    found = refined(predict, None, window_pass(), masks)
    assert predict.seen == [None]
    assert len(drawn) == 1
    np.testing.assert_array_equal(to_host(found), np.float32(0.2))


def test_a_half_that_holds_no_prompt_is_a_pass_without_prompts(xp: Any) -> None:
    """Known from the blocks alone: the device is not asked."""
    shown = np.zeros((2, *WINDOW), bool)
    shown[0, :4, :4, :4] = True
    prompts = channel_prompts(xp.asarray(shown), 4)
    assert prompts is not None
    chosen = np.zeros((2, 2, 1), bool)
    chosen[0, 0, 0] = True
    predict = Recorder(xp)
    list(masked_pass(predict, prompts, Blocks(8, chosen), WINDOW, slice(0, 2)))
    np.testing.assert_array_equal(predict.seen[0], shown)
    assert predict.seen[1] is None


def test_a_group_of_classes_gets_what_all_together_would_give(xp: Any) -> None:
    """Earlier passes take all classes, whose prompts each class sees; the last gives the group."""
    answers = np.random.default_rng(8).random((4, 2, *WINDOW), dtype=np.float32)
    masks = seeded_masks(0, "case")

    def run(wanted: slice | None) -> tuple[Any, list[slice]]:
        asked: list[slice] = []
        network = answering(answers, xp=xp)

        def predict(prompts: SpatialPrompts | None, classes: slice) -> Any:
            asked.append(classes)
            return network(prompts, classes)

        what = window_pass(further_iterations=1, wanted=wanted)
        return to_host(refined(predict, prompts_of(xp), what, masks)), asked

    whole, _ = run(None)
    for n in range(2):
        group = slice(n, n + 1)
        one, asked = run(group)
        np.testing.assert_array_equal(one, whole[group])
        assert asked == [slice(0, 2)] * 2 + [group] * 2


def test_further_pairs_stop_where_there_is_no_time(xp: Any) -> None:
    first_answer = np.random.default_rng(6).random((2, *WINDOW), dtype=np.float32)
    seen: list[np.ndarray | None] = []
    what = window_pass(prompted=None, further_iterations=2)
    predict = answering([first_answer] * 5, seen, xp)
    found = refined(predict, None, what, seeded_masks(0, "case"), go_on=lambda: False)
    assert seen == [None]
    np.testing.assert_array_equal(to_host(found), first_answer)


def test_the_paper_as_printed_starts_from_a_pass_of_its_own() -> None:
    """Algorithm 2, lines 3 to 6: prompts come from the window's own text-only prediction."""
    rng = np.random.default_rng(5)
    first, one, other = (rng.random((2, *WINDOW), dtype=np.float32) for _ in range(3))
    seen: list[np.ndarray | None] = []
    what = window_pass(starts_from_text=True)
    mask = seeded_masks(0, "a")(request(stage=2, iteration=0, block_sizes=(8,)))
    found = refined(answering([first, one, other], seen), prompts_of(np), what, lambda _: mask)
    shown = expand_mask(mask, WINDOW)
    assert seen[0] is None
    np.testing.assert_array_equal(seen[1], (first > 0.5) & shown)
    np.testing.assert_array_equal(seen[2], (first > 0.5) & ~shown)
    np.testing.assert_array_equal(found, np.where(shown, other, one))
    assert passes_per_window(what) == 3


@pytest.mark.parametrize(
    ("changes", "passes"),
    [
        ({}, 2),
        ({"mirrored": True}, 16),
        ({"prompted": None}, 1),
        ({"prompted": None, "mirrored": True, "mode": "none"}, 8),
        ({"prompted": MaskedPass((8,), 3, 2)}, 12),
        ({"prompted": MaskedPass((8,), 3, 2), "mode": "unmasked"}, 2),
        ({"prompted": MaskedPass((8,), 3, 2), "starts_from_text": True}, 13),
        ({"prompted": MaskedPass((8,), 3, 2), "starts_from_text": True, "mode": "none"}, 1),
        ({"further_iterations": 2, "mirrored": True}, 48),
    ],
)
def test_passes_of_a_window(changes: dict[str, Any], passes: int) -> None:
    assert passes_per_window(window_pass(**changes)) == passes
