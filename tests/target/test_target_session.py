"""Target sessions: whatever is kept of each advance, states are those of one teacher-forced pass."""

from __future__ import annotations

import pytest
import torch
from toys import ATTENTION_FAMILIES, plain_batch, tiny_target

TAPS = (0, 2)
LENGTH = 50


def rollback_walk(target, session, ids, features, *, seed: int, rows: list[int], lengths: list[int]):
    """Advance in random strides with junk behind each, keep random parts, and yield every error seen."""
    generator = torch.Generator().manual_seed(seed)
    while min(lengths) < LENGTH:
        stride = int(torch.randint(1, 9, (1,), generator=generator))
        chunk = torch.randint(0, 64, (len(rows), stride), generator=generator)  # junk, rejected below
        counts = []
        for i, row in enumerate(rows):
            good = min(int(torch.randint(0, stride + 1, (1,), generator=generator)), LENGTH - lengths[i])
            chunk[i, :good] = ids[row, lengths[i] : lengths[i] + good]
            counts.append(good)
        hidden, taps = session.advance(chunk)
        for i, row in enumerate(rows):
            at = slice(lengths[i], lengths[i] + counts[i])
            yield hidden[i, : counts[i]] - features.last_BSH[row, at]
            yield taps[i, : counts[i]] - features.taps_BSTH[row, at]
            lengths[i] += counts[i]
        session.keep(torch.tensor(counts), longest=max(lengths))
        assert session.lengths_B.tolist() == lengths


@pytest.mark.parametrize("family", ATTENTION_FAMILIES)
def test_session_equals_teacher_forcing_under_random_partial_keeps(family):
    target = tiny_target(family)
    ids = torch.randint(0, 64, (3, LENGTH), generator=torch.Generator().manual_seed(1))
    features = target.features(plain_batch(ids), TAPS, with_last=True)
    session = target.open(3, capacity=LENGTH + 8, taps=TAPS)
    errors = rollback_walk(target, session, ids, features, seed=1, rows=[0, 1, 2], lengths=[0, 0, 0])
    assert max(float(error.abs().max()) for error in errors if error.numel()) < 5e-5


@pytest.mark.parametrize("family", ["gpt_oss", "qwen3"])
def test_select_keeps_the_rows_named(family):
    target = tiny_target(family)
    ids = torch.randint(0, 64, (3, LENGTH), generator=torch.Generator().manual_seed(5))
    features = target.features(plain_batch(ids), TAPS, with_last=True)
    session = target.open(3, capacity=LENGTH + 8, taps=TAPS)
    session.advance(ids[:, :20])
    session.keep(torch.tensor([20, 4, 17]), longest=20)
    session.select(torch.tensor([2, 0]), longest=20)
    assert session.lengths_B.tolist() == [17, 20]
    errors = rollback_walk(target, session, ids, features, seed=6, rows=[2, 0], lengths=[17, 20])
    assert max(float(error.abs().max()) for error in errors if error.numel()) < 5e-5


def test_a_full_session_refuses_with_both_numbers():
    session = tiny_target("qwen3").open(1, capacity=10)
    session.advance(torch.zeros(1, 7, dtype=torch.long))
    session.keep(torch.tensor([7]), longest=7)
    session.advance(torch.zeros(1, 3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"11 tokens do not fit its capacity of 10"):
        session.advance(torch.zeros(1, 4, dtype=torch.long))


def test_capacity_beyond_the_targets_positions_is_refused():
    with pytest.raises(ValueError, match=r"session capacity 2049 exceeds the 2048 positions of target tiny-gpt_oss"):
        tiny_target("gpt_oss").open(1, capacity=2049)


def test_no_taps_no_features():
    hidden, taps = tiny_target("llama").open(2, capacity=5).advance(torch.zeros(2, 5, dtype=torch.long))
    assert hidden.shape == (2, 5, 32)
    assert taps is None
