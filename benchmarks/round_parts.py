"""A target and a draft of a given shape with random weights, as this folder's scripts time them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from instruments import median_seconds, require_device

from dflash.decode.proposer import proposer_of
from dflash.draft.draft import Draft
from dflash.draft.heads.slots import likeliest
from dflash.draft.layout import full_layout
from dflash.draft.shape import shape_draft
from dflash.draft.taps import uniform_taps
from dflash.target.attention import FUSED, register_fused
from dflash.target.families import build_model, gpt_oss_config
from dflash.target.target import Target


@dataclass(frozen=True)
class Shape:
    """Of a gpt-oss target (num_layers to sliding_window, vocab_size) and its draft (depth, mlp_ratio, num_taps)."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_experts: int
    num_experts_per_token: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    sliding_window: int
    vocab_size: int
    depth: int
    mlp_ratio: float
    num_taps: int


# The embedded target with the default draft, and gpt-oss-20b with its published draft.
SHAPES = {
    "small": Shape(8, 192, 160, 4, 2, 3, 1, 64, 128, 4096, depth=2, mlp_ratio=3.0, num_taps=3),
    "gpt_oss_20b": Shape(24, 2880, 2880, 32, 4, 64, 8, 64, 128, 201088, depth=8, mlp_ratio=8 / 3, num_taps=5),
}


def build_target(shape: Shape, *, layers: int | None, device: str, dtype: torch.dtype) -> Target:
    """Random weights, made on the device. Raises ValueError for a number of layers that cannot be scaled up."""
    layers = shape.num_layers if layers is None else layers
    if layers % 2 or not shape.num_taps + 3 <= layers <= shape.num_layers:
        raise ValueError(
            f"--layers {layers}: must be even, since layers slide and see all in turn, and between "
            f"{shape.num_taps + 3} and {shape.num_layers}"
        )
    sizes = {key: value for key, value in vars(shape).items() if key not in ("depth", "mlp_ratio", "num_taps")}
    config = gpt_oss_config(**sizes | {"num_layers": layers}, pretrained_length=4096)
    config.dtype = dtype
    register_fused()
    torch.manual_seed(0)
    with torch.device(device):
        model = build_model(config)
    model.set_attn_implementation(FUSED)
    model.set_experts_implementation("grouped_mm")
    return Target(model.to(device, dtype), name="random weights")


def target_parser(description: str) -> argparse.ArgumentParser:
    """A parser of the arguments that ``requested_target`` reads."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shape", choices=SHAPES, default="small", help="(%(default)s)")
    parser.add_argument("--layers", type=int, help="of the target, an even number; default: all")
    return parser


def requested_target(options: argparse.Namespace) -> Target:
    """Of the shape and on the device asked for, in bf16 on a GPU. Raises ValueError for what cannot be had."""
    require_device(options.device)
    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
    return build_target(SHAPES[options.shape], layers=options.layers, device=options.device, dtype=dtype)


class Round:
    """One target and one draft, with a context of ``context`` tokens in every row once ``open`` has been called."""

    def __init__(self, target: Target, shape: Shape, *, context: int, longest_block: int, device: str):
        self.target, self.device, self.context = target, device, context
        self.capacity = context + 2 * longest_block
        self.scale = shape.num_layers / target.dims.num_layers
        draft = shape_draft(
            target.dims, depth=shape.depth, mlp_ratio=shape.mlp_ratio, block_size=longest_block,
            taps=uniform_taps(count=shape.num_taps), layout=full_layout(), mask_token_id=shape.vocab_size - 1,
        )  # fmt: skip
        with torch.device(device):
            self.proposer = Draft(draft).to(target.dtype).eval()
        self.generator = torch.Generator().manual_seed(0)
        self.routers = [block.mlp.router for block in target.blocks]

    @torch.no_grad()
    def open(self, batch_size: int) -> None:
        """Sessions of ``batch_size`` rows, their context read."""
        self.batch_size = batch_size
        self.session = self.target.open(batch_size, capacity=self.capacity, taps=self.proposer.shape.taps)
        self.proposals = self.proposer.open(batch_size, capacity=self.capacity)
        ids, counts = self._ids(self.context), torch.full((batch_size,), self.context, device=self.device)
        lengths = [self.context] * batch_size
        _, taps = self.session.advance(ids)
        self.session.keep(counts, lengths=lengths)
        self.proposals.extend(taps, counts, lengths=lengths)

    @torch.no_grad()
    def verify(self, block: int, *, repeats: int) -> dict[str, Any]:
        """Seconds of the target's pass over ``block`` tokens a row, nothing kept, and the experts it touches."""
        ids = self._ids(block)
        hidden, _ = self.session.advance(ids)
        layers = median_seconds(lambda: self.session.advance(ids), device=self.device, repeats=repeats)
        head = median_seconds(lambda: self.target.logits(hidden), device=self.device, repeats=repeats)
        return {"seconds": layers * self.scale + head, "lm_head_seconds": head, "experts": self._experts(ids)}

    @torch.no_grad()
    def draft(self, block: int, *, repeats: int) -> dict[str, Any]:
        """Seconds of a proposal of ``block`` slots with their logits, and of a context longer by ``block`` tokens."""
        ids, none = self._ids(block), torch.zeros(self.batch_size, dtype=torch.long, device=self.device)
        _, taps = self.session.advance(ids)
        noise = self.target.embed(ids)

        def propose() -> None:
            hidden = self.proposals.propose(noise)
            if block > 1:
                self.target.logits(hidden[:, 1:])

        def extend() -> None:
            self.proposals.extend(taps, none, lengths=[self.context] * self.batch_size)

        proposal, extension = (median_seconds(f, device=self.device, repeats=repeats) for f in (propose, extend))
        return {"seconds": proposal + extension, "propose_seconds": proposal, "extend_seconds": extension}

    def _experts(self, ids: torch.Tensor) -> dict[str, float]:
        """Distinct experts of a layer that a pass over these tokens touches, and the bytes of their weights."""
        chosen: list[int] = []
        hooks = [
            router.register_forward_hook(lambda module, inputs, outputs: chosen.append(len(outputs[2].unique())))
            for router in self.routers
        ]
        self.session.advance(ids)
        for hook in hooks:
            hook.remove()
        experts = self.target.blocks[0].mlp.experts
        touched, size = sum(chosen) / len(chosen), sum(p.nbytes for p in experts.parameters()) / experts.num_experts
        return {
            "touched_per_layer": touched,
            "per_layer": experts.num_experts,
            "bytes_read": touched * size * len(chosen) * self.scale,
        }

    def _ids(self, length: int) -> torch.Tensor:
        """Random tokens: every row and every call its own."""
        size = self.batch_size, length
        return torch.randint(self.target.dims.vocab_size - 1, size, generator=self.generator).to(self.device)


@torch.no_grad()
def parts_of_round(target: Target, draft: Draft, context_BS: torch.Tensor) -> dict[str, Callable[[], object]]:
    """Name -> the work of a part of a round behind these contexts: verifying a block, proposing one (the head's walk
    included), and taking the target's features into the draft's context. Nothing is kept, so every call does the
    same."""
    (B, S), K = context_BS.shape, draft.shape.block_size
    lengths_B, lengths = torch.full_like(context_BS[:, 0], S), [S] * B
    session = target.open(B, capacity=S + 2 * K, taps=draft.shape.taps)
    _, taps_BSTH = session.advance(context_BS)
    session.keep(lengths_B, lengths=lengths)
    proposing = proposer_of(draft).open(session, capacity=S + 2 * K, block_size=K)
    proposing.extend(context_BS, taps_BSTH, lengths_B, lengths=lengths)
    block_BK, anchor_B, none_B = context_BS[:, :K].contiguous(), context_BS[:, 0], torch.zeros_like(lengths_B)
    taps_BKTH = session.advance(block_BK)[1]
    return {
        "verify": lambda: target.logits(session.advance(block_BK)[0]),
        "propose": lambda: proposing.slots(anchor_B).walk(likeliest),
        "extend": lambda: proposing.extend(block_BK, taps_BKTH, none_B, lengths=lengths),
    }
