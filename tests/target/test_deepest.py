"""Features without the last states: the same taps, from a pass that ends at the deepest of them."""

from __future__ import annotations

import pytest
import torch
from toys import TARGET_FAMILIES, packed_batch, tiny_target


@pytest.mark.parametrize("family", TARGET_FAMILIES)
@pytest.mark.parametrize("taps", [(0, 2), (1,), (2, 0)])
def test_taps_are_those_of_the_whole_pass(family, taps):
    target = tiny_target(family)
    batch = packed_batch([[(4, 20), (3, 9)], [(5, 25)]], length=36)
    whole = target.features(batch, taps, with_last=True)
    short = target.features(batch, taps)
    assert short.last_BSH is None
    assert torch.equal(short.taps_BSTH, whole.taps_BSTH)


def test_layers_behind_the_deepest_tap_are_not_run():
    target = tiny_target("gpt_oss")
    ran = []
    for i, block in enumerate(target.blocks):
        block.register_forward_hook(lambda module, args, output, i=i: ran.append(i))
    batch = packed_batch([[(4, 20)]], length=24)
    target.features(batch, (0, 1))
    assert ran == [0, 1]
    ran.clear()
    target.features(batch, (0, 1), with_last=True)
    assert ran == list(range(len(target.blocks)))
