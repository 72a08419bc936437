"""The training step of the draft that ``training_step.py`` times: the project's own parts on random features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from flops import Load, seen_pairs

from dflash.blocks import draw_anchors, make_blocks, seeded_generator
from dflash.draft.attention import BlockAttention, Dense, Flex, TwoPiece
from dflash.draft.draft import Draft
from dflash.draft.mask import block_geometry
from dflash.draft.shape import DraftShape
from dflash.objective.objective import Objective
from dflash.objective.terms import CrossEntropy
from dflash.objective.weights import dpace
from dflash.training.optim import adamw
from dflash.types import TargetFeatures, TokenBatch

ATTENTION: dict[str, Callable[[], BlockAttention]] = {"dense": Dense, "two_pieces": TwoPiece, "flex": Flex}


@dataclass(frozen=True)
class Case:
    """Sizes of one measurement. Of the draft: hidden to num_taps. vocab_size: of the frozen lm_head. length: tokens of
    a row. chunk_blocks: blocks whose logits are in memory at a time. attention: None for the device's usual form."""

    hidden: int
    mlp: int
    depth: int
    heads: int
    kv_heads: int
    head_dim: int
    bias: bool
    num_taps: int
    vocab_size: int
    length: int
    rows: int
    anchors: int
    block_size: int
    chunk_blocks: int
    attention: str | None = None

    @property
    def shape(self) -> DraftShape:
        return DraftShape(
            hidden_size=self.hidden, intermediate_size=self.mlp, depth=self.depth, num_heads=self.heads,
            num_kv_heads=self.kv_heads, head_dim=self.head_dim, attention_bias=self.bias, rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 150000.0}, max_position_embeddings=self.length,
            num_target_layers=24, taps=tuple(range(self.num_taps)), layout=(None,) * self.depth,
            block_size=self.block_size, mask_token_id=self.vocab_size - 1,
        )  # fmt: skip


# small: the default run's sizes, without head and variations. gpt_oss_20b: the published draft, experiment=gpt_oss_20b.
SHAPES = {
    "small": Case(192, 576, 2, 3, 1, 64, True, 3, 4096, length=256, rows=2, anchors=24, block_size=8, chunk_blocks=64),
    "gpt_oss_20b": Case(
        2880, 7680, 8, 64, 8, 64, True, 5, 201088, length=4096, rows=1, anchors=512, block_size=8, chunk_blocks=256
    ),
}
VARIED = {
    "small": {
        "length": (128, 512), "anchors": (12, 48), "block_size": (4, 16), "vocab_size": (1024, 16384),
    },
    "gpt_oss_20b": {
        "length": (1024, 2048, 8192), "anchors": (128, 256, 1024), "block_size": (4, 16), "vocab_size": (32768, 131072),
    },
}  # fmt: skip


class FrozenTables:
    """The two ends of a target that a step uses: ``embed`` and ``logits`` over random tables [V, H]."""

    def __init__(self, vocab_size: int, hidden: int, *, device: str, dtype: torch.dtype, generator: torch.Generator):
        size = vocab_size, hidden
        self.embedding = torch.randn(size, generator=generator, dtype=dtype, device=device)
        self.lm_head = torch.randn(size, generator=generator, dtype=dtype, device=device).mul_(hidden**-0.5)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.embedding(ids, self.embedding)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(hidden.to(self.lm_head.dtype), self.lm_head)


class Step:
    """One optimizer step on one batch; called again, it takes another step on the same batch.

    In fp32 on a CPU; on a GPU in bf16 over fp32 master weights, features and tables in bf16.
    """

    def __init__(self, case: Case, device: str, *, compile: bool = False, checkpoint_layers: bool = False):
        generator = torch.Generator(device=device).manual_seed(0)
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        self.case, self.device = case, device
        self.target = FrozenTables(case.vocab_size, case.hidden, device=device, dtype=dtype, generator=generator)
        ids = torch.randint(case.vocab_size - 1, (case.rows, case.length), generator=generator, device=device)
        positions = torch.arange(case.length, device=device).expand_as(ids)
        self.batch = TokenBatch(ids, torch.zeros_like(ids), positions, torch.ones_like(ids, dtype=torch.bool))
        size = case.rows, case.length, case.num_taps, case.hidden
        self.features = TargetFeatures(torch.randn(size, generator=generator, dtype=dtype, device=device))
        torch.manual_seed(0)
        with torch.device(device):
            self.draft = Draft(case.shape, attention=ATTENTION[attention_of(case, device)]())
        self.objective = Objective({"cross_entropy": (1.0, CrossEntropy())}, dpace(), chunk_blocks=case.chunk_blocks)
        self.draft.checkpoint_layers = checkpoint_layers
        self.optimizer = adamw(self.draft)
        if compile:
            self.draft.compile()
        self.draw()

    def draw(self) -> None:
        """The anchors and their blocks."""
        case = self.case
        anchors, valid = draw_anchors(self.batch, num_anchors=case.anchors, generator=seeded_generator(0, "anchors"))
        mask = case.vocab_size - 1
        self.blocks = make_blocks(self.batch, anchors, valid, block_size=case.block_size, mask_token_id=mask)

    def __call__(self) -> None:
        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.device == "cuda"):
            noise, geometry = self.target.embed(self.blocks.input_ids_BAK), block_geometry(self.batch, self.blocks)
            hidden = self.draft(noise, self.features.taps_BSTH, geometry)
            terms = self.objective(hidden, self.blocks, self.features, self.target)
        (terms.numerator / terms.denominator.clamp_min(1e-12)).backward()
        torch.nn.utils.clip_grad_norm_(self.draft.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def load(self) -> Load:
        """What the floor is computed from."""
        valid = self.blocks.valid_BA
        pairs = seen_pairs(self.blocks.anchors_BA[valid].tolist(), block_size=self.case.block_size)
        blocks = int(valid.sum())
        predicted = blocks * (self.case.block_size - 1)
        return Load(self.case.rows * self.case.length, blocks * self.case.block_size, predicted, pairs)


def attention_of(case: Case, device: str) -> str:
    """The form that conf trainer chooses for the device, unless the case names one."""
    return case.attention or ("flex" if device == "cuda" else "dense")
