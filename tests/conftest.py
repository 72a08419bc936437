"""What several test folders share."""

from __future__ import annotations

import pytest

from dflash.data.corpus import SourceFile, read_corpus
from dflash.target.tokenizer import train_tokenizer


@pytest.fixture(scope="session")
def corpus() -> list[SourceFile]:
    return read_corpus()


@pytest.fixture(scope="session")
def tokenizer(corpus):
    """The embedded target's kind of tokenizer, small: 600 entries trained on a few files."""
    names = {"argparse.py", "ast.py", "heapq.py"}
    return train_tokenizer([f.text for f in corpus if f.name in names], vocab_size=600)
