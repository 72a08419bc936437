"""Ways to train the draft with less memory or time: none changes what is computed, nor any name of a weight."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from toys import MASK, packed_batch, tiny_draft, tiny_target

from dflash.blocks import draw_anchors, make_blocks, seeded_generator
from dflash.draft.attention import Dense, Flex
from dflash.draft.draft import Draft
from dflash.draft.layout import alternating_layout
from dflash.draft.mask import block_geometry


def draft_and_inputs(depth: int = 4):
    """A draft in training, and what one batch hands it."""
    target = tiny_target("gpt_oss")
    draft = tiny_draft(target, block_size=4, depth=depth, layout=alternating_layout(window=6)).train()
    draft.attention = Dense()
    batch = packed_batch([[(4, 14), (2, 15)], [(1, 39)]], length=40)
    anchors, valid = draw_anchors(batch, num_anchors=8, generator=seeded_generator(0, 1))
    blocks = make_blocks(batch, anchors, valid, block_size=4, mask_token_id=MASK)
    taps = target.features(batch, draft.shape.taps).taps_BSTH
    return draft, (target.embed(blocks.input_ids_BAK), taps, block_geometry(batch, blocks))


def value_and_gradients(draft: Draft, inputs) -> tuple[torch.Tensor, dict[str, torch.Tensor], int]:
    """(hidden states, gradients by name, bytes kept for the gradient, each storage once)."""
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    draft.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        hidden = draft(*inputs)
    hidden.square().sum().backward()
    return hidden.detach(), {name: p.grad.clone() for name, p in draft.named_parameters()}, sum(kept.values())


def test_checkpointing_layers_keeps_less_and_computes_the_same():
    draft, inputs = draft_and_inputs()
    hidden, gradients, kept = value_and_gradients(draft, inputs)
    draft.checkpoint_layers = True
    again, same_gradients, kept_less = value_and_gradients(draft, inputs)
    assert torch.equal(again, hidden)
    assert all(torch.equal(same_gradients[name], value) for name, value in gradients.items())
    weights = sum(p.nbytes for p in draft.parameters())
    assert kept_less - weights < 0.5 * (kept - weights), (kept, kept_less, weights)


def test_a_compiled_draft_computes_the_same_and_keeps_its_names():
    """The graph that a compiler is given, run as it is (aot_eager); code generation is the library's."""
    draft, inputs = draft_and_inputs(depth=2)
    names = list(draft.state_dict())
    hidden, gradients, _ = value_and_gradients(draft, inputs)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=False):
        draft.compile(backend="aot_eager")
        compiled, same_gradients, _ = value_and_gradients(draft, inputs)
    assert torch._dynamo.utils.counters["frames"]["ok"] >= 1, "nothing was compiled"
    torch.testing.assert_close(compiled, hidden, atol=1e-6, rtol=1e-5)
    for name, value in gradients.items():
        torch.testing.assert_close(same_gradients[name], value, atol=1e-5 * float(value.abs().max()) + 1e-9, rtol=1e-4)
    assert list(draft.state_dict()) == names


def test_checkpointed_layers_compile_too():
    draft, inputs = draft_and_inputs(depth=2)
    hidden, _, _ = value_and_gradients(draft, inputs)
    draft.checkpoint_layers = True
    draft.compile(backend="aot_eager")
    torch.testing.assert_close(value_and_gradients(draft, inputs)[0], hidden, atol=1e-6, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@torch.no_grad()
def test_flex_takes_queries_and_keys_that_autocast_left_in_fp32():
    """On a GPU autocast runs norms in fp32 and products in bf16, so values are narrower than queries and keys."""
    _, (_, _, geometry) = draft_and_inputs()
    B, A, K, S = *geometry.anchors_BA.shape, geometry.block_size, geometry.documents_BS.shape[1]
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(B, A, K, 4, 8, generator=generator)
    context, block = (
        (torch.randn(*size, 2, 8, generator=generator), torch.randn(*size, 2, 8, generator=generator).bfloat16())
        for size in ((B, S), (B, A, K))
    )
    flex, dense = Flex(compile=False), Dense()
    found = flex(query, context, block, flex.prepare(geometry, {None})[None])
    wide = [(key, value.float()) for key, value in (context, block)]
    expected = dense(query, *wide, dense.prepare(geometry, {None})[None])
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, atol=0.05, rtol=0.05)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="flex attention is compiled for a GPU")
@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["fp32", "bf16 autocast"])
def test_compiled_flex_equals_the_dense_form_on_a_gpu(dtype):
    """What trainer=gpu trains with, in value and gradient; under autocast as training runs it."""
    small, (noise, taps, geometry) = draft_and_inputs()
    draft = Draft(replace(small.shape, head_dim=16)).cuda()  # the least that its kernel takes
    moved = {name: t.cuda() if isinstance(t, torch.Tensor) else t for name, t in vars(geometry).items()}
    inputs = noise.cuda(), taps.cuda(), type(geometry)(**moved)
    found = []
    for attention in (Dense(), Flex()):
        draft.attention = attention
        with torch.autocast("cuda", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            found.append(value_and_gradients(draft, inputs))
    (dense, dense_gradients, _), (flex, flex_gradients, _) = found
    share = 2e-4 if dtype is None else 0.05  # of the largest entry
    torch.testing.assert_close(flex.float(), dense.float(), atol=share * float(dense.abs().max()), rtol=0)
    for name, value in dense_gradients.items():
        torch.testing.assert_close(flex_gradients[name], value, atol=share * float(value.abs().max()) + 1e-9, rtol=0)
