"""Measuring a draft by real decoding: baseline and speculative decoding of the same prompts, side by side.

The callback and evaluate.py both end here. Each batch is decoded by both, one right after the other, so that the noise
of the machine falls on both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle, islice

import numpy as np

from dflash.decode.baseline import AutoregressiveDecoder
from dflash.decode.decoder import SpeculativeDecoder
from dflash.decode.proposer import Proposer
from dflash.decode.sampling import Sampling
from dflash.decode.verify import Verifier, measure_proposing
from dflash.draft.draft import Draft
from dflash.evaluation.acceptance import AcceptanceStats, bootstrap_ratio, chain_walk, repeated_ngram_share
from dflash.evaluation.divergence import divergence
from dflash.replay import CALLS_TO_SETTLE, recording_at_once
from dflash.shown import REPLAY_SLOTS, in_steps
from dflash.target.target import Target
from dflash.types import DecodeTiming, DecodeTrace

CUTS = ("top_k", "top_p", "min_p")
Tokens = Sequence[int]
Run = tuple[list[DecodeTrace], DecodeTiming]


def measure(
    target: Target,
    draft: Draft | Proposer,
    prompts: Sequence[Tokens],
    *,
    label: str,
    max_new_tokens: int,
    stop_token_ids: Sequence[int],
    block_size: int | None = None,
    batch_size: int = 1,
    sampling: Sampling | None = None,
    verifier: Verifier | None = None,
    warm_up: bool = True,
    on_tokens: Callable[[int], None] | None = None,
) -> dict:
    """One entry of a report's ``measurements``: acceptance, speed, losslessness, chain walk (of a draft, greedy only),
    divergence (greedy and below fp32 only). ``draft``: or what proposes in its place.

    Decodes len(prompts) prompts twice. ``on_tokens`` is called with the number of tokens each round emitted.
    """
    sampling = sampling if sampling is not None else Sampling()
    if not isinstance(draft, Proposer):
        draft.eval()
    speculative = SpeculativeDecoder(target, draft, block_size=block_size, sampling=sampling, verifier=verifier)
    baseline = AutoregressiveDecoder(target, sampling=sampling)
    limits = {"max_new_tokens": max_new_tokens, "stop_token_ids": stop_token_ids}
    if warm_up:
        _warm_up((baseline, speculative), prompts, batch_size=batch_size, max_new_tokens=max_new_tokens)
    pairs: list[tuple[Run, Run]] = []
    for first in range(0, len(prompts), batch_size):
        batch = prompts[first : first + batch_size]
        runs = [
            decoder.generate(batch, first_index=first, on_tokens=on_tokens, **limits)
            for decoder in (baseline, speculative)
        ]
        pairs.append((runs[0], runs[1]))
    return {
        "label": label,
        "block_size": speculative.block_size,
        "batch_size": batch_size,
        "temperature": sampling.temperature,
        "cuts": {key: value for key, value in vars(sampling).items() if key in CUTS and value is not None},
        "verifier": speculative.verifier.name,
        "num_prompts": len(prompts),
        "max_new_tokens": max_new_tokens,
        "proposing": _proposing(speculative, batch_size=batch_size),
        **_results(speculative, prompts, pairs),
    }


def _warm_up(decoders: Sequence, prompts: Sequence[Tokens], *, batch_size: int, max_new_tokens: int) -> None:
    """A few rounds of whole batches, untimed; where passes are recorded, at every length these prompts come to, so that
    the recordings are made now."""
    speculative = decoders[-1]
    count = min(CALLS_TO_SETTLE * speculative.block_size, REPLAY_SLOTS // 2)
    if not speculative.target.replays_batch(batch_size):
        starts = [min(map(len, prompts))]
    else:
        shortest, longest = min(map(len, prompts)), max(map(len, prompts)) + max_new_tokens
        starts = [max(shortest, edge) for edge in range(in_steps(shortest + 1) - REPLAY_SLOTS, longest, REPLAY_SLOTS)]
    text = cycle(token for prompt in prompts for token in prompt)
    text = list(islice(text, max(starts)))
    with recording_at_once():
        for start in starts:
            for decoder in decoders:
                decoder.generate([text[:start]] * batch_size, max_new_tokens=min(count, max_new_tokens))


def _proposing(decoder: SpeculativeDecoder, *, batch_size: int) -> dict | None:
    """Seconds of proposing one block as a chain: of the draft's pass, and of its head's walk over the slots."""
    if not isinstance(decoder.draft, Draft):
        return None
    sizes = {"batch_size": batch_size, "block_size": decoder.block_size}
    draft_seconds, head_seconds = measure_proposing(decoder.target, decoder.proposer, **sizes)
    return {"draft_seconds": draft_seconds, "head_seconds": head_seconds}


def _results(decoder: SpeculativeDecoder, prompts: Sequence[Tokens], pairs: list[tuple[Run, Run]]) -> dict:
    block_size, sampling = decoder.block_size, decoder.sampling
    own = [trace for (traces, _), _ in pairs for trace in traces]
    ours = [trace for _, (traces, _) in pairs for trace in traces]
    stats = AcceptanceStats(tuple(trace.lengths for trace in ours), block_size)
    same = [a.tokens == b.tokens for a, b in zip(own, ours, strict=True)]
    exact = sampling.greedy or decoder.verifier.repeats_target  # rejection equals the target in distribution only
    result = {
        "acceptance": stats.to_dict(),
        "proposals": _proposals(ours),
        "speed": _speed(pairs),
        "lossless": {"equal": sum(same), "total": len(same)} if exact else None,
        "chain_walk": None,
        "divergence": None,
        "repeated_4gram_share": repeated_ngram_share([trace.tokens for trace in own]),
    }
    if sampling.greedy:
        result["divergence"] = divergence(decoder.target, prompts, own, ours, block_size=block_size)
    if sampling.greedy and decoder.verifier.whole_chain and not isinstance(decoder.draft, Proposer):
        continuations = [trace.tokens for trace in own]
        walked = chain_walk(decoder.target, decoder.draft, prompts, continuations, block_size=block_size)
        agree = [w == trace.lengths for w, trace in zip(walked, ours, strict=True)]
        result["chain_walk"] = {"equal": sum(agree), "total": len(agree)}
    return result


def _proposals(traces: list[DecodeTrace]) -> dict:
    """Proposals a round, and expected against realised acceptance, where the verifier expects any.

    Last rounds are left out of that comparison: a limit or a stop token may have cut what they gained.
    """
    nodes = [count for trace in traces for count in trace.nodes]
    pairs = [
        pair for trace in traces if trace.expected for pair in zip(trace.expected[:-1], trace.lengths[:-1], strict=True)
    ]
    expected, realised = np.mean(pairs, axis=0) if pairs else (None, None)
    return {
        "mean": float(np.mean(nodes)) if nodes else None,
        "expected_acceptance": expected,
        "realised_acceptance": realised,
        "num_rounds": len(pairs),
    }


def _speed(pairs: list[tuple[Run, Run]]) -> dict:
    """Decode time without prefill. A round's cost is in autoregressive steps of the same batch size.

    per_prompt: of every batch that decoded anything, tokens and seconds of the baseline, then of the draft's decoding.
    """
    tokens = np.array([[_decoded(traces) for traces, _ in pair] for pair in pairs], dtype=np.float64)
    seconds = np.array([[timing.decode_seconds for _, timing in pair] for pair in pairs])
    rounds = np.array([[timing.num_rounds for _, timing in pair] for pair in pairs], dtype=np.float64)
    worked = (tokens > 0).all(1)  # a prompt whose first token is a stop has nothing to decode
    tokens, seconds, rounds = tokens[worked], seconds[worked], rounds[worked]
    if not len(tokens):
        return {}
    rates = tokens / seconds
    speedups = rates[:, 1] / rates[:, 0]
    totals = tokens.sum(0) / seconds.sum(0)
    step_seconds = seconds.sum(0) / rounds.sum(0)
    return {
        "ar_tokens_per_second": totals[0],
        "speculative_tokens_per_second": totals[1],
        "mean_prompt_speedup": speedups.mean(),
        "mean_prompt_speedup_interval": list(bootstrap_ratio(speedups, np.ones_like(speedups))),
        "total_speedup": totals[1] / totals[0],
        "ar_prefill_seconds": sum(run[1].prefill_seconds for run, _ in pairs),
        "speculative_prefill_seconds": sum(run[1].prefill_seconds for _, run in pairs),
        "round_cost_ar_steps": step_seconds[1] / step_seconds[0],
        "per_prompt": np.stack([tokens, seconds], axis=-1).reshape(len(tokens), 4).tolist(),
    }


def _decoded(traces: list[DecodeTrace]) -> int:
    """Tokens behind the first one of each row, which the prefill decides."""
    return sum(len(trace.tokens) - 1 for trace in traces)
