"""Measuring drafts under every condition that conf ``decoding`` names; both scripts end here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from rich.console import Console

from dflash.assemble.run import bar
from dflash.data.prompts import Prompt
from dflash.decode.proposer import Proposer
from dflash.decode.sampling import Sampling
from dflash.decode.verify import Match, Verifier
from dflash.draft.draft import Draft
from dflash.draft.shape import DraftShape
from dflash.evaluation.measure import measure
from dflash.target.load import LoadedTarget
from dflash.target.used import implementations

PROMPTS_BESIDE = 16  # an untrained draft gains one token a round, whatever the prompt


def new_draft(shape: DraftShape, *, seed: int) -> Draft:
    """A draft with the random weights that training with this seed starts from."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Draft(shape)


def conditions(decoding: Mapping) -> list[tuple[int, float]]:
    """(batch size, temperature): every batch size at the first temperature, every other one at the last size."""
    sizes, temperatures = decoding["batch_sizes"], decoding["temperatures"]
    return [(size, temperatures[0]) for size in sizes] + [(sizes[-1], other) for other in temperatures[1:]]


def sampling_of(decoding: Mapping, temperature: float) -> Sampling:
    """How conf ``decoding`` chooses tokens at ``temperature``. Raises ValueError for values out of bounds."""
    cuts = {key: decoding[key] for key in ("top_k", "top_p", "min_p")}
    return Sampling(temperature=temperature, seed=decoding["seed"], **cuts)


def measure_all(
    loaded: LoadedTarget,
    drafts: Mapping[str, Draft],
    prompts: Sequence[Prompt],
    *,
    decoding: Mapping,
    baselines: Sequence[Proposer],
    verifier: Verifier,
    block_size: int | None,
    console: Console,
) -> list[dict]:
    """One measurement per condition and draft (label -> draft), and per condition and baseline.

    The last draft, the one in question, is measured under every condition; those beside it under the last one at the
    first temperature only, where a slow draft costs least, and on the first ``PROMPTS_BESIDE`` prompts. Baselines
    propose blocks as long as that draft's, as chains.
    """
    ids = [list(prompt.ids) for prompt in prompts]
    limit, measurements = decoding["max_new_tokens"], []
    *beside, (name, in_question) = drafts.items()
    longest = block_size if block_size is not None else in_question.shape.block_size
    for batch_size, temperature in conditions(decoding):
        once = (batch_size, temperature) == (decoding["batch_sizes"][-1], decoding["temperatures"][0])
        contenders = [(label, draft, verifier, ids[:PROMPTS_BESIDE]) for label, draft in beside if once]
        contenders.append((name, in_question, verifier, ids))
        contenders += [(baseline.label, baseline, Match(), ids) for baseline in baselines]
        for label, draft, judge, theirs in contenders:
            what = f"decode, {label}, batch {batch_size}, T={temperature:g}"
            with bar(console, what, unit="tokens") as advance:
                done = _Counter(2 * limit * len(theirs), advance)
                measurements.append(
                    measure(
                        loaded.target,
                        draft,
                        theirs,
                        label=label,
                        block_size=longest if isinstance(draft, Proposer) else block_size,
                        batch_size=batch_size,
                        sampling=sampling_of(decoding, temperature),
                        verifier=judge,
                        max_new_tokens=limit,
                        stop_token_ids=loaded.stop_token_ids,
                        on_tokens=done.add,
                    )
                )
                done.finish()
    return measurements


class _Counter:
    """Tokens so far of at most ``total``: stop tokens may end prompts before the limit."""

    def __init__(self, total: int, advance):
        self.total, self.done, self.advance = total, 0, advance
        advance(0, total)

    def add(self, tokens: int) -> None:
        self.done += tokens
        self.advance(self.done, self.total)

    def finish(self) -> None:
        self.advance(self.done, self.done)


def describe_target(loaded: LoadedTarget) -> dict:
    """The report's section on the target."""
    target = loaded.target
    return {
        "name": target.name,
        "family": target.family,
        "num_parameters": target.num_parameters,
        "dtype": str(target.dtype).removeprefix("torch."),
        "device": str(target.device),
        **implementations(target),
        "fingerprint": target.fingerprint(),
        "mask_token_id": loaded.mask_token_id,
        "stop_token_ids": list(loaded.stop_token_ids),
    }


def describe_draft(draft: Draft) -> dict:
    """The report's section on the draft: its shape and size, and how much of it is a head."""
    sizes = {"num_parameters": draft.num_parameters, "num_head_parameters": draft.num_head_parameters}
    return {**draft.shape.to_dict(), **sizes}
