"""A draft that goes left to right trains in the same module: walk and decoding agree, checkpoints give it back."""

from __future__ import annotations

from dataclasses import replace

import torch

from dflash.draft.draft import Draft
from dflash.training.callbacks import AcceptanceEval
from dflash.training.checkpoint import load_draft, make_contract
from tests.training.conftest import fit, make_setup, weights


def test_it_is_trained_evaluated_and_loaded_as_any_draft(tmp_path):
    setup = make_setup(steps=8)
    shape = replace(setup.module.draft.shape, left_to_right=True)
    torch.manual_seed(0)
    setup.module.draft, setup.module.contract = Draft(shape), make_contract(setup.loaded, shape)
    before = weights(setup.module.draft)
    trainer = fit(setup, tmp_path, steps=8)  # evaluation raises where chain walk and real decoding differ
    curve = next(c for c in trainer.callbacks if isinstance(c, AcceptanceEval)).curve
    assert [point["step"] for point in curve] == [0, 2, 4, 6, 8]
    draft = load_draft(tmp_path / "checkpoints" / "last.ckpt", setup.loaded)
    assert draft.shape == shape
    assert not any(torch.equal(draft.state_dict()[name], before[name]) for name in ("fc.weight", "norm.weight"))
