"""The folder of a regenerated set on disk: manifest, Parquet shards, and the journal of shards that are not full yet.

    manifest.json                what decides the answers, and how the set was made
    responses/00000000.parquet   a shard: rows {index, name, prompt_ids, response_ids, finish, exact}
    partial/00000000.jsonl       outcomes of a shard not full yet, a line each
    report.json, left_out.jsonl  written when every prompt has its outcome: the counts, and every prompt without a row

Shards are whole or not there, and carry a hash of their questions and content. A journal line that was cut off by a
kill is dropped: its prompt is asked again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from dflash.data.atomic import replace_file
from dflash.data.regeneration.engine import Answer, Outcome, Question, Refusal

FORMAT = "dflash responses 1"
DUPLICATE = "duplicate"
TOKENS = pyarrow.list_(pyarrow.int32())
COLUMNS = (
    ("index", pyarrow.int64()),
    ("name", pyarrow.string()),
    ("prompt_ids", TOKENS),
    ("response_ids", TOKENS),
    ("finish", pyarrow.string()),
    ("exact", pyarrow.bool_()),
)

logger = logging.getLogger(__name__)


class ResponseFolder:
    """identity: plain values that decide the answers. about: how the set was made, for people.

    Raises ValueError if ``path`` was begun with another identity.
    """

    def __init__(self, path: str | Path, *, identity: Mapping[str, Any], about: Mapping[str, Any] | None = None):
        self.path = Path(path)
        for folder in ("responses", "partial"):
            (self.path / folder).mkdir(parents=True, exist_ok=True)
        self._claim({"format": FORMAT, "identity": dict(identity), "about": dict(about or {})})

    def _claim(self, manifest: dict) -> None:
        file = self.path / "manifest.json"
        if not file.exists():
            replace_file(file, lambda path: path.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8"))
            return
        before, now = read_manifest(self.path)["identity"], json.loads(json.dumps(manifest["identity"]))
        changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        if changed:
            said = ", ".join(f"{key} {before.get(key)!r} (now {now.get(key)!r})" for key in changed)
            raise ValueError(f"out={self.path}: was begun with {said}; give another folder, or the same values again")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While no other process writes here. Raises ValueError if one does; what a killed one held is free again."""
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ValueError(f"out={self.path}: another run writes there; wait for it, or end it") from error
            yield

    def shard_file(self, number: int) -> Path:
        return self.path / "responses" / f"{number:08d}.parquet"

    def _journal(self, number: int) -> Path:
        return self.path / "partial" / f"{number:08d}.jsonl"

    def known(self, number: int, questions: Sequence[Question]) -> tuple[dict[int, Outcome], bool]:
        """(outcomes by index from the shard and from its journal, whether the shard holds all that it will).

        Raises ValueError if they are of other questions.
        """
        outcomes, whole = self._read_shard(number, questions)
        journal = self._journal(number)
        if not journal.exists() or whole:
            journal.unlink(missing_ok=True)
            return outcomes, whole
        lines = journal.read_bytes().split(b"\n")[:-1]  # what stands behind the last line break was cut off
        digests = {question.index: question_hash([question]) for question in questions}
        for line in lines:
            entry = json.loads(line)
            if digests.get(entry["index"]) != entry["question"]:
                raise self._other_questions(journal)
            outcomes[entry["index"]] = _from_entry(entry)
        replace_file(journal, lambda path: path.write_bytes(b"".join(line + b"\n" for line in lines)))
        return outcomes, False

    def note(self, number: int, question: Question, outcome: Answer | Refusal) -> None:
        """Append an outcome to the shard's journal; it is with the system when this returns."""
        entry = {"index": question.index, "question": question_hash([question]), **_to_entry(outcome)}
        with self._journal(number).open("ab", buffering=0) as stream:
            stream.write(json.dumps(entry).encode() + b"\n")

    def write_shard(
        self, number: int, questions: Sequence[Question], outcomes: Mapping[int, Outcome], duplicates: Mapping[int, int]
    ) -> None:
        """The shard of these questions. Each has an outcome, or is a duplicate: index -> index of the first of them."""
        rows = [(q, outcomes[q.index]) for q in questions if isinstance(outcomes.get(q.index), Answer)]
        content = {
            "index": [q.index for q, _ in rows],
            "name": [q.name for q, _ in rows],
            "prompt_ids": [list(q.ids) for q, _ in rows],
            "response_ids": [list(answer.tokens) for _, answer in rows],
            "finish": [answer.finish for _, answer in rows],
            "exact": [answer.exact for _, answer in rows],
        }
        left_out = [
            {"index": q.index, "name": q.name, "reason": DUPLICATE, "detail": f"of prompt {duplicates[q.index]}"}
            if q.index in duplicates
            else {"index": q.index, "name": q.name, **vars(outcomes[q.index])}
            for q in questions
            if not isinstance(outcomes.get(q.index), Answer)
        ]
        about = {
            "num_questions": len(questions),
            "questions_sha256": question_hash(questions),
            "content_sha256": _content_hash(content, left_out),
            "left_out": left_out,
        }
        schema = pyarrow.schema(COLUMNS, metadata={b"shard": json.dumps(about).encode()})
        table = pyarrow.Table.from_pydict(content, schema=schema)
        replace_file(self.shard_file(number), lambda path: pyarrow.parquet.write_table(table, path))
        self._journal(number).unlink(missing_ok=True)

    def _read_shard(self, number: int, questions: Sequence[Question]) -> tuple[dict[int, Outcome], bool]:
        path = self.shard_file(number)
        if not path.exists():
            return {}, False
        try:
            content, about = read_shard(path)
        except ValueError as error:
            logger.warning("%s; it is made again", error)
            return {}, False
        if about["questions_sha256"] != question_hash(questions[: about["num_questions"]]):
            raise self._other_questions(path)
        columns = zip(content["index"], content["response_ids"], content["finish"], content["exact"], strict=True)
        outcomes: dict[int, Outcome] = {i: Answer(tuple(ids), finish, exact) for i, ids, finish, exact in columns}
        refused = [entry for entry in about["left_out"] if entry["reason"] != DUPLICATE]
        outcomes |= {entry["index"]: Refusal(entry["reason"], entry["detail"]) for entry in refused}
        return outcomes, about["num_questions"] == len(questions)

    def _other_questions(self, file: Path) -> ValueError:
        return ValueError(
            f"out={self.path}: {file.name} answers other prompts than the source now gives there; the source, the "
            "chat template's options or shard_size have changed: give another folder"
        )

    def finish(self, report: Mapping[str, Any]) -> None:
        """Write the report and the list of prompts left out: every prompt has its outcome now."""
        lines = []
        for path in sorted((self.path / "responses").glob("*.parquet")):
            about = json.loads(pyarrow.parquet.read_metadata(path).metadata[b"shard"])
            lines += [json.dumps(entry) + "\n" for entry in about["left_out"]]
        replace_file(self.path / "left_out.jsonl", lambda path: path.write_text("".join(lines), encoding="utf-8"))
        text = json.dumps(report, indent=2) + "\n"
        replace_file(self.path / "report.json", lambda path: path.write_text(text, encoding="utf-8"))
        partial = self.path / "partial"
        if not os.listdir(partial):
            partial.rmdir()


def read_manifest(path: str | Path) -> dict:
    """The manifest of a regenerated set. Raises ValueError if the folder has none that can be read."""
    try:
        manifest = json.loads((Path(path) / "manifest.json").read_text(encoding="utf-8"))
        if manifest["format"] == FORMAT:
            return manifest
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise ValueError(f"{path}: is no folder of regenerated responses (no manifest.json of '{FORMAT}')")


def responses_folder(path: str | Path, *, tokenizer_sha256: str | None) -> Path:
    """Where the rows of a data set lie: ``path`` itself, or the shards in it, if it was made by a regeneration.

    tokenizer_sha256: of the target's, None where it is not known yet. Raises ValueError if the regeneration has not
    come to its end, or if its token ids are of another tokenizer.
    """
    path = Path(path)
    if not (path / "manifest.json").is_file():
        return path
    made_with = read_manifest(path)["identity"].get("tokenizer_sha256")
    if tokenizer_sha256 is not None and made_with != tokenizer_sha256:
        raise ValueError(
            f"data.path={path}: its responses are token ids of another tokenizer or chat template than the target's; "
            "choose the target that wrote them, or regenerate with this one"
        )
    if not (path / "report.json").is_file():
        raise ValueError(
            f"data.path={path}: its regeneration has not come to its end; give the same command again, or take the "
            f"shards there are with data.path={path / 'responses'}"
        )
    return path / "responses"


def read_shard(path: Path) -> tuple[dict[str, list], dict]:
    """(columns, what it says of itself) of a shard. Raises ValueError if it is damaged."""
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            table = file.read()
        about = json.loads(table.schema.metadata[b"shard"])
        content = table.to_pydict()
        if about["content_sha256"] == _content_hash(content, about["left_out"]):
            return content, about
    except (pyarrow.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    raise ValueError(f"{path} is damaged: its content does not have its hash")


def question_hash(questions: Sequence[Question]) -> str:
    """SHA-256, in hex, of the questions' places, names and ids."""
    digest = hashlib.sha256()
    for question in questions:
        digest.update(json.dumps([question.index, question.name, question.ids]).encode())
    return digest.hexdigest()


def _content_hash(content: Mapping[str, list], left_out: list) -> str:
    return hashlib.sha256(json.dumps([content, left_out], sort_keys=True).encode()).hexdigest()


def _to_entry(outcome: Answer | Refusal) -> dict:
    if isinstance(outcome, Answer):
        return {"tokens": list(outcome.tokens), "finish": outcome.finish, "exact": outcome.exact}
    return {"reason": outcome.reason, "detail": outcome.detail}


def _from_entry(entry: Mapping[str, Any]) -> Outcome:
    if "reason" in entry:
        return Refusal(entry["reason"], entry["detail"])
    return Answer(tuple(entry["tokens"]), entry["finish"], entry["exact"])
