"""Sources: documents, lazily and in a fixed order, from the corpus, local files or the hub; the start of training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dflash.data.chat import check_options, render_chat
from dflash.data.corpus import SourceFile
from dflash.data.documents import Document
from dflash.data.rows import BadLines, BadRow, convert, file_rows, hub_rows, messages_of, text_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def text_document(tokenizer: PreTrainedTokenizerBase, text: str, *, origin: str = "") -> Document:
    """A text as a document: everything supervised but its first token, which nothing stands before."""
    ids = np.asarray(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int32)
    return Document(ids, np.arange(len(ids)) > 0, origin)


def corpus_documents(files: Iterable[SourceFile], tokenizer: PreTrainedTokenizerBase) -> Iterator[Document]:
    """Every file of the corpus that is not held out, as a text, in the order given."""
    for file in files:
        if not file.held_out:
            yield text_document(tokenizer, file.text, origin=file.name)


def file_documents(
    path: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_tokens: int | None = None,
    on_bad: str = "raise",
    bad_lines: BadLines | None = None,
    options: Mapping[str, Any] | None = None,
    columns: Mapping[str, str] | None = None,
) -> Iterator[Document]:
    """Documents of a local JSONL or Parquet file, or a folder of them: rows ``{"text"}`` or ``{"messages"}``.

    max_tokens: longer documents are bad rows. options go to the chat template. columns: see ``rows.convert``.
    Raises ValueError naming file and line at a bad row, unless ``on_bad="skip"``, which counts it in ``bad_lines``.
    """
    to_document = _row_to_document(tokenizer, max_tokens, options)
    return convert(file_rows(path), to_document, on_bad=on_bad, bad_lines=bad_lines, columns=columns)


def hub_documents(
    path: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    name: str | None = None,
    split: str = "train",
    revision: str | None = None,
    data_files: Any = None,
    max_tokens: int | None = None,
    on_bad: str = "raise",
    bad_lines: BadLines | None = None,
    options: Mapping[str, Any] | None = None,
    columns: Mapping[str, str] | None = None,
) -> Iterator[Document]:
    """As ``file_documents``, from any data set that ``datasets`` can stream."""
    rows = hub_rows(path, name=name, split=split, revision=revision, data_files=data_files)
    to_document = _row_to_document(tokenizer, max_tokens, options)
    return convert(rows, to_document, on_bad=on_bad, bad_lines=bad_lines, columns=columns)


def _row_to_document(tokenizer, max_tokens: int | None, options: Mapping[str, Any] | None):
    check_options(options)  # a wrong option is the user's mistake, not that of every row

    def to_document(origin: str, row: dict) -> Document:
        if "messages" in row:
            document = _chat_document(tokenizer, row, options, origin)
        elif "text" in row:
            document = text_document(tokenizer, text_of(row, "text"), origin=origin)
        else:
            raise BadRow("no text", f"neither 'text' nor 'messages' among the fields {sorted(row)}")
        if max_tokens is not None and len(document) > max_tokens:
            raise BadRow("over-long", f"{len(document)} tokens, the limit is data.max_tokens={max_tokens}")
        return document

    return to_document


def _chat_document(tokenizer, row: dict, options: Mapping[str, Any] | None, origin: str) -> Document:
    messages = messages_of(row)
    if not any(message["role"] == "assistant" for message in messages):
        raise BadRow("no assistant turn")
    options = {**(options or {}), **({"tools": row["tools"]} if row.get("tools") else {})}
    try:
        return render_chat(tokenizer, messages, options=options, origin=origin)
    except ValueError as error:
        raise BadRow("chat template", str(error).removeprefix(f"{origin}: ")) from error
