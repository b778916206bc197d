"""Algorithm 1 against its statement, property by property."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from demo_training.prompt_simulation import PromptNoise, simulate_prompts

SHAPE = (40, 48, 32)
ALWAYS = PromptNoise(zero=0.0, channel_zero=0.0)


def _truth(channels: int = 3) -> np.ndarray:
    truth = np.zeros((channels, *SHAPE), bool)
    for n in range(channels):
        truth[n, 8 * n : 8 * n + 14, 5:30, 4:28] = True
    return truth


def _block_view(mask: np.ndarray, block: int) -> np.ndarray:
    h, w, d = (size // block for size in mask.shape)
    cut = mask[: h * block, : w * block, : d * block]
    return cut.reshape(h, block, w, block, d, block).transpose(0, 2, 4, 1, 3, 5)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), channels=st.integers(1, 5))
def test_shapes_types_and_repeatability(seed: int, channels: int) -> None:
    truth = _truth(channels)
    before = truth.copy()
    s_f, s_p = simulate_prompts(np.random.default_rng(seed), truth)
    again = simulate_prompts(np.random.default_rng(seed), truth)
    assert s_f.shape == (1, *SHAPE)
    assert s_p.shape == truth.shape
    assert s_f.dtype == s_p.dtype == np.bool_
    assert (truth == before).all()
    assert (s_f == again[0]).all()
    assert (s_p == again[1]).all()


def test_no_prompt_in_the_share_p_zero() -> None:
    truth = np.ones((1, 8, 8, 8), bool)
    noise = PromptNoise(drop=(0.0, 0.0), channel_zero=0.0)
    empty = [
        not simulate_prompts(np.random.default_rng(i), truth, noise)[0].any() for i in range(2000)
    ]
    # 2000 draws: standard deviation 0.0107, four of them on each side
    assert np.mean(empty) == pytest.approx(0.35, abs=0.043)


def test_channels_vanish_in_the_share_p_chan_zero() -> None:
    truth = np.ones((1, 4, 4, 4), bool)
    noise = PromptNoise(zero=0.0, drop=(0.0, 0.0), add=(0.0, 0.0))
    empty = [
        not simulate_prompts(np.random.default_rng(i), truth, noise)[1].any() for i in range(2000)
    ]
    assert np.mean(empty) == pytest.approx(0.1, abs=0.03)


@pytest.mark.parametrize("block", [4, 8, 16])
def test_drops_and_adds_come_in_whole_blocks_and_never_meet(block: int) -> None:
    truth = np.zeros((2, 64, 64, 64), bool)
    truth[0, :32] = True
    truth[1, 32:] = True
    noise = PromptNoise(0.0, 0.0, (block,), drop=(0.5, 0.5), add=(0.3, 0.3))
    s_f, _ = simulate_prompts(np.random.default_rng(3), truth, noise)
    blocks = _block_view(s_f[0], block)
    share = blocks.mean(axis=(3, 4, 5))
    assert set(np.unique(share)) <= {0.0, 1.0}
    # all is foreground: lost exactly where dropped, and no added block can bring it back
    assert 1 - share.mean() == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(share.size))


def test_added_blocks_fill_what_was_empty() -> None:
    truth = np.zeros((3, 64, 64, 64), bool)
    noise = PromptNoise(0.0, 0.0, (8,), drop=(0.5, 0.5), add=(0.2, 0.2))
    s_f, s_p = simulate_prompts(np.random.default_rng(5), truth, noise)
    # added at a rate of 0.2 where not dropped
    assert s_f.mean() == pytest.approx(0.1, abs=4 * 0.3 / np.sqrt(512))
    # each added block goes to at least one channel, and to nothing outside the added ones
    assert (s_p.any(axis=0) == s_f[0]).all()


def test_kept_blocks_go_to_random_non_empty_subsets_of_channels() -> None:
    truth = np.ones((3, 64, 64, 64), bool)
    noise = PromptNoise(0.0, 0.0, (4,), drop=(0.5, 0.5), add=(0.0, 0.0))
    s_f, s_p = simulate_prompts(np.random.default_rng(7), truth, noise)
    assert (s_p.any(axis=0) == s_f[0]).all()
    per_block = _block_view(s_p.sum(axis=0), 4)[..., 0, 0, 0]
    kept = per_block[per_block > 0]
    # the size of a subset is uniform in 1..3
    for size in (1, 2, 3):
        assert (kept == size).mean() == pytest.approx(1 / 3, abs=4 * 0.47 / np.sqrt(kept.size))
    # and no channel is preferred
    assert np.ptp(s_p.mean(axis=(1, 2, 3))) < 0.05


def test_rates_stay_in_their_ranges() -> None:
    truth = np.ones((1, 32, 32, 32), bool)
    noise = PromptNoise(0.0, 0.0, (4,))
    kept = [simulate_prompts(np.random.default_rng(i), truth, noise)[0].mean() for i in range(300)]
    # drop rates from U(0.3, 0.9): mean kept 0.4, and hardly anything beyond 0.1..0.7
    assert np.mean(kept) == pytest.approx(0.4, abs=0.05)
    assert min(kept) > 0.03
    assert max(kept) < 0.78


def test_block_larger_than_window_drops_all_or_nothing() -> None:
    truth = np.ones((1, 16, 16, 16), bool)
    noise = PromptNoise(0.0, 0.0, (32,), drop=(0.5, 0.5), add=(0.0, 0.0))
    shares = {
        float(simulate_prompts(np.random.default_rng(i), truth, noise)[0].mean()) for i in range(30)
    }
    assert shares == {0.0, 1.0}


def test_channel_prompts_never_exceed_truth_without_additions() -> None:
    truth = _truth()
    noise = PromptNoise(0.0, 0.1, (4, 8, 16, 32), add=(0.0, 0.0))
    for seed in range(20):
        s_f, s_p = simulate_prompts(np.random.default_rng(seed), truth, noise)
        assert not (s_p & ~truth).any()
        assert not (s_f[0] & ~truth.any(axis=0)).any()
        assert not (s_p.any(axis=0) & ~s_f[0]).any()


def test_every_prompt_is_kept_where_nothing_is_dropped_or_added() -> None:
    truth = _truth()
    noise = PromptNoise(0.0, 0.0, drop=(0.0, 0.0), add=(0.0, 0.0))
    s_f, s_p = simulate_prompts(np.random.default_rng(9), truth, noise)
    np.testing.assert_array_equal(s_p, truth)
    np.testing.assert_array_equal(s_f[0], truth.any(axis=0))
