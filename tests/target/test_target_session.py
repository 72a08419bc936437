"""Target sessions: whatever is kept of each advance, states are those of one teacher-forced pass."""

from __future__ import annotations

import copy

import pytest
import torch
from toys import HYBRID_FAMILIES, TARGET_FAMILIES, plain_batch, tiny_target

from dflash.target.families import build_model
from dflash.target.target import Target
from dflash.types import Tree

TAPS = (0, 2)
LENGTH = 50
CLOSE = 3e-4  # states are of the order of 5; two ways through a recurrent layer alone differ by 1e-4 in fp32


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
        session.keep(torch.tensor(counts), lengths=lengths)
        assert session.lengths_B.tolist() == lengths


@pytest.mark.parametrize("family", TARGET_FAMILIES)
def test_session_equals_teacher_forcing_under_random_partial_keeps(family):
    target = tiny_target(family)
    ids = torch.randint(0, 64, (3, LENGTH), generator=torch.Generator().manual_seed(1))
    features = target.features(plain_batch(ids), TAPS, with_last=True)
    session = target.open(3, capacity=LENGTH + 8, taps=TAPS)
    errors = rollback_walk(target, session, ids, features, seed=1, rows=[0, 1, 2], lengths=[0, 0, 0])
    assert max(float(error.abs().max()) for error in errors if error.numel()) < CLOSE


def test_layers_may_all_slide():
    """Where every layer has its type and none sees all, a session needs no mask for full attention."""
    config = copy.deepcopy(tiny_target("gpt_oss").model.config)
    config.layer_types = ["sliding_attention"] * config.num_hidden_layers
    target = Target(build_model(config), name="sliding")
    ids = torch.randint(0, 64, (3, LENGTH), generator=torch.Generator().manual_seed(1))
    features = target.features(plain_batch(ids), TAPS, with_last=True)
    session = target.open(3, capacity=LENGTH + 8, taps=TAPS)
    errors = rollback_walk(target, session, ids, features, seed=1, rows=[0, 1, 2], lengths=[0, 0, 0])
    assert max(float(error.abs().max()) for error in errors if error.numel()) < CLOSE


@pytest.mark.parametrize("family", ["gpt_oss", "qwen3", *HYBRID_FAMILIES])
def test_select_keeps_the_rows_named(family):
    target = tiny_target(family)
    ids = torch.randint(0, 64, (3, LENGTH), generator=torch.Generator().manual_seed(5))
    features = target.features(plain_batch(ids), TAPS, with_last=True)
    session = target.open(3, capacity=LENGTH + 8, taps=TAPS)
    session.advance(ids[:, :8])
    session.keep(torch.tensor([8, 8, 8]), lengths=[8, 8, 8])
    session.advance(ids[:, 8:20])
    session.keep(torch.tensor([12, 1, 9]), lengths=[20, 9, 17])
    session.select(torch.tensor([2, 0]), lengths=[17, 20])
    assert session.lengths_B.tolist() == [17, 20]
    errors = rollback_walk(target, session, ids, features, seed=6, rows=[2, 0], lengths=[17, 20])
    assert max(float(error.abs().max()) for error in errors if error.numel()) < CLOSE


@pytest.mark.parametrize("family", HYBRID_FAMILIES)
def test_recurrent_states_of_a_ragged_batch_are_those_of_each_row_alone(family):
    """Prompts of different lengths and partial keeps: no padding, no rejected token is left in any state."""
    target = tiny_target(family)
    ids = torch.randint(0, 64, (4, 30), generator=torch.Generator().manual_seed(4))
    kept = torch.tensor([30, 1, 17, 17]), torch.tensor([3, 0, 8, 5])
    after = [30, 1, 17, 17], [33, 1, 25, 22]
    batch = target.open(4, capacity=50)
    for counts, lengths, width in zip(kept, after, (30, 8), strict=True):
        batch.advance(ids[:, :width])
        batch.keep(counts, lengths=lengths)
    batch.advance(ids[:, :1])  # settles what was kept before it
    for row in range(4):
        alone = target.open(1, capacity=50)
        for counts, lengths in zip(kept, after, strict=True):
            if counts[row]:
                alone.advance(ids[row : row + 1, : counts[row]])
                alone.keep(counts[row : row + 1], lengths=lengths[row : row + 1])
        alone.advance(ids[row : row + 1, :1])
        for i in target.plan.recurrent:
            for name in ("conv_states", "recurrent_states"):
                ours, own = (getattr(session.cache.layers[i], name)[0] for session in (batch, alone))
                if own is not None:
                    torch.testing.assert_close(ours[row], own[0], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("family", HYBRID_FAMILIES)
def test_an_advance_that_nothing_is_kept_of_leaves_no_trace(family):
    target = tiny_target(family)
    ids = torch.randint(0, 64, (2, 12), generator=torch.Generator().manual_seed(9))
    session = target.open(2, capacity=30)
    session.advance(ids[:, :7])
    session.keep(torch.tensor([7, 7]), lengths=[7, 7])
    first, _ = session.advance(ids[:, 7:])
    again, _ = session.advance(ids[:, 7:])  # without keep: the one before did not happen
    assert torch.equal(first, again)


def test_a_tree_is_refused_where_a_layer_is_recurrent():
    tree = Tree(
        torch.zeros(1, 1, dtype=torch.long), torch.tensor([[0, 1]]), torch.eye(2, dtype=torch.bool)[None], max_depth=1
    )
    with pytest.raises(ValueError, match="layers of type conv read tokens one behind the other and cannot branch"):
        tiny_target("lfm2").open(1, capacity=9).advance(torch.zeros(1, 2, dtype=torch.long), tree=tree)


def test_a_full_session_refuses_with_both_numbers():
    session = tiny_target("qwen3").open(1, capacity=10)
    session.advance(torch.zeros(1, 7, dtype=torch.long))
    session.keep(torch.tensor([7]), lengths=[7])
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
