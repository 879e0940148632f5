"""The recipe's section as TRL's arguments, and the log: finite, whole, and without what a killed run wrote after."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from peft import get_peft_model
from transformers import AutoModelForCausalLM, GraniteMoeConfig, OlmoeConfig, TrainerControl

from lrc.errors import NumericsError
from lrc.sft.fine_tune import (
    TRAINER_STATE,
    _Log,
    frozen_by_lora,
    lora_config,
    mean_loss,
    newest_checkpoint,
    trainer_settings,
)
from lrc.sft_config import SftConfig

CPU = torch.device("cpu")
EXPERTS = ("experts.down_proj", "experts.gate_up_proj", "router.weight")


def settings(folder: Path, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    return trainer_settings(SftConfig(**changes), folder, device=CPU, dtype=dtype)


def test_the_defaults_are_the_published_settings(tmp_path: Path) -> None:
    made = settings(tmp_path)
    assert (made.num_train_epochs, made.learning_rate, made.lr_scheduler_type) == (1, 1e-5, "linear")
    assert (made.max_length, made.per_device_train_batch_size, made.gradient_accumulation_steps) == (2048, 6, 4)
    assert made.get_warmup_steps(1000) == 100
    assert (made.weight_decay, made.max_grad_norm, made.packing, made.bf16) == (0.0, 1.0, False, False)
    assert made.report_to == []


def test_what_the_recipe_says_arrives(tmp_path: Path) -> None:
    made = settings(tmp_path, max_steps=7, schedule="constant", activation_checkpointing=True, packing=True)
    assert (made.max_steps, made.lr_scheduler_type, made.packing) == (7, "constant_with_warmup", True)
    assert made.gradient_checkpointing is True
    assert settings(tmp_path).gradient_checkpointing is False


def test_no_balancing_loss_of_experts_is_added(tmp_path: Path) -> None:
    assert settings(tmp_path).router_aux_loss_coef == 0.0  # None would take the coefficient of the student's config


@pytest.fixture
def five_gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let torch count five GPUs; what accelerate has made of the process is forgotten afterwards."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 5)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("five_gpus")
def test_one_process_trains_on_one_gpu_however_many_it_sees(tmp_path: Path) -> None:
    made = trainer_settings(SftConfig(), tmp_path, device=torch.device("cuda"), dtype=torch.float32)
    assert (made.n_gpu, made.train_batch_size) == (1, 6)
    assert settings(tmp_path).n_gpu == 0  # on a CPU, whose arguments count no GPU


def test_lora_is_off_by_default_and_leaves_the_head_out() -> None:
    assert lora_config(SftConfig()) is None
    made = lora_config(SftConfig(lora_rank=4, lora_alpha=8, lora_dropout=0.1))
    assert (made.r, made.lora_alpha, made.lora_dropout, made.target_modules) == (4, 8, 0.1, "all-linear")


@pytest.mark.filterwarnings("ignore")  # what peft warns of: families of experts, names of other versions
@pytest.mark.parametrize(
    ("config", "frozen"),
    [
        (OlmoeConfig, []),
        (GraniteMoeConfig, [f"model.layers.N.block_sparse_moe.{name}" for name in EXPERTS]),
    ],
)
def test_what_lora_does_not_reach_is_told(config: Any, frozen: list[str]) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 2, "vocab_size": 12, "pad_token_id": None}
    experts = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "bos_token_id": None, "eos_token_id": None}
    model = AutoModelForCausalLM.from_config(config(**sizes, **experts, **heads))
    assert frozen_by_lora(get_peft_model(model, lora_config(SftConfig(lora_rank=2)))) == frozen


def test_the_mean_loss_counts_each_step_once() -> None:
    history = [{"loss": 4.0, "step": 2}, {"eval_loss": 9.0, "step": 2}, {"loss": 1.0, "step": 8}, {"train_loss": 0.0}]
    assert mean_loss(history) == (2 * 4.0 + 6 * 1.0) / 8


def test_a_run_goes_on_from_the_newest_checkpoint_that_was_saved_to_its_end(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    states = {8: '{"global_step": 8}', 10: '{"global_step": 10}', 12: '{"global_st', 14: "", 16: None}
    for step, state in states.items():
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"weights")
        if state is not None:
            (folder / TRAINER_STATE).write_text(state)
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-10"


def log_line(log: _Log, step: int, loss: float) -> None:
    state: Any = SimpleNamespace(global_step=step, is_world_process_zero=True)
    log.on_log(None, state, TrainerControl(), logs={"loss": loss, "kl_loss": 0.5, "epoch": 1.0})  # type: ignore[arg-type]


def test_the_log_is_ours_and_a_resumed_run_drops_what_came_after(tmp_path: Path) -> None:
    log = _Log(tmp_path / "metrics.jsonl", lambda done, total: None)
    for step in (2, 4, 6):
        log_line(log, step, 1.0)
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"kind": "sft", "st')
    state: Any = SimpleNamespace(global_step=4, is_world_process_zero=True)
    log.on_train_begin(None, state, TrainerControl())  # type: ignore[arg-type]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"kind": "sft", "step": step, "loss": 1.0, "kl_loss": 0.5} for step in (2, 4)]


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, loss: float) -> None:
    with pytest.raises(NumericsError, match="The loss at step 3 is"):
        log_line(_Log(tmp_path / "metrics.jsonl", lambda done, total: None), 3, loss)


def test_the_last_step_is_logged_whatever_its_number(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    log = _Log(tmp_path / "metrics.jsonl", lambda *done: seen.append(done))
    for step in (6, 7):
        control = TrainerControl()
        state: Any = SimpleNamespace(global_step=step, max_steps=7, is_world_process_zero=True)
        log.on_step_end(None, state, control)  # type: ignore[arg-type]
        assert control.should_log is (step == 7)
    assert seen == [(6, 7), (7, 7)]


def test_the_step_of_a_checkpoint_is_logged_so_that_a_resumed_run_knows_all_losses(tmp_path: Path) -> None:
    log = _Log(tmp_path / "metrics.jsonl", lambda *done: None)
    state: Any = SimpleNamespace(global_step=4, max_steps=7, is_world_process_zero=True)
    for is_saved in (True, False):
        control = TrainerControl(should_save=is_saved)
        log.on_step_end(None, state, control)  # type: ignore[arg-type]
        assert control.should_log is is_saved
