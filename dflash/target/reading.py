"""The side of a target that reads and writes text, without its weights: enough to render, show and ask a server."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

ENDS = ("<|return|>", "<|call|>", "<|endoftext|>")  # of harmony: they end a message for us, whatever a model says


@dataclass(frozen=True)
class Reading:
    """A target's tokenizer and the tokens that end its decoding. name: its folder or hub id, empty if it has none."""

    tokenizer: PreTrainedTokenizerBase
    stop_token_ids: tuple[int, ...]
    name: str = ""

    def tokenizer_fingerprint(self) -> str:
        return fingerprint_of(self.tokenizer)


def fingerprint_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 over vocabulary and chat template: what makes two tokenizers the same."""
    vocabulary = json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return hashlib.sha256((vocabulary + str(tokenizer.chat_template)).encode()).hexdigest()


def stop_ids(tokenizer: PreTrainedTokenizerBase, configured: int | list[int] | None) -> tuple[int, ...]:
    """The end tokens that a generation config names (None: the tokenizer's own), and harmony's that end a message."""
    configured = tokenizer.eos_token_id if configured is None else configured
    ends = set(configured if isinstance(configured, list) else [configured])
    vocabulary = tokenizer.get_vocab()
    return tuple(sorted((ends | {vocabulary[token] for token in ENDS if token in vocabulary}) - {None}))


def read_reading(path: str, *, revision: str | None = None) -> Reading:
    """From a model folder or a hub id; no weights are read. Raises ValueError if its tokenizer cannot be loaded."""
    options: dict[str, Any] = {"revision": revision} if revision else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
        ends = _configured_ends(path, options)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"target.path={path!r}: its tokenizer cannot be loaded ({str(error).strip().splitlines()[0]}); give a "
            "model folder, or connect to the model hub"
        ) from error
    return Reading(tokenizer, stop_ids(tokenizer, ends), path)


def _configured_ends(path: str, options: dict[str, Any]) -> int | list[int] | None:
    try:
        return GenerationConfig.from_pretrained(path, **options).eos_token_id
    except OSError:  # none there: then transformers makes one of the model's configuration
        return AutoConfig.from_pretrained(path, **options).get_text_config().eos_token_id
