"""A corpus out of the source text that is found on this machine, as a folder that ``corpus_root`` can name."""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from dflash.data.corpus import SourceFile, is_held_out, read_corpus

PACKAGES = "packages"  # the folder of what is not the standard library's


def gather(folder: Path, *, mebibytes: float) -> dict[str, int]:
    """Python source below ``folder`` until it holds ``mebibytes``; the number of files and bytes.

    First the standard library, its files under their own names, so that those held out stay held out, and the prompts
    cut from them are of text that is not trained on. Then, while there is room, installed packages, of which nothing
    is held out. A file that does not fit is left out.
    """
    room, counts = int(mebibytes * 2**20), {"files": 0, "bytes": 0, "held_out_files": 0}
    for file in _candidates():
        content = file.text.encode()
        if len(content) > room:
            continue
        path = folder / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        room -= len(content)
        counts["files"] += 1
        counts["bytes"] += len(content)
        counts["held_out_files"] += file.held_out
        if room < 2**10:
            break
    return counts


def _candidates() -> Iterator[SourceFile]:
    """The shortest held-out file, then the others in the order of a hash: a small corpus is of mixed files, too."""
    library = sorted(read_corpus(), key=lambda file: hashlib.sha256(file.name.encode()).digest())
    first = min((f for f in library if f.held_out and len(f.text) > 2_000), key=lambda file: len(file.text))
    yield first
    yield from (file for file in library if file is not first)
    packages = Path(sysconfig.get_path("purelib"))
    for file in sorted(read_corpus(packages), key=lambda f: hashlib.sha256(f.name.encode()).digest()):
        name = f"{PACKAGES}/{file.name}"
        if not is_held_out(name):
            yield SourceFile(name, file.text, False)
