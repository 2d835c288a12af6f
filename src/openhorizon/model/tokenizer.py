"""A byte-level BPE tokenizer trained on a profile's own text, with a chat template that knows tools.

What differs from a stock byte-level BPE, and why: the chat format's scaffolding (a call
up to the value) is one pre-token, so that a call costs a few tokens and not thirty, and digits stand alone, so that
ids are copied digit by digit. A capitalized word or an id is never joined to the space before it: the name in an
observation, in a call and in an answer then is the same token sequence, and copying it is copying. A held-out name is
spelled with the same pieces as a known one.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

PAD, END = "<|pad|>", "<|end|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
MARKS = ("<think>", "</think>", "<tool_call>", "</tool_call>")

# {% generation %} marks what carries loss, for trainers that read it (transformers, TRL). A call is text of the turn in
# our own conversations; other clients of a server hand it in as `tool_calls`, which read the same.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|' + message['role'] + '|>' }}"
    "{%- if message['role'] == 'assistant' -%}"
    "{% generation %}{{ message['content'] or '' }}"
    "{%- for call in message['tool_calls'] or [] -%}"
    "{%- set given = call['function']['arguments'] -%}"
    """{{ '<tool_call>{"name": ' + (call['function']['name'] | tojson) + ', "arguments": ' }}"""
    "{{ (given if given is string else given | tojson) + '}</tool_call>' }}"
    "{%- endfor -%}{{ '<|end|>' }}{% endgeneration %}"
    "{%- else -%}{{ message['content'] + '<|end|>' }}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"
)

_PIECES = (
    r'</?[a-z_]+>|\{"name": "[a-z_]*", "arguments": \{(?:"[a-z_]*": "?)?|", "[a-z_]+": "?|"\}\}|\}\}|": "?'
    r"|\d|[a-z](?=\d)| ?[a-z]+(?![a-z]*[^\W_a-z])| ?[^\s\d\w]+|[^\W\d]+|\s"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int, max_tokens: int) -> PreTrainedTokenizerFast:
    """Deterministic for the same texts.

    Raises:
        ValueError: ``vocab_size`` has no room for 256 bytes and the special tokens.
    """
    special = [PAD, END, *ROLES, *MARKS]
    if vocab_size < 256 + len(special):
        raise ValueError(f"model.scratch.vocab_size={vocab_size}: needs at least {256 + len(special)}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=token not in MARKS, normalized=False) for token in special],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        clean_up_tokenization_spaces=False,
        model_max_length=max_tokens,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast
