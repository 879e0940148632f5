"""`lrc plan` lists what discovery found and ends with "supported", or says the true reason why not."""

from pathlib import Path

import pytest
from transformers import BloomConfig, GPT2Config, MambaConfig

from lrc.cli import main
from lrc.errors import ConfigError
from lrc.verbs.plan import plan
from tests.models.composite_configs import COMPOSITES, save_with_own_head
from tests.models.family_configs import FAMILY_CONFIGS


def planned(folder: Path, family: str, hidden_size: int = 16) -> list[str]:
    FAMILY_CONFIGS[family]().save_pretrained(folder)
    return plan(str(folder), hidden_size=hidden_size)


def test_a_plain_family_lists_readers_writers_gains_and_nothing_odd(tmp_path: Path) -> None:
    lines = planned(tmp_path, "mistral")
    assert "readers    model.layers.*.self_attn.q_proj.weight x 3" in lines
    assert "writers    model.layers.*.mlp.down_proj.weight x 3" in lines
    assert "gains      model.norm.weight" in lines
    assert "inherited  none" in lines
    assert "odd        nothing" in lines
    assert any(line.startswith("size       hidden size 16 is no multiple of 32: no GGUF block") for line in lines)
    assert lines[-1].startswith("supported: mistral")


@pytest.mark.parametrize(
    ("family", "odd"),
    [
        ("gemma2", "embedding rows are multiplied by 5.65685, which grows with the root of the hidden size"),
        ("gemma2", "logits are capped at 3"),
        ("gemma3_text", "norm gains are stored as 1 + w"),
        ("granite", "embedding rows are multiplied by 3"),
        ("granite", "logits are multiplied by 0.5"),
        ("granite", "what a block writes is multiplied before it joins the stream"),
        ("cohere", "two stages read the stream side by side"),
        ("olmo2", "readers get the stream without a norm"),
        ("starcoder2", "norms have a bias"),
        ("starcoder2", "writers have biases"),
        ("deepseek_v3", "2 kinds of layers"),
        ("gpt_oss", "experts are stacked"),
    ],
)
def test_what_is_odd_about_a_family_is_said(tmp_path: Path, family: str, odd: str) -> None:
    assert any(line.startswith(f"odd        {odd}") for line in planned(tmp_path, family))


def test_parameters_are_those_of_the_stock_models(tmp_path: Path) -> None:
    # 3 layers of (4 + 4) heads x 6 x width for q and o, 2 x 2 x 6 x width for k and v, 3 x 56 x width, and norms
    counts = {width: 3 * (24 * width * 2 + 12 * width * 2 + 168 * width + 2 * width) + width for width in (16, 32)}
    lines = planned(tmp_path, "mistral")
    teacher, student = counts[32] + 2 * 48 * 32, counts[16] + 2 * 48 * 16
    assert f"student    hidden size 16, {student:,} parameters (teacher {teacher:,})" in lines


def test_the_command_prints_the_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    FAMILY_CONFIGS["qwen3"]().save_pretrained(tmp_path)
    assert main(["plan", str(tmp_path), "--hidden-size", "16"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("supported: qwen3")


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (GPT2Config(n_layer=1, n_head=4, n_embd=32, vocab_size=48, bos_token_id=0, eos_token_id=0), "both axes of"),
        (BloomConfig(hidden_size=32, n_head=4, n_layer=1, vocab_size=48), "both axes of"),
    ],
    ids=["gpt2", "bloom"],
)
def test_an_unsupported_teacher_ends_with_the_reason_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], config: GPT2Config | BloomConfig, reason: str
) -> None:
    config.save_pretrained(tmp_path)
    assert main(["plan", str(tmp_path), "--hidden-size", "16"]) == 2
    said = capsys.readouterr()
    assert f"{config.model_type} can't be cloned: " in said.err
    assert reason in said.err
    assert "supported" not in said.out


def test_a_width_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="below the teacher's 32, found 64"):
        planned(tmp_path, "llama", hidden_size=64)


def test_a_model_without_attention_is_planned_too(tmp_path: Path) -> None:
    MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=48, state_size=4).save_pretrained(tmp_path)
    lines = plan(str(tmp_path), hidden_size=16)
    assert "readers    backbone.layers.*.mixer.in_proj.weight x 2" in lines
    assert "inherited  backbone.layers.*.mixer.A_log x 2" in lines
    assert lines[-1].startswith("supported: mamba")


@pytest.mark.parametrize(("name", "tower"), [("llava", "llama"), ("qwen3_vl", "qwen3"), ("qwen3_5", "qwen3_5_text")])
def test_of_a_composite_the_text_tower_is_planned(tmp_path: Path, name: str, tower: str) -> None:
    COMPOSITES[name][0]().save_pretrained(tmp_path)
    lines = plan(str(tmp_path), hidden_size=16)
    assert lines[0].endswith(f": {tower}, hidden size 32, 2 layers, untied head")
    assert f"odd        the text tower of a {name}; the student is what the teacher is on text alone" in lines
    assert lines[-1].startswith("supported")


TYING = "odd        the head is tied, as the config says; a head in the weights, unseen here, would untie it"


def test_of_a_composite_whose_weights_are_not_there_it_is_said_who_says_that_the_head_is_tied(tmp_path: Path) -> None:
    COMPOSITES["mistral3"][0]().save_pretrained(tmp_path)
    lines = plan(str(tmp_path), hidden_size=16)
    assert lines[0].endswith(", tied head")
    assert TYING in lines


def test_a_composite_s_head_is_looked_for_in_its_files(tmp_path: Path) -> None:
    save_with_own_head(tmp_path)
    lines = plan(str(tmp_path), hidden_size=16)
    assert lines[0].endswith(", untied head")
    assert TYING not in lines
