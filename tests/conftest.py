"""What several test folders share."""

from __future__ import annotations

import pytest
import torch

from dflash.data.corpus import SourceFile, read_corpus
from dflash.target.tokenizer import train_tokenizer


def pytest_addoption(parser):
    parser.addoption("--fuzz-cases", type=int, default=500, help="random decoding cases to run (%(default)s)")
    parser.addoption("--fuzz-table", help="file for a table of what those cases compared")


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Models of tests are so small that threads only wait for each other, the longer the busier the machine. The same
    holds for scripts that tests start."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def corpus() -> list[SourceFile]:
    return read_corpus()


@pytest.fixture(scope="session")
def tokenizer(corpus):
    """The embedded target's kind of tokenizer, small: 600 entries trained on a few files."""
    names = {"argparse.py", "ast.py", "heapq.py"}
    return train_tokenizer([f.text for f in corpus if f.name in names], vocab_size=600)
