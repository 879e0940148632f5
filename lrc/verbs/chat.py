"""The verb `lrc chat`: a terminal chat with a finished student, or any other causal LM in a folder or on the hub.

Stock transformers only. stdout holds what the model writes (and the input mark), stderr what `lrc` has to say.
"""

import importlib
import importlib.util
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from torch import Tensor
from transformers import TextStreamer

from lrc.errors import ConfigError, DataError
from lrc.evaluation.generation import write_tokens
from lrc.models.checkpoint import LRC_CONFIG
from lrc.models.compute import choose_device, choose_dtype
from lrc.models.folder import resolve_folder
from lrc.models.teacher import load_config, load_model, load_tokenizer
from lrc.verbs.chat_columns import STREAMED, side_by_side
from lrc.verbs.exit_code import INTERRUPTED
from lrc.verbs.progress import say
from lrc.verbs.sources import locate_teacher

INPUT_MARK = "> "
QUIT = "/quit"
RESET = "/reset"
ROLES = ("student", "teacher")


@dataclass(kw_only=True)
class _Chat:
    name: str
    """What the user called the model."""
    model: Any
    tokenizer: Any
    max_new_tokens: int
    temperature: float
    system: str | None
    turns: list[tuple[str, str]] = field(default_factory=list)
    """Questions and answers so far, the oldest first."""


def chat(
    model: Path | str,
    *,
    teacher: str | None = None,
    prompt: str | None = None,
    max_new_tokens: int = 200,
    temperature: float = 0.0,
    system: str | None = None,
) -> int:
    """Talk to a model: its answers are streamed, the history goes along, the tokenizer's chat template is used.

    A tokenizer without a template makes it plain continuation: the model goes on with the text written so far.
    With a teacher both answer each question, in two columns on a wide terminal, else one after the other; each goes
    on from its own answers. `/reset` forgets the history; `/quit`, the end of the input and Ctrl-C end the chat.

    Args:
        model: Folder or hub id, or `embedded:...` for the demo's teacher.
        teacher: Another such model to answer beside it.
        prompt: Answer this alone, then return; None reads questions from stdin.
        max_new_tokens: Longest answer.
        temperature: 0 takes the likeliest token each time, above 0 samples from softmax(logits / temperature).
        system: System message of the chat template.

    Returns:
        Exit code: 0, or 1 if Ctrl-C cut the answer to `prompt` short.

    Raises:
        ConfigError: The model is none, or a setting does not suit it.
        CheckpointError: Its weights can't be read.
        DataError: `prompt` does not fit into the model's context.
    """
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ConfigError(f"The temperature must be a finite number of at least 0, found {temperature}.")
    if max_new_tokens < 1:
        raise ConfigError(f"max_new_tokens must be at least 1, found {max_new_tokens}.")
    sources = [str(model), *([teacher] if teacher is not None else [])]
    for source in sources:
        _check_source(source, max_new_tokens=max_new_tokens, system=system)
    states = [
        _open_chat(source, max_new_tokens=max_new_tokens, temperature=temperature, system=system) for source in sources
    ]
    try:
        if prompt is not None:
            _answer_all(states, prompt)
        else:
            _converse(states)
    except KeyboardInterrupt:
        print(flush=True)
        return 0 if prompt is None else INTERRUPTED
    return 0


def _check_source(source: str, *, max_new_tokens: int, system: str | None) -> None:
    """Refuse what can't work before any weights are loaded."""
    if (Path(source) / LRC_CONFIG).is_file() and not (Path(source) / "config.json").is_file():
        raise ConfigError(f"{source} is a training checkpoint, not a model. Make one: lrc convert {source} OUT.")
    folder = resolve_folder(locate_teacher(source))
    window = _context_window(load_config(str(folder)))
    if window is not None and max_new_tokens >= window:
        raise ConfigError(
            f"max_new_tokens must be below the model's context of {window}, found {max_new_tokens}. Lower it."
        )
    tokenizer = load_tokenizer(folder)
    if tokenizer is None:
        raise ConfigError(f"{folder} must hold a tokenizer, but has none. Copy the teacher's there.")
    if system is not None and tokenizer.chat_template is None:
        raise ConfigError(f"A system message needs a chat template, and {source} has none. Leave it out.")


def _open_chat(source: str, *, max_new_tokens: int, temperature: float, system: str | None) -> _Chat:
    folder = resolve_folder(locate_teacher(source))
    device = choose_device("auto")
    return _Chat(
        name=source,
        model=load_model(str(folder), dtype=choose_dtype("auto", device), device=device),
        tokenizer=load_tokenizer(folder),
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        system=system,
    )


def _context_window(config: Any) -> int | None:
    window = getattr(config, "max_position_embeddings", None)
    return None if window is None else int(window)


def _converse(states: list[_Chat]) -> None:
    """Read questions from stdin and answer them until `/quit` or the end of the input."""
    if sys.stdin.isatty() and importlib.util.find_spec("readline"):
        importlib.import_module("readline")  # from then on input() edits lines and recalls earlier ones
    for role, state in zip(ROLES, states, strict=False):
        parameters = sum(parameter.numel() for parameter in state.model.parameters()) / 1e6
        manner = "continues plain text" if state.tokenizer.chat_template is None else "chats"
        who = f"{role}: {state.name}" if len(states) > 1 else state.name
        say(f"{who} ({parameters:.1f} M parameters) {manner}.")
    say(f"{RESET} forgets, {QUIT} ends.")
    while True:
        try:
            question = input(INPUT_MARK).strip()
        except EOFError:
            print(flush=True)
            return
        if question == QUIT:
            return
        if question == RESET:
            for state in states:
                state.turns.clear()
            say("Forgotten.")
        elif question:
            try:
                _answer_all(states, question)
            except DataError as error:  # one question too long; the next may fit
                say(str(error))


def _answer_all(states: list[_Chat], question: str) -> None:
    """Stream every model's answer to stdout.

    Raises:
        DataError: The question is too long for one of them; none answers.
    """
    inputs = [_encode_within_window(state, question) for state in states]
    if len(states) == 1:
        _answer(states[0], question, inputs[0], TextStreamer(states[0].tokenizer, **STREAMED))
        return
    with side_by_side([state.tokenizer for state in states], ROLES) as streamers:
        for state, encoded, streamer in zip(states, inputs, streamers, strict=True):
            _answer(state, question, encoded, streamer)


def _answer(state: _Chat, question: str, inputs: dict[str, Tensor], streamer: TextStreamer) -> None:
    """Stream the answer and add the turn to the history."""
    padding = state.tokenizer.pad_token_id
    output = write_tokens(
        state.model,
        inputs,
        max_new_tokens=state.max_new_tokens,
        pad_token_id=state.tokenizer.eos_token_id if padding is None else padding,
        temperature=state.temperature,
        streamer=streamer,
    )
    state.turns.append((question, _decode_answer(state, inputs["input_ids"][0], output[0])))


def _decode_answer(state: _Chat, asked: Tensor, output: Tensor) -> str:
    if state.tokenizer.chat_template is not None:
        answer: str = state.tokenizer.decode(output[len(asked) :], skip_special_tokens=True)
        return answer
    # some tokenizers drop the space before the first of the ids, which plain continuation needs
    before, whole = (state.tokenizer.decode(ids, skip_special_tokens=True) for ids in (asked, output))
    return str(whole[len(before) :])


def _encode_within_window(state: _Chat, question: str) -> dict[str, Tensor]:
    """Encode history and question; turns are dropped, the oldest first, until an answer fits behind them.

    Raises:
        DataError: The question alone is too long.
    """
    window = _context_window(state.model.config)
    while True:
        inputs = _encode(state, question)
        length = inputs["input_ids"].shape[1]
        if window is None or length + state.max_new_tokens <= window:
            return inputs
        if not state.turns:
            raise DataError(
                f"Question and answer must fit into the model's context of {window} tokens, but they take {length} and "
                f"up to {state.max_new_tokens}. Shorten the question or lower max_new_tokens."
            )
        state.turns.pop(0)
        say("The oldest question and answer no longer fit into the model's context and are dropped.")


def _encode(state: _Chat, question: str) -> dict[str, Tensor]:
    if state.tokenizer.chat_template is None:
        text = "\n".join([*(asked + answered for asked, answered in state.turns), question])
        encoded = state.tokenizer(text, return_tensors="pt")
    else:
        messages = [] if state.system is None else [{"role": "system", "content": state.system}]
        for asked, answered in state.turns:
            messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
        messages.append({"role": "user", "content": question})
        try:
            encoded = state.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
            )
        except TemplateError as error:  # some templates refuse system messages
            raise ConfigError(f"The model's chat template refuses this chat: {error}.") from error
    return {name: encoded[name].to(state.model.device) for name in ("input_ids", "attention_mask")}
