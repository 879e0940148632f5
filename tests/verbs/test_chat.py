"""`lrc chat` answers once or holds a conversation, and ends cleanly."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lrc.errors import CheckpointError, ConfigError, DataError
from lrc.verbs import chat as chat_module
from lrc.verbs.chat import chat

WORDS = ["<unk>", "<s>", "</s>", "user", "assistant", "system", "what", "is", "red", "blue", "green", "be", "kind"]
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ' ' + message['content'] + ' </s> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant' }}{% endif %}"
)
WINDOW = 256


def write_model(folder: Path, *, template: str | None) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        head_dim=8,
        max_position_embeddings=WINDOW,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=template
    )
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def plain_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("plain"), template=None)


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("chat"), template=TEMPLATE)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Collect what `generate` is called with; the prompt's ids stand as text under `text`."""
    calls: list[dict[str, Any]] = []
    generate: Callable[..., Any] = LlamaForCausalLM.generate

    def record(self: LlamaForCausalLM, **arguments: Any) -> Any:
        text = " ".join(WORDS[index] for index in arguments["input_ids"][0])
        calls.append({**arguments, "text": text})
        return generate(self, **arguments)

    monkeypatch.setattr(LlamaForCausalLM, "generate", record)
    monkeypatch.setattr(chat_module, "choose_dtype", lambda wanted, device: torch.float32)
    return calls


def type_lines(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


def test_prompt_is_answered_once_as_plain_transformers_would(
    plain_model: Path, seen: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert chat(plain_model, prompt="what is", max_new_tokens=6) == 0
    printed = capsys.readouterr().out
    assert [call["text"] for call in seen] == ["<s> what is"]
    tokenizer = AutoTokenizer.from_pretrained(plain_model)
    ids = tokenizer("what is", return_tensors="pt")["input_ids"]
    model: Any = AutoModelForCausalLM.from_pretrained(plain_model, dtype=torch.float32)
    greedy = model.generate(input_ids=ids, max_new_tokens=6, do_sample=False, pad_token_id=2)
    answer = tokenizer.decode(greedy[0, 3:], skip_special_tokens=True)
    assert printed == f"{answer}\n"


def test_generation_settings_of_the_folder_leave_the_answer_as_it_is(
    plain_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chat(plain_model, prompt="what is", max_new_tokens=6)
    answer = capsys.readouterr().out
    folder = write_model(tmp_path, template=None)
    suppressed = [0, 1, 2, *sorted({WORDS.index(word) for word in answer.split()})]
    settings = {"bos_token_id": 1, "eos_token_id": 2, "suppress_tokens": suppressed, "repetition_penalty": 5.0}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    chat(folder, prompt="what is", max_new_tokens=6)
    assert capsys.readouterr().out == answer


def test_model_may_be_named_by_a_string(plain_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert chat(str(plain_model), prompt="red", max_new_tokens=1) == 0
    assert capsys.readouterr().out.endswith("\n")


def test_chat_template_and_system_message_are_used(chat_model: Path, seen: list[dict[str, Any]]) -> None:
    chat(chat_model, prompt="red", max_new_tokens=2, system="be kind")
    assert seen[0]["text"] == "system be kind </s> user red </s> assistant"


def test_history_goes_along_until_reset(
    chat_model: Path,
    seen: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    type_lines(monkeypatch, "red", "", "blue", "/reset", "green", "/quit", "never read")
    assert chat(chat_model, max_new_tokens=2) == 0
    answers = [line.removeprefix("> ") for line in capsys.readouterr().out.replace("> > ", "> ").splitlines()]
    first = " ".join(f"user red </s> assistant {answers[0]} </s>".split())
    assert [call["text"] for call in seen] == [
        "user red </s> assistant",
        f"{first} user blue </s> assistant",
        "user green </s> assistant",
    ]


def test_plain_continuation_goes_on_with_the_text_so_far(
    plain_model: Path,
    seen: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    type_lines(monkeypatch, "red", "blue")
    chat(plain_model, max_new_tokens=3)
    answer = capsys.readouterr().out.splitlines()[0].removeprefix("> ")
    assert [call["text"] for call in seen] == ["<s> red", " ".join(f"<s> red {answer} blue".split())]


def test_end_of_input_ends_it(
    plain_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    type_lines(monkeypatch)
    assert chat(plain_model) == 0
    printed = capsys.readouterr()
    assert printed.out == "> \n"
    assert "/reset forgets, /quit ends" in printed.err


def test_ctrl_c_at_the_input_ends_it(plain_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", interrupt)
    assert chat(plain_model) == 0


@pytest.mark.parametrize(("prompt", "code"), [(None, 0), ("red", 130)])
def test_ctrl_c_in_an_answer_ends_it(
    plain_model: Path, monkeypatch: pytest.MonkeyPatch, prompt: str | None, code: int
) -> None:
    def interrupt(self: LlamaForCausalLM, **arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(LlamaForCausalLM, "generate", interrupt)
    type_lines(monkeypatch, "red", "blue")
    assert chat(plain_model, prompt=prompt) == code


def test_temperature_above_zero_samples(plain_model: Path, seen: list[dict[str, Any]]) -> None:
    chat(plain_model, prompt="red", max_new_tokens=1, temperature=0.7)
    chat(plain_model, prompt="red", max_new_tokens=1)
    assert [(call["do_sample"], call["temperature"]) for call in seen] == [(True, 0.7), (False, None)]


def test_oldest_turns_are_dropped_when_the_context_is_full(
    plain_model: Path,
    seen: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    type_lines(monkeypatch, "red " * 90, "blue " * 90, "green " * 90)
    chat(plain_model, max_new_tokens=8)
    assert "dropped" in capsys.readouterr().err
    assert all(call["input_ids"].shape[1] + 8 <= WINDOW for call in seen)
    assert seen[1]["text"].startswith("<s> red")
    assert seen[2]["text"].startswith("<s> blue")
    assert seen[2]["text"].endswith(" green")


def test_question_longer_than_the_context_is_refused_and_the_chat_goes_on(
    plain_model: Path,
    seen: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(DataError, match=r"context of 256 tokens, but they take 301 and up to 8"):
        chat(plain_model, prompt="red " * 300, max_new_tokens=8)
    type_lines(monkeypatch, "red " * 300, "blue")
    assert chat(plain_model, max_new_tokens=8) == 0
    assert "context of 256 tokens" in capsys.readouterr().err
    assert [call["text"] for call in seen] == ["<s> blue"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.1}, "temperature must be"),
        ({"temperature": float("nan")}, "temperature must be"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"max_new_tokens": WINDOW}, "below the model's context of 256"),
        ({"system": "be kind"}, "needs a chat template"),
    ],
)
def test_setting_that_can_not_work_is_refused(plain_model: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        chat(plain_model, prompt="red", **settings)


def test_template_that_refuses_system_messages_is_explained(tmp_path: Path) -> None:
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TEMPLATE
    model = write_model(tmp_path, template=refusing)
    with pytest.raises(ConfigError, match="refuses this chat: no system role"):
        chat(model, prompt="red", system="be kind", max_new_tokens=1)


def test_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must hold a config\.json"):
        chat(tmp_path, prompt="red")
    with pytest.raises(ConfigError, match="is neither"):
        chat(tmp_path / "missing", prompt="red")


def test_training_checkpoint_is_sent_to_convert(tmp_path: Path) -> None:
    (tmp_path / "lrc_config.json").write_text("{}\n")
    with pytest.raises(ConfigError, match=r"is a training checkpoint.*lrc convert"):
        chat(tmp_path, prompt="red")


def test_model_without_weights_or_tokenizer_is_refused(tmp_path: Path, plain_model: Path) -> None:
    (tmp_path / "config.json").write_bytes((plain_model / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match=r"must hold model\.safetensors"):
        chat(tmp_path, prompt="red")
    (tmp_path / "model.safetensors").write_bytes((plain_model / "model.safetensors").read_bytes())
    with pytest.raises(ConfigError, match="must hold a tokenizer"):
        chat(tmp_path, prompt="red")


def test_damaged_weights_are_explained(tmp_path: Path, plain_model: Path) -> None:
    for path in plain_model.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(CheckpointError, match=r"The model .* can't be loaded"):
        chat(tmp_path, prompt="red")


def test_a_teacher_answers_beside_each_with_its_own_history(
    plain_model: Path,
    chat_model: Path,
    seen: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    type_lines(monkeypatch, "red", "blue", "/reset", "green")
    assert chat(plain_model, teacher=str(chat_model), max_new_tokens=2) == 0
    captured = capsys.readouterr()
    asked = [call["text"] for call in seen]
    assert len(asked) == 6
    assert asked[:2] == ["<s> red", "user red </s> assistant"]
    assert asked[2].startswith("<s> red ")
    assert asked[2].endswith(" blue")
    assert asked[3].startswith("user red </s> assistant ")
    assert asked[3].endswith(" </s> user blue </s> assistant")
    assert asked[4:] == ["<s> green", "user green </s> assistant"]
    titles = [line.split()[-1] for line in captured.out.splitlines() if line.endswith(":")]
    assert titles == ["student:", "teacher:"] * 3
    assert f"student: {plain_model} (" in captured.err
    assert f"teacher: {chat_model} (" in captured.err


def test_one_prompt_is_answered_by_both(
    plain_model: Path, chat_model: Path, seen: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert chat(plain_model, teacher=str(chat_model), prompt="red", max_new_tokens=3) == 0
    alone = []
    lines = capsys.readouterr().out.splitlines()
    for model in (plain_model, chat_model):
        chat(model, prompt="red", max_new_tokens=3)
        alone.append(capsys.readouterr().out.rstrip("\n"))
    assert lines == ["student:", alone[0], "teacher:", alone[1]]


def test_a_teacher_that_can_not_chat_is_refused_before_the_student_is_loaded(
    plain_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_module, "load_model", lambda *args, **options: pytest.fail("a model is loaded"))
    with pytest.raises(ConfigError, match="is neither"):
        chat(plain_model, teacher=str(tmp_path / "missing"), prompt="red")


def test_a_question_too_long_for_one_is_answered_by_none(
    plain_model: Path, chat_model: Path, seen: list[dict[str, Any]]
) -> None:
    with pytest.raises(DataError, match="context of 256 tokens"):
        chat(plain_model, teacher=str(chat_model), prompt="red " * 246, max_new_tokens=8)
    assert seen == []
