"""The phases of ``end_to_end_gpu.py``: how much of each fits into its share of the time, and the task that does it."""

from __future__ import annotations

import gc
import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from instruments import ROOT, median_seconds
from source_text import gather

from dflash.assemble.evaluate import evaluate
from dflash.assemble.parts import build_parts
from dflash.compose import Run, build, read_settings
from dflash.data.prompts import read_prompts
from dflash.decode.baseline import AutoregressiveDecoder
from dflash.target.families import build_model, gpt_oss_config
from dflash.training.pretrain import next_token_losses
from dflash.types import TokenBatch

if TYPE_CHECKING:
    from end_to_end_gpu import Plan

SHARES = {"pre-training": 0.33, "regeneration": 0.08, "distillation": 0.18}  # of the time; the rest is for measuring
SAFETY = 0.8  # of a share is planned for: starts, validation and checkpoints take the rest
TEMPERATURES = (0.0, 1.0)
TRIAL_STEPS = (3, 13)  # the first compiles what is to be compiled; their difference gives the rate


def steps_that_fit(seconds_per_step: float, *, seconds: float, most: int) -> int:
    """At least 10, so that there is something to go on with."""
    return min(most, max(10, int(SAFETY * seconds / seconds_per_step)))


class Workshop:
    """Runs the phases in one folder. seconds: of each phase so far, by name."""

    def __init__(
        self, plan: Plan, *, folder: Path, dtype: str, seconds: float, quiet: bool, overrides: tuple[str, ...] = ()
    ):
        self.plan = plan
        self.folder = folder.resolve()
        self.dtype = dtype
        self.allowed = {name: share * seconds for name, share in SHARES.items()}
        self.quiet = ["callbacks=quiet"] if quiet else []
        self.overrides = overrides
        self.seconds: dict[str, float] = {}
        self.step_seconds: dict[int, float] = {}  # of the loop, by the number of new tokens
        self.target = self.folder / "target" / "target"
        self.draft = self.folder / "draft"

    def gather(self) -> dict[str, int]:
        """The corpus."""
        with self._clock("corpus"):
            return gather(self.folder / "corpus", mebibytes=self.plan.corpus_mebibytes)

    def pretrain(self) -> dict[str, Any]:
        """The target, as a model folder."""
        plan = self.plan
        with self._clock("pre-training"):
            rate = self._pretrain_step_seconds()
            steps = steps_that_fit(rate, seconds=self.allowed["pre-training"], most=plan.max_pretrain_steps)
            bits = -self._task("target", *self.pretraining(steps))
        return {
            "steps": steps,
            "tokens": steps * plan.pretrain_rows * plan.pretrain_length,
            "trial_step_seconds": rate,
            "held_out_bits_per_byte": bits,
            "num_parameters": num_parameters(plan),
        }

    def plan_regeneration(self) -> int:
        """How many prompts the target can answer in its share, by the rate of one batch."""
        plan = self.plan
        loaded = build_parts(read_settings("train", self.distillation(1)), {"target": None})["target"]()
        prompts = read_prompts(ROOT / "assets/prompts/validation.jsonl", loaded.tokenizer)
        ids = [list(prompts[i % len(prompts)].ids) for i in range(plan.regenerate_batch)]
        _, timing = AutoregressiveDecoder(loaded.target).generate(ids, max_new_tokens=min(17, plan.response_tokens))
        step = timing.decode_seconds / max(1, timing.num_rounds)
        self.step_seconds = dict.fromkeys((new for new, _, _ in plan.lengths), step)
        batch_seconds = timing.prefill_seconds + plan.response_tokens * step
        batches = max(1, int(SAFETY * self.allowed["regeneration"] / batch_seconds))
        return min(plan.max_prompts, batches * plan.regenerate_batch)

    def distil(self, num_prompts: int) -> dict[str, Any]:
        """The responses and the draft."""
        plan, overrides = self.plan, self.distillation(num_prompts)
        trials = []
        with self._clock("trial steps and regeneration"):
            for steps in TRIAL_STEPS:
                self._task(f"trial-{steps}", *overrides, f"steps={steps}", "callbacks.acceptance=null")
                seconds = json.loads((self.folder / f"trial-{steps}" / "report.json").read_text())["provenance"]
                trials.append(seconds["seconds"]["train"])
        rate = max(1e-4, (trials[1] - trials[0]) / (TRIAL_STEPS[1] - TRIAL_STEPS[0]))
        steps = steps_that_fit(rate, seconds=self.allowed["distillation"], most=plan.max_distil_steps)
        every = max(1, steps // 4)
        with self._clock("distillation"):
            self._task(
                "draft",
                *overrides,
                f"steps={steps}",
                f"eval_every={every}",
                "callbacks.acceptance.max_new_tokens=32",
                f"callbacks.acceptance.decode_every={8 * every}",  # real decoding is measured afterwards
                f"checkpoint_every={steps}",
            )
        report = json.loads((self.draft / "report.json").read_text())
        return {
            "steps": steps,
            "num_prompts": num_prompts,
            "trial_step_seconds": rate,
            "num_parameters": report["draft"]["num_parameters"],
            "num_supervised_tokens": report["data"]["num_supervised_tokens"],
            "curve": report["curve"],
        }

    def measure(self, *, deadline: float) -> tuple[list[dict[str, Any]], list[str]]:
        """(rows, conditions left out): the first block size at every length, then the others while time lasts."""
        plan, rows, left_out = self.plan, [], []
        first, *others = plan.block_sizes
        order = [(first, length) for length in plan.lengths]
        order += [(size, length) for length in plan.lengths for size in others]
        with self._clock("measuring"):
            for size, (new_tokens, batch_size, count) in order:
                steps = len(TEMPERATURES) * math.ceil(count / batch_size) * new_tokens
                expected = 2 * steps * self.step_seconds[new_tokens]  # the loop, and at worst as much for the draft
                if rows and time.perf_counter() + expected > deadline:
                    left_out.append(
                        f"{new_tokens} new tokens, block {size}: it may take {expected:.0f} s, more than is left"
                    )
                    continue
                found = self._measure(size, new_tokens=new_tokens, batch_size=batch_size, count=count)
                self.step_seconds[new_tokens] = batch_size / found[0]["loop_tokens_per_second"]
                rows += found
        return rows, left_out

    def _measure(self, block_size: int, *, new_tokens: int, batch_size: int, count: int) -> list[dict[str, Any]]:
        name = f"measured-{new_tokens}-{block_size}"
        overrides = [
            f"checkpoint={self.draft}",
            f"prompts.path={ROOT / 'assets/prompts/held_out.jsonl'}",
            f"prompts.count={count}",
            f"block_size={block_size}",
            f"device={self.plan.device}",
            f"decoding.max_new_tokens={new_tokens}",
            f"decoding.batch_sizes=[{batch_size}]",
            f"decoding.temperatures={list(TEMPERATURES)}".replace(" ", ""),
            f"paths.outputs={self.folder}",
        ]
        evaluate(read_settings("evaluate", overrides), Run(self.folder / name, f"python evaluate.py {name}"))
        report = json.loads((self.folder / name / "report.json").read_text())
        return [row_of(measurement) for measurement in report["measurements"]]

    def pretraining(self, steps: int) -> list[str]:
        """Overrides of train.py."""
        plan = self.plan
        return [
            "experiment=tiny_target", f"trainer={plan.trainer}", f"steps={steps}", f"eval_every={steps}",
            f"checkpoint_every={steps}", f"optimizer.lr={plan.target_lr}", f"task.vocab_size={plan.vocab_size}",
            f"task.length={plan.pretrain_length}", f"task.batch_size={plan.pretrain_rows}",
            f"task.corpus_root={self.folder / 'corpus'}",
            *(f"+task.architecture.{key}={value}" for key, value in plan.architecture.items()),
        ]  # fmt: skip

    def distillation(self, num_prompts: int) -> list[str]:
        """Overrides of train.py, but for the number of steps."""
        plan, prompts = self.plan, ROOT / "assets/prompts"
        return [
            "target=local", f"target.path={self.target}", "target.attention=fused",
            "target.experts=grouped_mm", f"target.dtype={self.dtype}", *plan.draft, f"trainer={plan.trainer}",
            "features=online", f"block_size={plan.train_block_size}", f"num_anchors={plan.num_anchors}",
            f"data.length={plan.distil_length}", f"data.batch_size={plan.distil_rows}",
            f"data.max_new_tokens={plan.response_tokens}", f"data.regenerate_batch_size={plan.regenerate_batch}",
            f"data.shard_size={plan.regenerate_batch}", f"data.prompts.count={num_prompts}",
            f"data.prompts.prompt_tokens={list(plan.prompt_tokens)}".replace(" ", ""),
            f"data.prompts.chat_fraction={plan.chat_fraction}", f"data.prompts.corpus_root={self.folder / 'corpus'}",
            f"paths.cache={self.folder / 'responses'}", f"prompts.path={prompts / 'held_out.jsonl'}",
            f"validation.path={prompts / 'validation.jsonl'}", f"validation.count={plan.validation_prompts}",
            "prompts.count=2", "measure_untrained=false", "decoding.max_new_tokens=8", "decoding.batch_sizes=[1]",
            "decoding.temperatures=[0.0]", *self.overrides,
        ]  # fmt: skip

    def _task(self, name: str, *overrides: str) -> float:
        settings = read_settings("train", [*self.quiet, *overrides, f"name={name}", f"paths.outputs={self.folder}"])
        score = build(settings["task"], "task")(settings, Run(self.folder / name, f"python train.py name={name}"))
        gc.collect()
        if self.plan.device == "cuda":
            torch.cuda.empty_cache()
        return score

    def _pretrain_step_seconds(self) -> float:
        """Seconds of a step of pre-training at this plan's sizes, on random tokens."""
        plan = self.plan
        torch.manual_seed(0)
        model = build_model(gpt_oss_config(vocab_size=plan.vocab_size, **plan.architecture)).to(plan.device).train()
        model.set_experts_implementation("eager")
        settings = read_settings("train", ["experiment=tiny_target", f"trainer={plan.trainer}"])
        optimizer = build(settings["optimizer"], "optimizer")(model)
        size = plan.pretrain_rows, plan.pretrain_length
        ids = torch.randint(plan.vocab_size, size)
        positions = torch.arange(size[1]).expand(size)
        batch = TokenBatch(ids, torch.zeros_like(ids), positions, torch.ones_like(ids, dtype=torch.bool))
        batch = batch.to(plan.device)

        def step() -> None:
            with torch.autocast(plan.device, dtype=torch.bfloat16):
                nll_BS, counted_BS = next_token_losses(model, batch)
            nll_BS[counted_BS].mean().backward()
            optimizer.step()
            optimizer.zero_grad()

        return median_seconds(step, device=plan.device, repeats=3)

    @contextmanager
    def _clock(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started


def num_parameters(plan: Plan) -> int:
    """Parameters of the plan's target, without their memory."""
    with torch.device("meta"):
        model = build_model(gpt_oss_config(vocab_size=plan.vocab_size, **plan.architecture))
    return sum(p.numel() for p in model.parameters())


def row_of(measurement: dict[str, Any]) -> dict[str, Any]:
    """A line of the table from a report's measurement."""
    acceptance, speed = measurement["acceptance"], measurement["speed"]
    return {
        "new_tokens": measurement["max_new_tokens"],
        "block_size": measurement["block_size"],
        "temperature": measurement["temperature"],
        "batch_size": measurement["batch_size"],
        "num_prompts": measurement["num_prompts"],
        "num_tokens": acceptance["num_tokens"],
        "acceptance": acceptance["mean"],
        "acceptance_interval": acceptance["mean_interval"],
        "loop_tokens_per_second": speed["ar_tokens_per_second"],
        "draft_tokens_per_second": speed["speculative_tokens_per_second"],
        "speedup": speed["total_speedup"],
        "round_cost_in_steps": speed["round_cost_ar_steps"],
        "equal": measurement["lossless"],
        "chain_walk": measurement["chain_walk"],
        "divergence": measurement["divergence"],
        "repeated_4gram_share": measurement["repeated_4gram_share"],
    }
