"""The published training command: every flag's meaning in the recipe, and every refusal."""

import os
import shlex
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lrc.config import ObjectiveConfig, Recipe, load_recipe
from lrc.errors import ConfigError
from lrc.verbs.published_launch import Launch
from lrc.verbs.published_train import Translation, main, translate
from lrc.verbs.published_train_flags import TERM_OF_LOSS, TrainFlags

ROOT = Path(__file__).parents[2]
PUBLISHED = (
    "accelerate launch --main_process_port 12231 --config_file configs/accel_ds_8h800_gas1.yaml hf_trainer.py "
    "--log_steps 100 --max_grad_norm 1.0 --learning-rate 1e-4 --gradient_accumulation_steps 1 --max_steps 208000 "
    "--dataset_name ../datasets/mix_general_llama3_tokenized_v5.1/train.jsonl --batch-size 3 --data-max-len 2048 "
    "--save_steps 20000 --check_data_cls_loss False --target_hidden_size 1536 --kl_temperature 40 "
    "--warmup-ratio 0.005 --raw-model-name TEACHER --extra_tags general_train,8h800,arch,try_sota,all_ffn,all_attn "
    "--use_accelerate True --output_dir ../ckpts --str_ban_losses no --tie_word_emb_proj 1 --use_all_attn 1 "
    "--aux_loss_scale_factor 0.2"
)
PUBLISHED_FLAGS = shlex.split(PUBLISHED.partition("hf_trainer.py ")[2])
REQUIRED = ["--raw-model-name", "TEACHER", "--dataset-name", "train.jsonl", "--max-steps", "10"]
LEAST = [*REQUIRED, "--kl-temperature", "40"]
NOON = Launch(time="2026-11-24_12-00-00")


def translate_least(*flags: str, launch: Launch = NOON) -> Translation:
    return translate([*LEAST, *flags], launch)


def recipe_of(*flags: str) -> Recipe:
    return translate_least(*flags).recipe


def message_of(*flags: str, launch: Launch = NOON) -> str:
    with pytest.raises(ConfigError) as caught:
        translate_least(*flags, launch=launch)
    return str(caught.value)


def test_the_published_command_word_for_word_gives_the_published_objective() -> None:
    translation = translate(PUBLISHED_FLAGS, NOON)
    recipe = translation.recipe
    assert recipe.teacher == "TEACHER"
    assert recipe.run == "../ckpts/general_train-8h800-arch-try_sota-all_ffn-all_attn/2026-11-24_12-00-00"
    assert recipe.student.hidden_size == 1536
    assert recipe.student.attention_projections == "all"
    assert recipe.student.ffn_projections == "all"
    assert recipe.student.tie_embedding_projection is True
    assert recipe.start.method == "random"
    assert recipe.objective == ObjectiveConfig(
        temperature=40.0,
        kl_reduction="published",
        lm_weight=1.0,
        kl_weight=1.0,
        clone_weight=0.2,
        clone_error="raw",
        clone_reduction="sum",
        attention_output_space="teacher",
        without=(),
    )
    assert recipe.data.train == "../datasets/mix_general_llama3_tokenized_v5.1/train.jsonl"
    assert recipe.data.sequence_length == 2048
    train = recipe.train
    assert (train.max_steps, train.batch_size, train.gradient_accumulation_steps) == (208000, 3, 1)
    assert (train.learning_rate, train.schedule, train.warmup_ratio) == (1e-4, "linear", 0.005)
    assert (train.beta1, train.beta2, train.weight_decay, train.max_grad_norm) == (0.9, 0.999, 0.0, 1.0)
    assert (train.log_steps, train.save_steps, train.log_data_classes) == (100, 20000, False)
    assert train.tags == ("general_train", "8h800", "arch", "try_sota", "all_ffn", "all_attn")
    assert translation.resume is None
    assert translation.notes == ()


def test_the_recipe_published_1_5b_is_what_the_published_command_means() -> None:
    recipe = load_recipe(ROOT / "configs" / "recipes" / "published_1.5b.yaml")
    command = translate(PUBLISHED_FLAGS, Launch(time="now", has_cuda=True)).recipe
    assert replace(command, run=recipe.run, teacher=recipe.teacher) == recipe


def test_the_temperature_defaults_to_the_published_one_with_a_note_where_it_is_used() -> None:
    translation = translate(REQUIRED, NOON)
    assert translation.recipe.objective.temperature == 40.0
    assert len(translation.notes) == 1
    assert translation.notes[0].startswith("--kl-temperature is not given, so it is 40,")
    assert translate([*REQUIRED, "--use_logits_loss", "0"], NOON).notes == ()


@pytest.mark.parametrize("turn", [lambda name: name.replace("_", "-"), lambda name: name.replace("-", "_")])
def test_dashes_and_underscores_are_the_same(turn: Any) -> None:
    turned = ["--" + turn(word[2:]) if word.startswith("--") else word for word in PUBLISHED_FLAGS]
    assert translate(turned, NOON) == translate(PUBLISHED_FLAGS, NOON)


def test_an_unknown_flag_gives_the_nearest_name() -> None:
    message = message_of("--traget_hidden_size", "16")
    assert "did you mean --target-hidden-size?" in message


def test_one_flag_in_two_spellings_must_not_contradict_itself() -> None:
    assert "--use-all-attn" in message_of("--use_all_attn", "1", "--use-all-attn", "0")


def test_required_flags_are_all_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        translate([], NOON)
    for name in ("--raw-model-name", "--dataset-name", "--max-steps"):
        assert name in str(caught.value)


def test_the_io_variants_are_the_defaults_that_the_original_has() -> None:
    student = recipe_of().student
    assert (student.attention_projections, student.ffn_projections) == ("io", "all")
    assert recipe_of("--use_in_out_mlp", "1").student.ffn_projections == "io"


def test_every_loss_can_be_banned_in_its_variant() -> None:
    for name, term in TERM_OF_LOSS.items():
        all_attn = "0" if name == "attn-in-sim-loss" else "1"
        io_mlp = "1" if name == "mlp-in-loss" else "0"
        translation = translate_least("--str_ban_losses", name, "--use_all_attn", all_attn, "--use_in_out_mlp", io_mlp)
        assert translation.recipe.objective.without == (term,)
        assert translation.notes == ()


def test_several_losses_can_be_banned() -> None:
    objective = recipe_of("--use_all_attn", "1", "--str_ban_losses", "mlp-gate-loss,attn-q-sim-loss").objective
    assert objective.without == ("mlp-gate", "attn-q")


def test_banning_a_loss_that_the_variant_lacks_is_noted() -> None:
    translation = translate_least("--use_all_attn", "1", "--str_ban_losses", "attn-in-sim-loss,mlp-up-loss")
    assert translation.recipe.objective.without == ("mlp-up",)
    assert len(translation.notes) == 1
    assert "attn-in-sim-loss" in translation.notes[0]


def test_an_unknown_loss_gives_the_nearest_name() -> None:
    assert "did you mean mlp-gate-loss?" in message_of("--str_ban_losses", "mlp-gates-loss")


def test_no_bans_and_a_ban_contradict_each_other() -> None:
    assert "--str-ban-losses" in message_of("--str_ban_losses", "no,mlp-up-loss")


def test_each_loss_can_be_switched_off_but_not_all() -> None:
    assert recipe_of("--use_aux_loss", "0").objective.clone_weight == 0.0
    assert recipe_of("--use_logits_loss", "0").objective.kl_weight == 0.0
    assert recipe_of("--use_ntp_loss", "0").objective.lm_weight == 0.0
    off = ["--use_aux_loss", "0", "--use_logits_loss", "0", "--use_ntp_loss", "0"]
    assert "can't all be False" in message_of(*off)


@pytest.mark.parametrize(
    ("name", "schedule", "warmup"),
    [
        ("linear", "linear", 0.1),
        ("cosine", "cosine", 0.1),
        ("constant", "constant", 0.0),
        ("constant_with_warmup", "constant", 0.1),
        ("warmup_stable_decay", "wsd", 0.1),
    ],
)
def test_schedules(name: str, schedule: str, warmup: float) -> None:
    train = recipe_of("--lr_scheduler", name, "--warmup-ratio", "0.1").train
    assert (train.schedule, train.warmup_ratio, train.decay_ratio) == (schedule, warmup, 0.1)


def test_an_unknown_schedule_gives_the_nearest_name() -> None:
    assert "did you mean cosine?" in message_of("--lr_scheduler", "cosin")


@pytest.mark.parametrize("model", ["origin", "only_kd", "tiny_bert"])
def test_the_baselines_are_methods_of_the_recipe(model: str) -> None:
    recipe = recipe_of("--model_cls", model)
    assert recipe == replace(recipe_of(), method=model)  # type: ignore[arg-type]


def test_an_unknown_model_gives_the_nearest_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*LEAST, "--model_cls", "only_dk"]) == 2
    assert "unknown --model-cls only_dk; did you mean only_kd?" in capsys.readouterr().err


def test_losses_of_lrc_can_t_be_left_out_of_a_baseline() -> None:
    flags = ("--model_cls", "tiny_bert", "--str_ban_losses", "mlp-out-loss")
    assert recipe_of(*flags) == recipe_of("--model_cls", "tiny_bert")
    assert "mlp-out-loss is not used" in translate_least(*flags).notes[0]


def test_the_lrc_model_may_be_named() -> None:
    assert recipe_of("--model_cls", "distill") == recipe_of()


@pytest.mark.parametrize(
    "flags",
    [
        ("--use_std_like_attn", "1"),
        ("--student_attn_from_scratch", "1"),
        ("--use_additional_align", "1"),
        ("--del_layers", "3,4"),
        ("--ban_layers", "0"),
        ("--tie_n", "2"),
        ("--aux_loss_type", "l1loss"),
        ("--load_model_weight_path", "model.safetensors"),
    ],
)
def test_what_the_method_lacks_is_refused_by_name(flags: tuple[str, str]) -> None:
    message = message_of(*flags)
    assert flags[0].replace("_", "-") in message
    assert "not supported" in message


def test_supported_values_of_those_flags_pass() -> None:
    off = ["--use_std_like_attn", "0", "--tie_n", "-1", "--aux_loss_type", "mseloss", "--del_layers", ""]
    assert translate_least(*off, "--load_model_weight_path", "None") == translate_least()


@pytest.mark.parametrize(
    "flags",
    [
        ("--num_epochs", "1"),
        ("--gpus", "8"),
        ("--project_name", "mine"),
        ("--target_rms_norm_eps", "1e-5"),
        ("--use_accelerate", "0"),
    ],
)
def test_what_only_the_original_needed_is_noted(flags: tuple[str, str]) -> None:
    translation = translate_least(*flags)
    assert translation.recipe == recipe_of()
    assert len(translation.notes) == 1
    assert flags[0].replace("_", "-") in translation.notes[0]


def test_values_out_of_range_are_refused_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        translate([*REQUIRED, "--kl_temperature", "0", "--batch_size", "0"], NOON)
    message = str(caught.value)
    assert "temperature" in message
    assert "batch_size" in message


def test_tags_must_be_fit_for_a_folder() -> None:
    assert "--extra-tags" in message_of("--extra_tags", "")
    assert "'a/b'" in message_of("--extra_tags", "a/b")


def test_trackers_are_named_by_report_to() -> None:
    assert recipe_of("--report_to", "wandb,tensorboard").train.trackers == ("wandb", "tensorboard")
    assert recipe_of("--report_to", "none").train.trackers == ()


def test_a_resumed_run_goes_on_in_its_own_folder() -> None:
    translation = translate_least("--resume_checkpoint", "out/tag/then/train/checkpoint-5")
    assert translation.recipe.run == "out/tag/then"
    assert translation.resume == "out/tag/then/train/checkpoint-5"
    assert len(translation.notes) == 1


def test_auto_goes_on_with_the_newest_run_of_the_tags_that_has_a_checkpoint(tmp_path: Path) -> None:
    for name in ("a/2026-11-22_09-00-00", "a/2026-11-23_08-00-00", "b/2026-11-24_08-00-00"):
        (tmp_path / name / "train" / "checkpoint-5").mkdir(parents=True)
        (tmp_path / name / "train" / "checkpoint-5" / "state.json").write_text("{}")
    (tmp_path / "a" / "2026-11-24_11-00-00" / "train").mkdir(parents=True)
    flags = ["--output_dir", str(tmp_path), "--resume_checkpoint", "auto", "--extra_tags"]
    translation = translate_least(*flags, "a")
    newest = f"{tmp_path}/a/2026-11-23_08-00-00"
    assert (translation.recipe.run, translation.resume) == (newest, "auto")
    assert translation.notes == (f"--resume-checkpoint auto goes on with the run {newest}.",)


def test_auto_without_a_checkpoint_says_that_it_begins_anew(tmp_path: Path) -> None:
    translation = translate_least("--output_dir", str(tmp_path), "--extra_tags", "a", "--resume_checkpoint", "auto")
    assert (translation.recipe.run, translation.resume) == (f"{tmp_path}/a/{NOON.time}", "auto")
    assert translation.notes == (f"--resume-checkpoint auto begins anew: no run in {tmp_path}/a has a checkpoint.",)


def test_resuming_needs_a_checkpoint_folder() -> None:
    assert "--resume-checkpoint" in message_of("--resume_checkpoint", "True")


def test_the_device_follows_the_launcher_and_the_dtype_what_is_fast_there() -> None:
    cpu = translate_least(launch=Launch(time="t", wants_cpu=True)).recipe.train
    assert (cpu.device, cpu.compute_dtype) == ("cpu", "auto")
    gpu = translate_least(launch=Launch(time="t", has_cuda=True)).recipe.train
    assert (gpu.device, gpu.compute_dtype) == ("auto", "auto")


def test_the_launchers_deepspeed_configuration_must_agree() -> None:
    launch = Launch(time="t", gradient_accumulation_steps=2, max_grad_norm=0.5)
    message = message_of("--gradient_accumulation_steps", "1", "--max_grad_norm", "1.0", launch=launch)
    assert "--gradient-accumulation-steps is 1, but the launcher's DeepSpeed configuration says 2" in message
    assert "--max-grad-norm is 1, but the launcher's DeepSpeed configuration says 0.5" in message


def test_every_flag_has_a_line_of_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    page = capsys.readouterr().out
    for entry in fields(TrainFlags):
        assert "--" + entry.name.replace("_", "-") in page


class FakeTrain(ModuleType):
    """Stands for `lrc.verbs.train`, which the command imports only when it calls it."""

    def __init__(self) -> None:
        super().__init__("lrc.verbs.train")
        self.calls: list[tuple[Recipe, dict[str, Any]]] = []

    def train(self, recipe: Recipe, **options: Any) -> Path:
        self.calls.append((recipe, options))
        return Path(recipe.run) / "train" / "checkpoint-10"


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")


def test_main_trains_and_says_where_the_checkpoint_lies(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = FakeTrain()
    monkeypatch.setitem(sys.modules, "lrc.verbs.train", fake)
    assert main([*LEAST, "--gpus", "8"]) == 0
    [(recipe, options)] = fake.calls
    assert options == {"resume": None, "dry_run": False}
    assert recipe.train.device == "cpu"
    captured = capsys.readouterr()
    assert f"checkpoint: {recipe.run}/train/checkpoint-10" in captured.out
    assert "convert_ckpt.py --ckpt-path" in captured.out
    assert captured.err.startswith("note: --gpus is not used")


def test_bad_flags_never_reach_training(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fake = FakeTrain()
    monkeypatch.setitem(sys.modules, "lrc.verbs.train", fake)
    assert main([*LEAST, "--kl_temprature", "4"]) == 2
    assert fake.calls == []
    assert capsys.readouterr().err.startswith("error: hf_trainer.py: unknown flag --kl-temprature")


def test_the_script_in_the_root_runs_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "hf_trainer.py", "--model_cls", "only_dk"],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "did you mean only_kd?" in done.stderr
