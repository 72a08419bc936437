"""Sources: documents, lazily and in a fixed order, from the corpus, local files or the hub; the start of training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dflash.data.chat import check_options, render_chat
from dflash.data.corpus import SourceFile
from dflash.data.documents import Document
from dflash.data.rows import BadLines, BadRow, convert, file_rows, hub_rows, messages_of, row_options, text_of
from dflash.data.shapes import Shape

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
    shape: Shape | None = None,
    lane: int = 0,
    lanes: int = 1,
) -> Iterator[Document]:
    """Documents of a local JSONL or Parquet file, or a folder of them.

    Rows: ``{"text"}``, ``{"messages"}``, or the target's own ``{"prompt_ids", "response_ids"}``. max_tokens: longer
    documents are bad rows. options go to the chat template. columns, shape: see ``rows.convert``. lane, lanes: the
    share of the rows wanted, see ``rows.file_rows``.
    Raises ValueError naming file and line at a bad row, unless ``on_bad="skip"``, which counts it in ``bad_lines``.
    """
    to_document = row_to_document(tokenizer, max_tokens, options)
    rows = file_rows(path, lane=lane, lanes=lanes)
    return convert(rows, to_document, on_bad=on_bad, bad_lines=bad_lines, columns=columns, shape=shape)


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
    shape: Shape | None = None,
    lane: int = 0,
    lanes: int = 1,
) -> Iterator[Document]:
    """As ``file_documents``, from any data set that ``datasets`` can stream."""
    where = {"name": name, "split": split, "revision": revision, "data_files": data_files}
    rows = hub_rows(path, **where, lane=lane, lanes=lanes)
    to_document = row_to_document(tokenizer, max_tokens, options)
    return convert(rows, to_document, on_bad=on_bad, bad_lines=bad_lines, columns=columns, shape=shape)


def row_to_document(
    tokenizer: PreTrainedTokenizerBase, max_tokens: int | None, options: Mapping[str, Any] | None
) -> Callable[[str, dict], Document]:
    """(origin, row) -> its document, as ``file_documents`` describes; BadRow where it holds none."""
    check_options(options)  # a wrong option is the user's mistake, not that of every row

    def to_document(origin: str, row: dict) -> Document:
        check_fields(row)
        if "response_ids" in row:
            document = _response_document(row, origin)
        elif "messages" in row:
            document = _chat_document(tokenizer, row, options, origin)
        else:
            document = text_document(tokenizer, text_of(row, "text"), origin=origin)
        if max_tokens is not None and len(document) > max_tokens:
            raise BadRow("over-long", f"{len(document)} tokens, the limit is data.max_tokens={max_tokens}")
        return document

    return to_document


def check_fields(row: dict) -> None:
    """BadRow unless a document can be made of the row's fields."""
    if not {"response_ids", "messages", "text"} & row.keys():
        raise BadRow("no text", f"neither 'text' nor 'messages' among the fields {sorted(row)}")


def response_document(prompt_ids: Sequence[int], response_ids: Sequence[int], *, origin: str = "") -> Document:
    """A prompt, unsupervised, and what the target answered, supervised."""
    ids = np.asarray([*prompt_ids, *response_ids], dtype=np.int32)
    return Document(ids, np.arange(len(ids)) >= len(prompt_ids), origin)


def _response_document(row: dict, origin: str) -> Document:
    parts = (row.get("prompt_ids"), row["response_ids"])
    for part in parts:
        if not isinstance(part, list) or not all(isinstance(token, int) and 0 <= token < 2**31 for token in part):
            raise BadRow("wrong type", "prompt_ids and response_ids must be lists of token ids")
    return response_document(*parts, origin=origin)


def _chat_document(tokenizer, row: dict, options: Mapping[str, Any] | None, origin: str) -> Document:
    messages = messages_of(row)
    if not any(message["role"] == "assistant" for message in messages):
        raise BadRow("no assistant turn")
    try:
        return render_chat(tokenizer, messages, options=row_options(row, options), origin=origin)
    except ValueError as error:
        raise BadRow("chat template", str(error).removeprefix(f"{origin}: ")) from error
