"""The published training flags: what each problem says, and tables that name only what is there."""

from dataclasses import fields
from typing import Any, get_args, get_type_hints

import pytest

from lrc.clone.sites import Variant, clone_terms
from lrc.config import TrainConfig
from lrc.models.discovery import discover
from lrc.verbs.published_launch import Launch
from lrc.verbs.published_train_flags import (
    SCHEDULE_OF_NAME,
    TERM_OF_LOSS,
    UNSUPPORTED,
    UNUSED,
    TrainFlags,
    find_problems,
    split_list,
)
from tests.models.tiny_configs import tiny_config

NOON = Launch(time="2026-11-24_12-00-00")
LEAST: dict[str, Any] = {"raw_model_name": "TEACHER", "dataset_name": "train.jsonl", "max_steps": 10}
LOSSES = (
    "attn-q-sim-loss, attn-k-sim-loss, attn-v-sim-loss, attn-in-sim-loss, attn-out-sim-loss, mlp-gate-loss, "
    "mlp-up-loss, mlp-in-loss, mlp-out-loss"
)
EPOCHS = "(for whole epochs: sequences / (batch size * accumulation steps * processes))"


def problems_of(launch: Launch = NOON, **changes: Any) -> list[str]:
    return find_problems(TrainFlags(**{**LEAST, **changes}), launch)


def test_the_least_flags_have_no_problem() -> None:
    assert problems_of() == []


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"raw_model_name": None}, "--raw-model-name (folder or hub id of the teacher) is required"),
        ({"raw_model_name": ""}, "--raw-model-name (folder or hub id of the teacher) is required"),
        ({"dataset_name": None}, "--dataset-name (tokenised JSON lines) is required"),
        ({"max_steps": -1}, f"--max-steps must be at least 1, found -1 {EPOCHS}"),
        ({"max_steps": 0}, f"--max-steps must be at least 1, found 0 {EPOCHS}"),
        (
            {"use_aux_loss": False, "use_logits_loss": False, "use_ntp_loss": False},
            "--use-aux-loss, --use-logits-loss and --use-ntp-loss can't all be False",
        ),
        (
            {"use_std_like_attn": True},
            "--use-std-like-attn True is not supported (the original refuses it too)",
        ),
        (
            {"student_attn_from_scratch": True},
            "--student-attn-from-scratch True is not supported (the student's attention is the teacher's, merged)",
        ),
        (
            {"use_additional_align": True},
            "--use-additional-align True is not supported (its extra projections are no part of the student)",
        ),
        (
            {"del_layers": "3,4"},
            "--del-layers 3,4 is not supported (every layer of the teacher has a layer of the student)",
        ),
        (
            {"ban_layers": "0"},
            "--ban-layers 0 is not supported (leave clone terms out by name with --str-ban-losses)",
        ),
        (
            {"load_model_weight_path": "x.bin"},
            "--load-model-weight-path x.bin is not supported (use --resume-checkpoint to go on from a checkpoint)",
        ),
        (
            {"aux_loss_type": "cosine"},
            "--aux-loss-type cosine is not supported (clone terms are mean squared errors)",
        ),
        ({"tie_n": 2}, "--tie-n 2 is not supported (the original refuses it too)"),
        ({"lr_scheduler": "cosin"}, "unknown --lr-scheduler cosin; did you mean cosine?"),
        (
            {"lr_scheduler": "zzz"},
            "unknown --lr-scheduler zzz; known: linear, cosine, warmup_stable_decay, constant, constant_with_warmup",
        ),
        (
            {"resume_checkpoint": "True"},
            "--resume-checkpoint must name a checkpoint folder, or be auto for the newest run's",
        ),
        ({"extra_tags": "fine,a/b"}, "tag 'a/b' can't be part of a folder's name"),
        ({"extra_tags": "a\\b"}, "tag 'a\\\\b' can't be part of a folder's name"),
        ({"extra_tags": " , "}, "--extra-tags must name at least one tag, found ' , '"),
        ({"extra_tags": ".."}, "--extra-tags must name at least one tag, found '..'"),
        (
            {"str_ban_losses": "no,mlp-up-loss"},
            "--str-ban-losses takes no or a list of losses, not both; found 'no,mlp-up-loss'",
        ),
        (
            {"str_ban_losses": "mlp-up-loss,mlp-gates-loss"},
            "--str-ban-losses names an unknown loss mlp-gates-loss; did you mean mlp-gate-loss?",
        ),
        ({"str_ban_losses": "zzz"}, f"--str-ban-losses names an unknown loss zzz; known: {LOSSES}"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_problem_names_its_flag_what_was_found_and_why(changes: dict[str, Any], problem: str) -> None:
    assert problems_of(**changes) == [problem]


@pytest.mark.parametrize(
    "changes",
    [
        {"use_aux_loss": False, "use_logits_loss": False},
        {"use_logits_loss": False, "use_ntp_loss": False},
        {"use_aux_loss": False, "use_ntp_loss": False},
        {"tie_n": 0},
        {"tie_n": 1},
        {"str_ban_losses": ""},
        {"str_ban_losses": ",".join(TERM_OF_LOSS)},
        {"resume_checkpoint": "out/train/checkpoint-3"},
        {"extra_tags": "a, b ,,..c"},
        *({"lr_scheduler": name} for name in SCHEDULE_OF_NAME),
    ],
)
def test_what_can_be_honoured_is_no_problem(changes: dict[str, Any]) -> None:
    assert problems_of(**changes) == []


@pytest.mark.parametrize(
    ("fixed", "problem"),
    [
        (
            {"gradient_accumulation_steps": 4.0},
            "--gradient-accumulation-steps is 1, but the launcher's DeepSpeed configuration says 4",
        ),
        ({"max_grad_norm": 0.5}, "--max-grad-norm is 1, but the launcher's DeepSpeed configuration says 0.5"),
        (
            {"max_grad_norm": 0.0},
            "--max-grad-norm is 1, but the launcher's DeepSpeed configuration says 0",
        ),
    ],
)
def test_the_launchers_settings_must_agree(fixed: dict[str, float], problem: str) -> None:
    assert problems_of(Launch(time="t", **fixed)) == [problem]  # type: ignore[arg-type]
    assert problems_of(Launch(time="t", **fixed), **fixed) == []  # type: ignore[arg-type]


def test_all_problems_are_told_at_once_in_the_order_of_the_flags() -> None:
    found = problems_of(raw_model_name=None, max_steps=0, tie_n=3, extra_tags="", str_ban_losses="x,y")
    assert [problem.split(" ")[0] for problem in found] == [
        "--raw-model-name",
        "--max-steps",
        "--tie-n",
        "--extra-tags",
        "--str-ban-losses",
        "--str-ban-losses",
    ]


def test_the_tables_name_flags_and_the_supported_values_are_the_defaults() -> None:
    defaults = {entry.name: entry.default for entry in fields(TrainFlags)}
    assert set(UNUSED) <= set(defaults)
    assert {name: defaults[name] for name in UNSUPPORTED} == {name: value for name, (value, _) in UNSUPPORTED.items()}
    assert defaults["lr_scheduler"] in SCHEDULE_OF_NAME
    assert not set(UNUSED) & set(UNSUPPORTED)


def test_the_losses_are_the_clone_terms_of_all_variants_together() -> None:
    architecture = discover(tiny_config("llama"))
    variants = [Variant(), Variant(attention_projections="io", ffn_projections="io")]
    (first, *_) = architecture.stages
    terms = [term for variant in variants for stage in first for term in clone_terms(stage, variant)]
    assert set(TERM_OF_LOSS.values()) == set(terms)
    assert len(set(TERM_OF_LOSS.values())) == len(TERM_OF_LOSS)


def test_the_schedules_are_those_of_the_recipe() -> None:
    assert set(SCHEDULE_OF_NAME.values()) == set(get_args(get_type_hints(TrainConfig)["schedule"]))


@pytest.mark.parametrize(
    ("text", "parts"), [("", ()), ("a", ("a",)), (" a ,b c,, d,", ("a", "b c", "d")), (",", ()), ("a-b", ("a-b",))]
)
def test_a_comma_list_is_split_without_blanks_and_empty_parts(text: str, parts: tuple[str, ...]) -> None:
    assert split_list(text) == parts
