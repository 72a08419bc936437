"""``python -m dflash.data``: regenerate responses, show rows, and write the committed set of held-out prompts."""

from __future__ import annotations

import argparse
import sys

from rich.console import Console

from dflash.assemble.regenerating import regenerate
from dflash.assemble.showing import show
from dflash.data.corpus import read_corpus
from dflash.data.held_out import held_out_prompts
from dflash.data.prompts import read_texts, write_prompts


def main(arguments: list[str] | None = None) -> int:
    """0: done. 1: a mistake, told in a message, or prompts that got no answer. 130: interrupted."""
    parser = argparse.ArgumentParser(prog="python -m dflash.data", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for add in (_add_regenerate, _add_show, _add_prompts):
        add(commands)
    options = parser.parse_args(arguments)
    try:
        return options.run(options, Console(highlight=False))
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; a regeneration goes on where it stopped when its command is given again\n")
        return 130


def _add_regenerate(commands) -> None:
    command = commands.add_parser("regenerate", help="have the target answer the prompts of a data set")
    command.add_argument("overrides", nargs="*", help="settings of conf/regenerate.yaml, such as engine=server")
    command.set_defaults(run=lambda options, console: 0 if regenerate(options.overrides, console) else 1)


def _add_show(commands) -> None:
    command = commands.add_parser("show", help="print documents of a data option, supervised tokens in colour")
    command.add_argument("overrides", nargs="*", help="settings of train.py, such as data=ultrachat target=gpt_oss_20b")
    command.add_argument("--documents", type=int, default=3, help="how many (%(default)s)")
    command.add_argument("--skip", type=int, default=0, help="documents to pass over first (%(default)s)")
    command.add_argument("--tokens", type=int, default=512, help="of each document, at most (%(default)s)")
    command.set_defaults(run=_show)


def _show(options: argparse.Namespace, console: Console) -> int:
    show(options.overrides, console, documents=options.documents, skip=options.skip, tokens=options.tokens)
    return 0


def _add_prompts(commands) -> None:
    command = commands.add_parser("prompts", help="write the set of held-out prompts from this machine's library")
    command.add_argument("--out", default="assets/prompts/held_out.jsonl", help="file to write (%(default)s)")
    command.add_argument("--completions", type=int, default=48, help="code to continue (%(default)s)")
    command.add_argument("--chats", type=int, default=16, help="questions for a function (%(default)s)")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--corpus", default=None, help="folder of .py files (this interpreter's standard library)")
    command.add_argument("--without", default=None, help="JSONL file of prompts that no new one may overlap")
    command.set_defaults(run=_prompts)


def _prompts(options: argparse.Namespace, console: Console) -> int:
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
