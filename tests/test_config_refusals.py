"""Every recipe that is refused: the message names the origin, the key and what to write instead."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from lrc.config import load_recipe, recipe_from_dict
from lrc.errors import ConfigError
from tests.least_recipe import LEAST


def refusal(path: Path, *overrides: str) -> str:
    """Return the message that a recipe with overrides is refused with, without its origin."""
    with pytest.raises(ConfigError) as caught:
        load_recipe(path, overrides)
    origin, _, message = str(caught.value).partition(": ")
    assert origin == str(path)
    return message


def refusal_of_text(path: Path, text: str) -> str:
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_recipe(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("train.max_stesp=4", "train.max_steps"),
        ("train.learning-rate=4", "train.learning_rate"),
        ("max_steps=4", "train.max_steps"),
        ("objective.hidden_size=4", "student.hidden_size"),
        ("studnet.hidden_size=4", "student"),
        ("teachr=x", "teacher"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_one(recipe_file: Path, override: str, nearest: str) -> None:
    assert refusal(recipe_file, override).endswith(f"Did you mean {nearest!r}?")


def test_an_unknown_key_of_the_file_is_refused_with_the_nearest_one(recipe_file: Path) -> None:
    message = refusal_of_text(recipe_file, yaml.safe_dump(LEAST).replace("max_steps", "max_step"))
    assert message == f"{recipe_file}: unknown key 'train.max_step'. Did you mean 'train.max_steps'?"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("max_token: 5", "unknown key 'prepare.sources[1].max_token'. Did you mean 'max_tokens'?"),
        (
            "zzzz: 5",
            "unknown key 'prepare.sources[1].zzzz'. Known keys: data_class, filters, keep, kind, max_tokens, path, "
            "text_key.",
        ),
        ("kind: talk", "prepare.sources[1].kind: Invalid value 'talk', expected one of ['text', 'chat']"),
        (
            "max_tokens: five",
            "prepare.sources[1].max_tokens: Value 'five' of type 'str' could not be converted to Integer",
        ),
    ],
)
def test_what_is_wrong_in_a_source_is_refused_with_its_number(recipe_file: Path, source: str, message: str) -> None:
    sources = f"[{{path: x, kind: chat}}, {{path: y, {source}}}]"
    assert refusal(recipe_file, f"prepare.sources={sources}") == message
    text = yaml.safe_dump(LEAST) + f"prepare: {{sources: {sources}}}\n"
    assert refusal_of_text(recipe_file, text) == f"{recipe_file}: {message}"


@pytest.mark.parametrize(
    ("text", "where"),
    [("null: 5", ""), ("~: 5", ""), ("prepare: {null: 5}", " of prepare"), ("data: {~: 5}", " of data")],
)
def test_a_key_without_a_name_is_refused(recipe_file: Path, text: str, where: str) -> None:
    values = {key: value for key, value in LEAST.items() if not text.startswith(key)}
    message = refusal_of_text(recipe_file, f"{yaml.safe_dump(values)}{text}\n")
    assert message == f"{recipe_file}: each key{where} must be a name, found null. Put the name in quotes."


def test_an_unknown_key_like_no_other_is_refused_with_all_there_are(recipe_file: Path) -> None:
    message = refusal(recipe_file, "zzz=3")
    assert message.startswith("unknown key 'zzz'. Known keys: ")
    for key in ("run", "train.max_steps", "objective.clone_weight", "convert.dtype"):
        assert key in message


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ("train.activation_checkpointing=selective", "hands no products out"),
        ("teacher_weights.format=int8", "come while a layer runs"),
    ],
)
def test_a_compiled_layer_is_refused_with_what_it_can_t_hold(recipe_file: Path, other: str, reason: str) -> None:
    message = refusal(recipe_file, "train.compile=true", other)
    assert message.startswith("train.compile must be false with")
    assert reason in message


def test_an_unknown_policy_is_refused(recipe_file: Path) -> None:
    assert "train.activation_checkpointing" in refusal(recipe_file, "train.activation_checkpointing=some")


def test_a_doubled_dot_is_not_answered_with_the_key_itself(recipe_file: Path) -> None:
    assert "unknown key 'train'" not in refusal(recipe_file, "train..max_steps=3")


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("train.max_steps=abc", "train.max_steps"),
        ("train.max_steps=1.5", "train.max_steps"),
        ("train.max_steps=true", "train.max_steps"),
        ("train.max_steps=null", "train.max_steps"),
        ("train.max_steps=", "train.max_steps"),
        ("train.max_steps=[1]", "train.max_steps"),
        ("train.learning_rate=fast", "train.learning_rate"),
        ("train.tags=abc", "train.tags"),
        ("student.tie_embedding_projection=maybe", "student.tie_embedding_projection"),
        ("run={a: 1}", "run"),
        ("train=null", "train"),
        ("train.max_steps.x=5", "train.max_steps"),
        ("train=5", "train"),
        ("prepare.cluster=gpu", "prepare.cluster"),
        ("prepare={cluster: slurm}", "prepare.cluster"),
        ("prepare.cluster=null", "prepare.cluster"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_with_its_key(recipe_file: Path, override: str, key: str) -> None:
    assert refusal(recipe_file, override).startswith(f"{key}: ")


@pytest.mark.parametrize(
    ("key", "allowed"),
    [
        ("train.schedule", ("linear", "cosine", "wsd", "constant")),
        ("student.attention_projections", ("all", "io")),
        ("start.method", ("random", "channel", "pca", "calibrated")),
        ("objective.kl_reduction", ("token_mean", "published")),
        ("convert.dtype", ("teacher", "float32", "bfloat16", "float16")),
    ],
)
def test_a_word_that_is_none_of_a_choice_is_refused_with_the_choice(
    recipe_file: Path, key: str, allowed: tuple[str, ...]
) -> None:
    message = refusal(recipe_file, f"{key}=sine")
    assert message.startswith(f"{key}: ")
    assert all(repr(word) in message for word in allowed)


@pytest.mark.parametrize("key", ["run", "teacher", "student.hidden_size", "data.train", "train.max_steps"])
def test_a_missing_required_key_is_refused_by_name(tmp_path: Path, key: str) -> None:
    values: dict[str, Any] = yaml.safe_load(yaml.safe_dump(LEAST))
    section, _, name = key.rpartition(".")
    del (values[section] if section else values)[name]
    with pytest.raises(ConfigError, match=f"^somewhere: the required key '{key}' is missing"):
        recipe_from_dict(values, origin="somewhere")


ABOVE_ZERO = [
    "student.hidden_size",
    "data.sequence_length",
    "data.held_out_tokens",
    "start.tokens",
    "objective.temperature",
    "train.max_steps",
    "train.batch_size",
    "train.gradient_accumulation_steps",
    "train.learning_rate",
    "train.max_grad_norm",
    "train.log_steps",
    "train.save_steps",
    "train.save_total_limit",
    "train.evaluate_steps",
    "convert.max_shard_bytes",
    "evaluate.tokens",
    "evaluate.sequence_length",
]
NOT_BELOW_ZERO = [
    "objective.lm_weight",
    "objective.kl_weight",
    "objective.clone_weight",
    "start.outlier_channels",
    "train.weight_decay",
    "evaluate.samples",
]


@pytest.mark.parametrize("key", ABOVE_ZERO)
@pytest.mark.parametrize("value", ["0", "-1"])
def test_counts_and_rates_must_be_above_0(recipe_file: Path, key: str, value: str) -> None:
    assert refusal(recipe_file, f"{key}={value}").startswith(f"{key} must be a finite number above 0, found {value}")


@pytest.mark.parametrize("key", NOT_BELOW_ZERO)
def test_weights_must_not_be_negative(recipe_file: Path, key: str) -> None:
    load_recipe(recipe_file, (f"{key}=0",))
    assert refusal(recipe_file, f"{key}=-1").startswith(f"{key} must be a finite number of at least 0, found -1")


@pytest.mark.parametrize("key", ["objective.temperature", "train.learning_rate", "objective.kl_weight"])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_numbers_must_be_finite(recipe_file: Path, key: str, value: str) -> None:
    assert refusal(recipe_file, f"{key}={value}").startswith(f"{key} must be a finite number")


@pytest.mark.parametrize("key", ["train.warmup_ratio", "train.decay_ratio"])
def test_shares_must_lie_in_0_to_1(recipe_file: Path, key: str) -> None:
    for value in ("0", "1", "0.5"):
        load_recipe(recipe_file, (f"{key}={value}",))
    for value in ("-0.1", "1.1", "nan"):
        assert refusal(recipe_file, f"{key}={value}").startswith(f"{key} must lie in 0..1, found {float(value)}")


def test_shares_of_the_rate_must_not_be_negative(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file, ("train.rate_shares.down_proj=0.5", "train.rate_shares.gains=0"))
    assert recipe.train.rate_shares == {"down_proj": 0.5, "gains": 0.0}
    for value in ("-1", "nan", "inf"):
        found = refusal(recipe_file, f"train.rate_shares.gains={value}")
        assert found.startswith("train.rate_shares.gains must be a finite number of at least 0, found")


def test_weights_of_single_terms_and_of_depth_have_their_ranges(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file, ("objective.clone_term_weights.mlp-out=0.5", "objective.clone_depth_slope=-1"))
    assert (recipe.objective.clone_term_weights, recipe.objective.clone_depth_slope) == ({"mlp-out": 0.5}, -1.0)
    for value in ("-1.1", "1.1", "nan"):
        found = refusal(recipe_file, f"objective.clone_depth_slope={value}")
        assert found.startswith("objective.clone_depth_slope must lie in -1..1")
    for value in ("-1", "nan"):
        found = refusal(recipe_file, f"objective.clone_term_weights.mlp-out={value}")
        assert "clone_term_weights.mlp-out must be a finite number of at least 0" in found


@pytest.mark.parametrize(
    "override",
    ["train.seed=-1", "train.beta1=1", "train.beta1=-0.1", "train.beta2=1.5", "evaluate.sample_tokens=0", "run=''"],
)
def test_what_numpy_and_the_optimiser_would_refuse_is_refused_before(recipe_file: Path, override: str) -> None:
    assert refusal(recipe_file, override).startswith(override.partition("=")[0])


def test_an_objective_of_nothing_is_refused(recipe_file: Path) -> None:
    nothing = ("objective.lm_weight=0", "objective.kl_weight=0", "objective.clone_weight=0")
    assert "at least one of lm_weight, kl_weight, clone_weight" in refusal(recipe_file, *nothing)
    for number, key in enumerate(nothing):
        load_recipe(recipe_file, (*nothing[:number], *nothing[number + 1 :], key.replace("=0", "=1")))


def test_more_outlier_channels_than_the_student_has_are_refused(recipe_file: Path) -> None:
    load_recipe(recipe_file, ("start.outlier_channels=32",))
    assert "at most student.hidden_size = 32, found 33" in refusal(recipe_file, "start.outlier_channels=33")


def test_all_contradictions_are_reported_at_once(recipe_file: Path) -> None:
    message = refusal(
        recipe_file,
        "train.batch_size=0",
        "train.weight_decay=-2",
        "train.warmup_ratio=3",
        "objective.kl_weight=0",
        "objective.clone_weight=0",
        "start.outlier_channels=99",
    )
    problems = message.removesuffix(".").split("; ")
    assert len(problems) == 5
    for part in ("batch_size", "weight_decay", "warmup_ratio", "lm_weight, kl_weight", "outlier_channels"):
        assert sum(part in problem for problem in problems) == 1


def test_a_missing_recipe_is_refused_by_name(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.yaml", tmp_path):
        with pytest.raises(ConfigError, match="must be a YAML file") as caught:
            load_recipe(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["run: [\n", "run: a\nrun: b\n", "5", "run: \x00", "run: @x\n"])
def test_what_is_no_yaml_mapping_is_refused(recipe_file: Path, text: str) -> None:
    assert "can't be read as YAML" in refusal_of_text(recipe_file, text)


def test_a_file_that_holds_a_list_is_refused(recipe_file: Path) -> None:
    refusal_of_text(recipe_file, "- run\n- teacher\n")


def test_bytes_that_are_no_text_are_refused(recipe_file: Path) -> None:
    recipe_file.write_bytes(b"run: \xff\xfe\n")
    with pytest.raises(ConfigError, match="can't be read as YAML"):
        load_recipe(recipe_file)


def test_a_reference_to_nothing_is_refused(recipe_file: Path) -> None:
    assert "nowhere" in refusal(recipe_file, "teacher=${nowhere}")


def test_an_override_without_a_value_is_refused(recipe_file: Path) -> None:
    with pytest.raises(ConfigError, match=r"must look like section\.key=value, found 'train\.max_steps'"):
        load_recipe(recipe_file, ("train.max_steps",))


@pytest.mark.parametrize("override", ["train.tags=[a", "train.tags[0]=a"])
def test_a_malformed_override_is_refused(recipe_file: Path, override: str) -> None:
    with pytest.raises(ConfigError):
        load_recipe(recipe_file, (override,))


def test_a_refused_recipe_leaves_the_file_alone(recipe_file: Path) -> None:
    before = recipe_file.read_bytes()
    refusal(recipe_file, "train.max_steps=0")
    assert recipe_file.read_bytes() == before
