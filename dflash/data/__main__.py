"""``python -m dflash.data prompts``: writes the committed set of held-out prompts from this machine's library."""

from __future__ import annotations

import argparse
import sys

from dflash.data.corpus import read_corpus
from dflash.data.held_out import held_out_prompts
from dflash.data.prompts import read_texts, write_prompts


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dflash.data", description=__doc__)
    command = parser.add_subparsers(dest="command", required=True).add_parser("prompts", help="write the prompt set")
    command.add_argument("--out", default="assets/prompts/held_out.jsonl", help="file to write (%(default)s)")
    command.add_argument("--completions", type=int, default=48, help="code to continue (%(default)s)")
    command.add_argument("--chats", type=int, default=16, help="questions for a function (%(default)s)")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--corpus", default=None, help="folder of .py files (this interpreter's standard library)")
    command.add_argument("--without", default=None, help="JSONL file of prompts that no new one may overlap")
    options = parser.parse_args(arguments)
    prompts = held_out_prompts(
        read_corpus(options.corpus),
        num_completions=options.completions,
        num_chats=options.chats,
        seed=options.seed,
        without=read_texts(options.without) if options.without else (),
    )
    write_prompts(options.out, prompts)
    sys.stderr.write(f"{len(prompts)} prompts written to {options.out}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
