"""The frozen target: a plain object around a causal language model of transformers.

Plain on purpose: it is no nn.Module, so it stays out of state_dict, checkpoints, ``.train()``, precision plugins and
distributed broadcasts. It embeds, extracts features, gives logits and opens decoding sessions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property, partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dflash.replay import TRACING, CudaGraphs, Recorder, Replay
from dflash.target.cache import SlotCache
from dflash.target.deepest import run_to_deepest
from dflash.target.dims import dims_of
from dflash.target.documents import by_document
from dflash.target.flex import FLEX, block_masks
from dflash.target.layers import plan_layers
from dflash.target.masks import additive, packed_causal, slot_masks
from dflash.target.probe import Check, probe
from dflash.target.rollback import check_rollback
from dflash.target.session import TargetSession
from dflash.types import TargetFeatures, TokenBatch

# Settings of families whose embeddings or logits are made in ways that ``embed`` and ``logits`` do not follow.
_UNSUPPORTED = ("logit_scale", "logits_scaling", "embedding_multiplier", "use_bidirectional_attention")


class Target:
    """A frozen causal language model, in eval mode and its own dtype.

    Raises ValueError for architectures whose cache cannot be rolled back or whose logits it cannot reproduce.
    ``plan``: what its layers keep between passes, and the masks they need. replay: whether the steps of its sessions
    are replayed from recordings once they are worth it (``dflash.replay``), without recurrent layers and on one device.
    """

    def __init__(self, model: PreTrainedModel, *, name: str, replay: bool = False):
        config = model.config.get_text_config()
        _check_supported(config, name)
        self.plan = plan_layers(config, name)
        self.windows = self.plan.windows
        self.model = model.eval().requires_grad_(False)
        self.config = config
        self.name = name
        self.family = config.model_type
        self.backbone = model.get_decoder()
        self.blocks = self.backbone.layers
        self.lm_head = model.get_output_embeddings()
        self.softcap = config.final_logit_softcapping if _has(config, "final_logit_softcapping") else None
        self.dims = dims_of(config)
        self.recorder = _recorder_of(model) if replay and not self.plan.recurrent else None
        self.replays: dict[tuple[int, ...], Replay] = {}  # by taps
        if self.plan.recurrent:
            check_rollback(self)

    @property
    def device(self) -> torch.device:
        return self.lm_head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.lm_head.weight.dtype

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    def __deepcopy__(self, memo) -> Target:
        return self  # frozen and shared: copying modules (EMA) must not copy it

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256(json.dumps(self.config.to_dict(), sort_keys=True, default=str).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
        return digest.hexdigest()

    def fingerprint(self) -> str:
        """sha256 over configuration and weights: what makes two targets the same."""
        return self._fingerprint

    @torch.no_grad()
    def embed(self, ids: Tensor) -> Tensor:
        """Frozen input embedding: long [...] -> [..., H]."""
        return self.backbone.get_input_embeddings()(ids)

    def logits(self, hidden: Tensor) -> Tensor:
        """Frozen lm_head over hidden states after a final norm, and the family's soft cap: [..., H] -> [..., V].

        Gradient flows to ``hidden``.
        """
        logits = self.lm_head(hidden.contiguous())  # over a slice of slots torch makes a product of each row's own
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap

    @torch.no_grad()
    def features(self, batch: TokenBatch, taps: tuple[int, ...], *, with_last: bool = False) -> TargetFeatures:
        """One teacher-forced pass over packed rows; documents do not see each other and positions restart with each.

        A recurrent layer of transformers cannot forget at a border inside a row, so such targets get a row for each
        document. Without ``with_last`` the pass ends at the deepest tap. Autocast is off: training features must equal
        decoding features, so the target runs in its own dtype.
        """

        def run(part: TokenBatch) -> tuple[Tensor, Tensor]:
            masks = self._row_masks(part.documents_BS)
            call = partial(self._run, part.ids_BS, positions=part.positions_BS, masks=masks, cache=None)
            return call(taps=taps) if with_last or not taps else (None, run_to_deepest(call, self.blocks, taps))

        with torch.autocast(self.device.type, enabled=False):
            last_BSH, taps_BSTH = by_document(run, batch) if self.plan.recurrent else run(batch)
        return TargetFeatures(taps_BSTH, last_BSH if with_last else None)

    def open(
        self,
        batch_size: int,
        *,
        capacity: int,
        taps: tuple[int, ...] = (),
        room: int | None = None,
        passing: bool = False,
    ) -> TargetSession:
        """A decoding session of ``batch_size`` empty rows, each up to ``capacity`` tokens long, with ``room`` for so
        many in all, as others may join; None: no more. passing: it will itself join another, and is not replayed."""
        limit = self.dims.max_position_embeddings
        if capacity > limit:
            raise ValueError(
                f"session capacity {capacity} exceeds the {limit} positions of target {self.name}; "
                "shorten the prompts or max_new_tokens"
            )
        room = room or batch_size
        replays = self.replays_batch(room) and not passing
        return TargetSession(self, batch_size=batch_size, capacity=capacity, taps=taps, room=room, replays=replays)

    def tree_error(self) -> ValueError:
        """The one sentence for trees of tokens where a layer is recurrent."""
        types = ", ".join(sorted({self.plan.types[i] for i in self.plan.recurrent}))
        return ValueError(
            f"target {self.name}: its layers of type {types} read tokens one behind the other and cannot branch; "
            "verify chains instead of trees"
        )

    def probe(self, *, length: int = 48, seed: int = 0) -> list[Check]:
        """The lossless check of this target against the model's own forward; see ``probe.probe``."""
        return probe(self, length=length, seed=seed)

    def run_cached(
        self, ids_BQ: Tensor, slots_BQ: Tensor, *, branches: Sequence[Tensor], cache: SlotCache, taps: tuple[int, ...]
    ):
        """One pass over the slot cache, which was told of ``slots_BQ``; ``branches`` as in ``slot_masks``."""
        masks = slot_masks(cache.views, branches, dtype=self.dtype)
        positions_BQ = branches[0] if branches else slots_BQ
        return self._run(ids_BQ, positions=positions_BQ, masks=masks, cache=cache, taps=taps)

    def replays_batch(self, batch_size: int) -> bool:
        """Whether sessions of so many rows run from recordings, the draft's as well as the target's."""
        return self.recorder is not None and batch_size <= self.recorder.most_rows

    def run_replayed(self, *tensors: Tensor, taps: tuple[int, ...]):
        """``run_cached`` as a pass of tensors only: ids_BQ, slots_BQ, the first slot that sliding layers are shown,
        the branches, and the buffers of a slot cache."""
        if taps not in self.replays:
            self.replays[taps] = Replay(
                partial(self._replayable, taps),
                [self.backbone],
                recorder=self.recorder,
                num_held=2 * self.dims.num_layers,
            )
        hidden_BQH, *states = self.replays[taps](*tensors)
        return hidden_BQH, states[0] if taps else None

    def _replayable(
        self, taps: tuple[int, ...], ids: Tensor, slots: Tensor, first: Tensor, *others: Tensor
    ) -> tuple[Tensor, ...]:
        count = len(others) - 2 * self.dims.num_layers  # keys and values of every layer stand last
        cache = SlotCache.over(others[count:], slots, first, self.plan.layer_windows)
        hidden, states = self.run_cached(ids, slots, branches=others[:count], cache=cache, taps=taps)
        return (hidden, states) if taps else (hidden,)

    def _run(self, ids: Tensor, *, positions: Tensor, masks: dict, cache: SlotCache | None, taps: tuple[int, ...]):
        out = self.backbone(
            input_ids=ids,
            attention_mask=self._named(masks),
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
            output_hidden_states=[tap + 1 for tap in taps] if taps else False,  # entry i + 1: output of layer i
        )
        if not taps:
            return out.last_hidden_state, None
        return out.last_hidden_state, torch.stack([out.hidden_states[tap + 1] for tap in taps], dim=2)

    def _row_masks(self, documents_BS: Tensor) -> dict:
        """Masks of packed rows by window, in the form that the target's attention takes."""
        if self.config._attn_implementation == FLEX:
            return block_masks(documents_BS, self.windows)
        return {window: additive(packed_causal(documents_BS, window), self.dtype) for window in self.windows}

    def _named(self, masks: dict):
        """Masks by layer type where the family has layer types, else the one mask; only attention needs any."""
        plan = self.plan
        if not plan.types:
            return masks[plan.window]
        return dict.fromkeys(plan.types) | {"full_attention": masks.get(None), "sliding_attention": masks[plan.window]}


def _has(config, key: str) -> bool:
    return key in config.to_dict() and config.to_dict()[key] is not None


def _recorder_of(model: PreTrainedModel) -> Recorder | None:
    """What records passes where the model is; None for one that is spread over devices."""
    devices = {weight.device for weight in model.parameters()}
    if len(devices) > 1:
        return None
    device = devices.pop()
    return next((recorder for recorder in (TRACING, CudaGraphs()) if recorder.serves(device)), None)


def _check_supported(config, name: str) -> None:
    for key in _UNSUPPORTED:
        if _has(config, key) and config.to_dict()[key] not in (1.0, False):
            raise ValueError(f"target {name}: {key}={config.to_dict()[key]} is not supported; choose another target")
