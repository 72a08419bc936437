"""The embedded target's tokenizer: byte-level BPE with harmony-style special tokens and a reserved mask token."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

# The harmony vocabulary of gpt-oss, plus a reserved id for the draft's masked slots.
SPECIAL_TOKENS = (
    "<|startoftext|>",
    "<|endoftext|>",
    "<|pad|>",
    "<|mask|>",
    "<|return|>",
    "<|constrain|>",
    "<|channel|>",
    "<|start|>",
    "<|end|>",
    "<|message|>",
    "<|call|>",
)

# The shape of OpenAI's harmony format, without its long system prompt: channels, <|return|> after the last turn and
# <|end|> after earlier ones, no reasoning kept from earlier turns.
CHAT_TEMPLATE = """\
{%- if reasoning_effort is defined or current_date is defined -%}
<|start|>system<|message|>
{%- if reasoning_effort is defined %}Reasoning: {{ reasoning_effort }}{% endif -%}
{%- if current_date is defined %} Current date: {{ current_date }}{% endif -%}
<|end|>
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'assistant' -%}
{%- if message.thinking and loop.last -%}
<|start|>assistant<|channel|>analysis<|message|>{{ message.thinking }}<|end|>
{%- endif -%}
<|start|>assistant<|channel|>final<|message|>{{ message.content }}
{%- if loop.last and not add_generation_prompt -%}<|return|>{%- else -%}<|end|>{%- endif -%}
{%- else -%}
<|start|>{{ message.role }}<|message|>{{ message.content }}<|end|>
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|start|>assistant{%- endif -%}
"""

# Indentation is half of Python: a line break and the blanks behind it are one word. Names keep their underscores.
_WORD = r"\n[ ]*| ?[\p{L}_]+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}_]+|[^\S\n]+"


def train_tokenizer(texts: Iterable[str], *, vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE over ``texts`` with ``vocab_size`` entries, special tokens last.

    Deterministic for the same texts in the same order.
    """
    num_special = len(SPECIAL_TOKENS)
    if vocab_size < 256 + num_special:
        raise ValueError(f"vocab_size={vocab_size} is below {256 + num_special}, the bytes and the special tokens")
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(_WORD), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - num_special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|startoftext|>",
        eos_token="<|return|>",
        pad_token="<|pad|>",
        mask_token="<|mask|>",
        extra_special_tokens=list(SPECIAL_TOKENS),
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast
