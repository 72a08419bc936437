"""Where targets come from: a folder (the embedded one too), a hub, or random weights.

Factories that conf ``target`` names; calling one is cheap, calling what it returns loads the weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from dflash.target.attention import register_fused
from dflash.target.dims import TargetDims, dims_of
from dflash.target.experts import DENSE, register_dense
from dflash.target.families import FAMILIES, build_model
from dflash.target.flex import attention_on, register_flex
from dflash.target.outline import configuration, outline
from dflash.target.quantized import METHOD, PACKED, UNPACKED, WEIGHTS, loading_options
from dflash.target.reading import fingerprint_of, stop_ids
from dflash.target.target import Target
from dflash.target.tokenizer import train_tokenizer


class Loader(Protocol):
    """What a factory of conf ``target`` makes."""

    def __call__(self) -> LoadedTarget:
        """Load the weights. Raises ValueError for anything that cannot be loaded."""
        ...

    def outline(self, facts: Mapping[str, Any], fake: AbstractContextManager) -> Target:
        """The same target without weights, for a plan; facts: conf ``target_facts``. See ``target.outline``."""
        ...


@dataclass(frozen=True)
class LoadedTarget:
    """A target with its tokenizer and the ids the framework needs: the mask token and the tokens that end decoding."""

    target: Target
    tokenizer: PreTrainedTokenizerBase
    mask_token_id: int
    stop_token_ids: tuple[int, ...]

    def tokenizer_fingerprint(self) -> str:
        return fingerprint_of(self.tokenizer)


def local_target(
    *,
    path: str,
    dtype: str = "float32",
    device: str = "cpu",
    mask_token_id: int | None = None,
    revision: str | None = None,
    attention: str = "eager",
    experts: str | None = None,
    replay: bool = False,
    weights: str = UNPACKED,
) -> Loader:
    """A causal language model and its tokenizer from a folder or a hub id.

    mask_token_id: default the tokenizer's own mask token. attention, experts: transformers' implementation names
    (experts matters for mixtures only), or ours: attention "fused", for inference with sinks (``target.attention``),
    attention "flex", on a GPU the same with packed rows that write no scores (``target.flex``), experts "dense", for
    steps of few tokens on a CPU (``target.experts``).
    replay: replay decoding steps from recordings, on a CPU or as CUDA graphs (``dflash.replay``).
    weights: what becomes of a checkpoint stored in MXFP4, see ``target.quantized``.
    Raises ValueError, when called, for anything that cannot be loaded.
    """
    if weights not in WEIGHTS:
        raise ValueError(f"target.weights={weights!r}: choose one of {', '.join(WEIGHTS)}")
    return _Local(path, dtype, device, mask_token_id, revision, attention, experts, replay, weights)


def random_target(
    *, family: str, vocab_size: int = 512, seed: int = 0, dtype: str = "float32", device: str = "cpu"
) -> Loader:
    """A tiny target of ``family`` with random weights and a byte-level tokenizer; for tests and smoke runs."""
    if family not in FAMILIES:
        raise ValueError(f"target.family={family!r}: choose one of {', '.join(FAMILIES)}")
    return _Random(family, vocab_size, seed, dtype, device)


@dataclass(frozen=True)
class _Local:
    """What ``local_target`` returns; its docstring explains the fields."""

    path: str
    dtype: str
    device: str
    mask_token_id: int | None
    revision: str | None
    attention: str
    experts: str | None
    replay: bool
    weights: str

    def __call__(self) -> LoadedTarget:
        return _load(self)

    def outline(self, facts: Mapping[str, Any], fake: AbstractContextManager) -> Target:
        config = configuration(self.path, facts=facts, revision=self.revision)
        config.quantization_config = {"quant_method": METHOD} if self.weights == PACKED else None
        attention = attention_on(self.device, self.attention)
        return outline(config, fake=fake, dtype=self.dtype, attention=attention, name=self.path)


@dataclass(frozen=True)
class _Random:
    """What ``random_target`` returns; its docstring explains the fields."""

    family: str
    vocab_size: int
    seed: int
    dtype: str
    device: str

    def __call__(self) -> LoadedTarget:
        tokenizer = train_tokenizer([__doc__ or ""], vocab_size=self.vocab_size)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = build_model(FAMILIES[self.family](self.vocab_size))
        name = f"random_{self.family}_{self.seed}"
        return _loaded(Target(model.to(self.device, getattr(torch, self.dtype)), name=name), tokenizer, None)

    def outline(self, facts: Mapping[str, Any], fake: AbstractContextManager) -> Target:
        config = FAMILIES[self.family](self.vocab_size)
        return outline(config, fake=fake, dtype=self.dtype, attention="eager", name=f"random_{self.family}")


def read_dims(path: str | Path) -> TargetDims:
    """The dimensions of a model folder from its config.json alone; no weights are read."""
    if not (Path(path) / "config.json").is_file():
        raise ValueError(f"target.path={str(path)!r} has no config.json; give a model folder")
    return dims_of(AutoConfig.from_pretrained(path).get_text_config())


def _load(local: _Local) -> LoadedTarget:
    path, device = local.path, local.device
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(
            f"target.device={device!r}: no CUDA GPU is visible here; use a GPU machine or target.device=cpu"
        )
    options: dict[str, Any] = {"revision": local.revision} if local.revision else {}
    register_fused()
    register_flex()
    with _one_sentence(path):
        config = AutoConfig.from_pretrained(path, **options)
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
    options |= loading_options(config, local.weights, device, name=path)
    with _one_sentence(path):
        model = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=getattr(torch, local.dtype),
            attn_implementation=attention_on(device, local.attention),
            **options,
        )
    if local.experts == DENSE:
        register_dense()
    if local.experts is not None:
        model.set_experts_implementation(local.experts)
    target = Target(
        model if "device_map" in options else model.to(device), name=str(path).rstrip("/"), replay=local.replay
    )
    return _loaded(target, tokenizer, local.mask_token_id)


@contextmanager
def _one_sentence(path: str) -> Iterator[None]:
    """What transformers says when it cannot read ``path``, as a ValueError of one sentence."""
    try:
        yield
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"target.path={path!r} cannot be loaded ({reason}); give a model folder, or connect to the model hub"
        ) from error


def _loaded(target: Target, tokenizer: PreTrainedTokenizerBase, mask_token_id: int | None) -> LoadedTarget:
    mask = tokenizer.mask_token_id if mask_token_id is None else mask_token_id
    stops = stop_ids(tokenizer, target.model.generation_config.eos_token_id if target.model.can_generate() else None)
    if mask is None:
        raise ValueError(
            f"target {target.name}: its tokenizer has no mask token; set target.mask_token_id to a reserved id below "
            f"{target.dims.vocab_size}"
        )
    if not 0 <= mask < target.dims.vocab_size:
        raise ValueError(f"target.mask_token_id={mask}: must be below the vocabulary of {target.dims.vocab_size}")
    if mask in stops or mask == tokenizer.pad_token_id:
        raise ValueError(f"target.mask_token_id={mask} is a stop or padding token; choose a reserved id")
    return LoadedTarget(target, tokenizer, mask, stops)
