"""Small things that tests of several folders build: random targets, packed batches, drafts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dflash.draft.draft import Draft
from dflash.draft.layout import LayoutRule, full_layout
from dflash.draft.shape import shape_draft
from dflash.draft.taps import explicit_taps
from dflash.target.families import FAMILIES, build_model
from dflash.target.target import Target
from dflash.types import TokenBatch

ATTENTION_FAMILIES = ("gpt_oss", "qwen3", "qwen3_moe", "llama", "mistral", "gemma2", "gemma3")
HYBRID_FAMILIES = ("qwen3_next", "qwen3_5", "lfm2")  # recurrent layers between those of attention
TARGET_FAMILIES = ATTENTION_FAMILIES + HYBRID_FAMILIES
VOCABULARY = 64
MASK = VOCABULARY - 1
TAPS = (0, 1, 2)


@torch.no_grad()
def tiny_target(family: str, *, vocab_size: int = VOCABULARY, seed: int = 0, sharpness: float = 8.0) -> Target:
    """A random target whose argmax is decisive.

    The rows of its lm_head have one length, so that row t, taken as a hidden state, decodes to token t.
    """
    torch.manual_seed(seed)
    model = build_model(FAMILIES[family](vocab_size))
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            parameter.mul_(sharpness)
    weight = model.get_output_embeddings().weight
    weight.copy_(torch.nn.functional.normalize(weight, dim=-1) * sharpness * 0.1)
    return Target(model, name=f"tiny-{family}")


def tiny_draft(
    target: Target,
    *,
    block_size: int = 8,
    depth: int = 2,
    layout: LayoutRule | None = None,
    taps: tuple[int, ...] = TAPS,
    seed: int = 0,
    sharpness: float = 6.0,
    **variations,
) -> Draft:
    """A random draft whose hidden states depend clearly on what it sees; 2 query heads share a key-value head.

    variations: as ``shape_draft`` takes them.
    """
    shape = shape_draft(
        target.dims,
        depth=depth,
        block_size=block_size,
        taps=explicit_taps(layers=taps),
        layout=layout if layout is not None else full_layout(),
        mask_token_id=target.dims.vocab_size - 1,
        **variations,
    )
    torch.manual_seed(seed)
    draft = Draft(shape).eval()
    with torch.no_grad():
        for parameter in draft.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(sharpness)
    return draft


@torch.no_grad()
def stir(module: nn.Module, *, seed: int = 1, scale: float = 0.5) -> None:
    """Add noise to every parameter, those that start at zero included, so that nothing is the identity any more."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=scale)


def plain_batch(ids_BS: Tensor) -> TokenBatch:
    """One supervised document per row."""
    documents = torch.zeros_like(ids_BS)
    positions = torch.arange(ids_BS.shape[1]).expand_as(ids_BS)
    return TokenBatch(ids_BS, documents, positions, torch.ones_like(ids_BS, dtype=torch.bool))


def packed_batch(rows: list[list[tuple[int, int]]], *, length: int, seed: int = 0) -> TokenBatch:
    """Rows of documents, each (number of prompt tokens, number of supervised tokens); the rest is padding."""
    shape = len(rows), length
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, MASK, shape, generator=generator)
    documents = torch.full(shape, -1)
    positions = torch.zeros(shape, dtype=torch.long)
    supervised = torch.zeros(shape, dtype=torch.bool)
    for r, row in enumerate(rows):
        start = 0
        for number, (prompt, response) in enumerate(row):
            end = start + prompt + response
            documents[r, start:end] = number
            positions[r, start:end] = torch.arange(end - start)
            supervised[r, start + prompt : end] = True
            start = end
        if start > length:
            raise ValueError(f"row {r} has {start} tokens, more than {length}")
        positions[r, start:] = torch.arange(length - start)
    return TokenBatch(ids, documents, positions, supervised)


def random_prompts(lengths: tuple[int, ...], *, vocab_size: int = VOCABULARY, seed: int = 3) -> list[list[int]]:
    """Prompts of these lengths, without the mask token."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, vocab_size - 1, (n,), generator=generator).tolist() for n in lengths]
