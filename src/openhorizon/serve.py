"""``openhorizon serve MODEL``: an OpenAI-compatible endpoint by a server that exists, vLLM, SGLang or transformers'.

What we add is a folder to serve, ``.openhorizon/serve/NAME``: links to the checkpoint's files, and beside them

* ``generation_config.json``: sampling as asked for (servers would else decode greedily, or with a top-k of their own),
  and no special token inside a turn, as ``model/sampler.py`` does;
* a ``response_template``, by which ``transformers serve`` takes ``<think>`` and ``<tool_call>`` out of the text. A call
  whose arguments are not JSON stays a call with these arguments, for the client to judge; one without a name stays
  text. transformers' own template for this form answers both with an error 500.

``raw`` serves the text as the model wrote it: for models that think in every turn, since ``transformers serve`` reads
nothing of a turn with calls but the calls, so that earlier thoughts would be gone from the context. Our own client
(``agent/endpoint.py``) reads both.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
from pathlib import Path
from typing import Any, Literal, NoReturn

from openhorizon import process
from openhorizon.artifacts import replace_dir, write_text
from openhorizon.config import MachineConfig
from openhorizon.players import checkpoint_of

FOLDER = Path(".openhorizon") / "serve"
HOST, PORT = "127.0.0.1", 8000
Engine = Literal["vllm", "sglang", "transformers"]
ENGINES: tuple[Engine, ...] = ("vllm", "sglang", "transformers")  # in the order of preference
GENERATION, TOKENIZER = "generation_config.json", "tokenizer_config.json"
CALL_OPENS = r'<tool_call>\s*\{\s*"name":\s*"(?P<name>[^"\\]+)",\s*"arguments":\s*'
CALL_CLOSES = r"\s*\}\s*</tool_call>"
NO_TOOLS = (
    "its chat template shows no tools: what a request has in `tools` is not read, and the model knows of tools by the "
    "system prompt alone (calls come back as tool_calls all the same)"
)


def serve(model: str, machine: MachineConfig, host: str, port: int, engine: Engine | None, raw: bool) -> NoReturn:
    """Become the server of ``model``; its name there is the folder's.

    Raises:
        FileNotFoundError: the checkpoint is not there.
        ValueError: no such model, an engine that is not installed, or a chat template without calls.
    """
    chosen = choose(engine)
    folder = prepare(model, raw)
    process.limit_threads(machine.threads)
    print(f"http://{host}:{port}/v1  model {folder.name}  by {chosen} (Ctrl-C ends it)", flush=True)
    if not shows_tools(_tokenizer(folder)):
        print(f"note: {NO_TOOLS}", flush=True)
    arguments = command(chosen, folder.name, machine.device, host, port, raw)
    os.chdir(folder.parent)  # the folder's name is the model's
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, *arguments], process.child_environment(HF_HUB_OFFLINE="1"))


def choose(engine: Engine | None) -> Engine:
    """The engine asked for, else the first that is installed.

    Raises:
        ValueError: it is not installed.
    """
    chosen = engine if engine is not None else next(name for name in ENGINES if _installed(name))
    if not _installed(chosen):
        raise ValueError(f"serve: {chosen} is not installed here; --print says how to start it elsewhere")
    if chosen == "transformers" and not _installed("accelerate"):
        raise ValueError("serve: `transformers serve` needs the package accelerate; `make setup` installs it")
    return chosen


def instructions(model: str, machine: MachineConfig, host: str, port: int, engine: Engine, raw: bool) -> str:
    """What serves ``model`` from an environment where ``engine`` is installed; makes the folder."""
    folder = prepare(model, raw)
    return f"cd {folder.parent} && python {' '.join(command(engine, folder.name, machine.device, host, port, raw))}"


def command(engine: Engine, name: str, device: str, host: str, port: int, raw: bool) -> list[str]:
    """What the interpreter is started with, in the folder above the served one."""
    where = f"--host {host} --port {port}"
    written = {
        "vllm": f"vllm.entrypoints.openai.api_server --model {name} --served-model-name {name} {where}"
        + ("" if raw else " --enable-auto-tool-choice --tool-call-parser hermes"),
        "sglang": f"sglang.launch_server --model-path {name} --served-model-name {name} {where}"
        + ("" if raw else " --tool-call-parser qwen25"),
        "transformers": f"transformers.cli.transformers serve {name} --device {device} {where}",
    }
    return ["-m", *written[engine].split()]


def served_name(model: str) -> str:
    """A model's name at its server: letters that no server takes for a revision or a path."""
    plain = model.rstrip("/").rpartition("/")[2]
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in plain) or "model"


def prepare(model: str, raw: bool, root: Path = FOLDER) -> Path:
    """The folder to serve ``model`` from, made anew.

    Raises:
        FileNotFoundError: the checkpoint is not there.
        ValueError: no such model; no usable tokenizer; or, unless ``raw``, a chat template that renders no calls.
    """
    source = checkpoint_of(model).resolve()
    if not (source / "config.json").is_file():
        raise ValueError(f"{model}: a folder without config.json, so no checkpoint")
    tokenizer = _tokenizer(source)
    with replace_dir(root / served_name(model)) as folder:
        for path in sorted(source.iterdir()):
            if path.is_file() and path.name not in (GENERATION, TOKENIZER):
                (folder / path.name).symlink_to(path)
        write_text(folder / GENERATION, json.dumps(_generation(source, tokenizer), indent=2, sort_keys=True) + "\n")
        config = _json(source / TOKENIZER)
        template = untouched(tokenizer) if raw else response_template(tokenizer)
        if template is not None:
            config["response_template"] = template
        write_text(folder / TOKENIZER, json.dumps(config, indent=2, sort_keys=True) + "\n")
    return root / served_name(model)


def response_template(tokenizer: Any) -> dict[str, Any] | None:
    """How a turn of this tokenizer's chat is taken apart, in the form of transformers' parser; None where it writes
    calls in another form, which the server may know by itself.

    Raises:
        ValueError: the chat template leaves the calls of an earlier turn out, so that no client with tools would work.
    """
    call = {"type": "function", "function": {"name": "look_up", "arguments": {"key": "amber"}}}
    asked = [{"role": "user", "content": "U"}]
    shown = [*asked, {"role": "assistant", "content": "", "tool_calls": [call]}]
    try:
        text = tokenizer.apply_chat_template(shown, tokenize=False)
    except Exception as error:  # jinja's, of whatever type the template raises
        raise ValueError(f"its chat template renders no calls ({_first(error)}); serve it with --raw") from error
    if "look_up" not in text or "amber" not in text:
        raise ValueError("its chat template leaves calls out of the conversation; serve it with --raw")
    if not re.search(CALL_OPENS + r'\{"key": "amber"\}' + CALL_CLOSES, text):
        return None
    return {
        "defaults": {"role": "assistant"},
        "start_anchor": _opens(tokenizer),
        "fields": {
            "reasoning_content": {"open": "<think>", "close": "</think>", "content": "text"},
            "tool_calls": {
                "open_pattern": r"\s*" + CALL_OPENS,
                "close_pattern": CALL_CLOSES,
                "repeats": True,
                "content": "json",
                "content_args": {"allow_non_json": True},
                "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
            },
            "content": {"close": tokenizer.eos_token, "content": "text"},
        },
    }


def shows_tools(tokenizer: Any) -> bool:
    """Whether its chat template writes a request's tools into the prompt. One that does not leaves them out without a
    word."""
    asked = [{"role": "user", "content": "U"}]
    tool = {"type": "function", "function": {"name": "look_up", "description": "D", "parameters": {"type": "object"}}}
    plain: str = tokenizer.apply_chat_template(asked, tokenize=False)
    told: str = tokenizer.apply_chat_template(asked, tools=[tool], tokenize=False)
    return told != plain


def untouched(tokenizer: Any) -> dict[str, Any]:
    """The template that takes nothing out of the text; without one the server might know this family's own form."""
    content = {"close": tokenizer.eos_token, "content": "text", "content_args": {"strip": False}}
    return {"start_anchor": _opens(tokenizer), "fields": {"content": content}}


def _opens(tokenizer: Any) -> str:
    """What stands in front of an assistant's turn."""
    asked = [{"role": "user", "content": "U"}]
    before: str = tokenizer.apply_chat_template(asked, tokenize=False)
    opened: str = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    if not opened.startswith(before) or opened == before:
        raise ValueError("its chat template does not say where an assistant's turn begins (add_generation_prompt)")
    return opened.removeprefix(before)


def _generation(source: Path, tokenizer: Any) -> dict[str, Any]:
    """The checkpoint's own settings, with sampling from the whole distribution unless a request says otherwise."""
    own = _json(source / GENERATION) if (source / GENERATION).is_file() else {}
    ends = own.get("eos_token_id", tokenizer.eos_token_id)
    kept = {*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id}
    rows = _json(source / "config.json").get("vocab_size", 0)  # of which some may stand for no token
    never = sorted((set(tokenizer.all_special_ids) | set(range(len(tokenizer), rows))) - kept)
    sampling = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "suppress_tokens": never}
    return {key: value for key, value in own.items() if key != "_from_model_config"} | sampling


def _tokenizer(source: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{source}: no usable tokenizer ({_first(error)})") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: damaged ({error}); make the checkpoint again") from error
    return value


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
