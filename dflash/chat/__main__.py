"""``python -m dflash.chat``: talk to a target; what its draft wrote and the target accepted is shown in colour.

Overrides are those of evaluate.py (checkpoint=..., decoding=sampled, verify=ddtree, ...).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

from rich.console import Console

from dflash.assemble.measuring import sampling_of
from dflash.assemble.parts import build_parts, ready_device
from dflash.chat.show import DRAFTED, Tally, pieces, show
from dflash.compose import read_settings, resolve_checkpoint
from dflash.data.prompts import Prompt, encode_prompt
from dflash.decode.decoder import SpeculativeDecoder
from dflash.hub.source import find_source
from dflash.target.load import LoadedTarget


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dflash.chat", description=__doc__)
    parser.add_argument("overrides", nargs="*", help="settings of evaluate.py, such as verify=ddtree")
    parser.add_argument("--prompt", action="append", help="say this and leave; several are turns of one conversation")
    parser.add_argument("--raw", action="store_true", help="continue the text as it is, without the chat template")
    options = parser.parse_intermixed_args(arguments)
    console = Console(highlight=False)
    try:
        talk = Talk(*open_decoder(options.overrides, console), console, raw=options.raw)
        for text in options.prompt or ask(console):
            talk.answer(text)
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    console.print(f"[{DRAFTED}]accepted from the draft[/], the target's own plain", soft_wrap=True)
    console.print(talk.tally.sentence(), soft_wrap=True)
    return 0


def open_decoder(overrides: list[str], console: Console) -> tuple[LoadedTarget, SpeculativeDecoder, int]:
    """(target, decoder, most new tokens) as evaluate.py's settings describe them.

    Raises ValueError for whatever is wrong with them, before any weight is loaded if it can be known.
    """
    settings = read_settings("evaluate", overrides)
    parts = build_parts(settings, {"target": None, "decoding.verifier": object})
    ready_device(settings["device"])
    source = find_source(resolve_checkpoint(settings["checkpoint"], settings["paths"]["outputs"]))
    loaded = parts["target"]()
    draft, notes = source.load(loaded)
    for note in notes:
        console.print(f"note: {note}", soft_wrap=True, markup=False)
    decoding = settings["decoding"]
    decoder = SpeculativeDecoder(
        loaded.target,
        draft,
        block_size=settings["block_size"],
        sampling=sampling_of(decoding, decoding["temperatures"][0]),
        verifier=parts["decoding.verifier"],
    )
    return loaded, decoder, decoding["max_new_tokens"]


class Talk:
    """One conversation. ``raw`` (or a tokenizer without a chat template): every text stands alone and is continued."""

    def __init__(
        self, loaded: LoadedTarget, decoder: SpeculativeDecoder, max_new_tokens: int, console: Console, *, raw: bool
    ):
        self.loaded, self.decoder, self.console = loaded, decoder, console
        self.max_new_tokens = max_new_tokens
        self.raw = raw or not loaded.tokenizer.chat_template
        self.messages: list[dict[str, str]] = []
        self.tally = Tally()

    def answer(self, text: str) -> None:
        """Show what the target says to ``text``."""
        stream = self.decoder.stream(
            self._encode(text), max_new_tokens=self.max_new_tokens, stop_token_ids=self.loaded.stop_token_ids
        )
        said = show(self.console, pieces(self.loaded.tokenizer, self.tally.watch(stream)))
        self.messages.append({"role": "assistant", "content": said})

    def _encode(self, text: str) -> list[int]:
        if self.raw:
            return list(encode_prompt(self.loaded.tokenizer, Prompt((), "chat", "completion", text)).ids)
        self.messages.append({"role": "user", "content": text})
        prompt = Prompt((), "chat", "chat", text, tuple(self.messages))
        return list(encode_prompt(self.loaded.tokenizer, prompt).ids)


def ask(console: Console) -> Iterator[str]:
    """What is typed, line by line, until the end of input or Ctrl-C."""
    while True:
        try:
            text = console.input("[bold]> [/]")
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        if text.strip():
            yield text


if __name__ == "__main__":
    sys.exit(main())
