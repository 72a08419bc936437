"""Rows for pre-training the tiny target: the corpus as files and as chat exercises, and held-out windows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dflash.data.corpus import SourceFile, exercises
from dflash.data.documents import Document
from dflash.data.pack import Row, pack, split_document

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def training_rows(files: list[SourceFile], tokenizer: PreTrainedTokenizerBase, *, length: int, seed: int) -> list[Row]:
    """Rows of ``length`` tokens from the files not held out: each file, and each documented function as a chat."""
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    files = [f for f in files if not f.held_out]
    texts = [[*ids, end] for ids in _encode(tokenizer, [f.text for f in files])]
    chats = [tokenizer.apply_chat_template(e.messages, tokenize=False) for f in files for e in exercises(f)]
    documents = [_all_supervised(ids) for ids in texts + _encode(tokenizer, chats)]
    pieces = [piece for d in documents for piece in split_document(d, length=length)]
    order = np.random.default_rng(seed).permutation(len(pieces))
    return list(pack((pieces[i] for i in order), length=length, num_open=64))


def held_out_rows(files: list[SourceFile], tokenizer: PreTrainedTokenizerBase, *, length: int) -> tuple[list[Row], int]:
    """(rows, bytes): windows of ``length`` tokens over the held-out files with a stride of half of it.

    Every token is scored exactly once, with at least half a window before it except at the start of a file. The very
    first token of a file has nothing before it and is not scored; its bytes still count, against us by omission of
    at most one token per file.
    """
    files = [f for f in files if f.held_out]
    rows: list[Row] = []
    half = length // 2
    for ids in _encode(tokenizer, [f.text for f in files]):
        ids = np.asarray(ids, dtype=np.int32)
        for start in range(0, max(1, len(ids) - half), half):
            window = ids[start : start + length]
            scored = np.ones(len(window), dtype=bool)
            if start:
                scored[:half] = False
            rows.append((Document(window, scored),))
    return rows, sum(len(f.text.encode()) for f in files)


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []


def _all_supervised(ids: list[int]) -> Document:
    return Document(np.asarray(ids, dtype=np.int32), np.ones(len(ids), dtype=bool))
