"""Every shipped recipe and launcher configuration loads and says what the published table says."""

from pathlib import Path

import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.utils import DistributedType

from lrc.config import ObjectiveConfig, Recipe, load_recipe
from lrc.data.assemble import HELD_OUT_ROWS
from lrc.start_config import StartConfig

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES = sorted((CONFIGS / "recipes").glob("*.yaml"))
PROCESSES = 8
BETTER = ("lrc_1.5b", "lrc_1.7b", "lrc_4b", "lrc_2.7b")


def load(name: str) -> Recipe:
    return load_recipe(CONFIGS / "recipes" / f"{name}.yaml")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_loads(path: Path) -> None:
    assert load_recipe(path).run == f"runs/{path.stem}"


@pytest.mark.parametrize("name", BETTER)
def test_the_recipes_use_the_default_start_and_objective(name: str) -> None:
    recipe = load(name)
    assert recipe.start == StartConfig()
    assert recipe.objective == ObjectiveConfig()


@pytest.mark.parametrize("name", BETTER)
def test_what_the_recipes_train_on_is_what_they_prepare(name: str) -> None:
    recipe = load(name)
    assert recipe.data.train == f"{recipe.run}/prepare"
    assert recipe.data.held_out == f"{recipe.run}/prepare/{HELD_OUT_ROWS}"
    assert recipe.prepare.held_out_share > 0
    train = recipe.train
    tokens = train.batch_size * PROCESSES * recipe.data.sequence_length * train.max_steps
    assert sum(source.max_tokens or 0 for source in recipe.prepare.sources) >= 0.97 * tokens
    assert train.evaluate_steps == train.save_steps


@pytest.mark.parametrize(
    ("name", "hidden_size", "step_tokens", "billion_tokens", "learning_rate"),
    [
        ("lrc_1.5b", 1536, 49_152, 10, 1e-4),
        ("lrc_1.7b", 1200, 32_768, 20, 6.7e-5),
        ("lrc_4b", 2048, 32_768, 18, 1e-4),
        ("lrc_2.7b", 1664, 32_768, 10, 1e-4),
    ],
)
def test_the_recipes_follow_the_published_table(
    name: str, hidden_size: int, step_tokens: int, billion_tokens: int, learning_rate: float
) -> None:
    recipe = load(name)
    assert recipe.student.hidden_size == hidden_size
    assert recipe.train.learning_rate == learning_rate
    train = recipe.train
    tokens = train.batch_size * train.gradient_accumulation_steps * PROCESSES * recipe.data.sequence_length
    assert tokens == step_tokens
    assert tokens * train.max_steps / 1e9 == pytest.approx(billion_tokens, rel=0.03)


def test_no_device_of_80_gb_holds_all_weights_of_the_largest_student_and_its_teacher() -> None:
    sft = load("lrc_4b").sft
    assert sft.teacher_kl > 0
    assert sft.lora_rank > 0


def test_the_published_launcher_configuration_loads() -> None:
    config = load_config_from_file(str(CONFIGS / "accel_ds_8h800_gas1.yaml"))
    assert isinstance(config, ClusterConfig)
    assert config.distributed_type == DistributedType.DEEPSPEED
    assert (config.num_processes, config.mixed_precision) == (PROCESSES, "bf16")
    assert config.deepspeed_config["gradient_accumulation_steps"] == 1
    assert config.deepspeed_config["zero_stage"] == 2


def test_the_cpu_launcher_configuration_loads() -> None:
    config = load_config_from_file(str(CONFIGS / "accel_cpu.yaml"))
    assert isinstance(config, ClusterConfig)
    assert (config.use_cpu, config.num_processes, config.distributed_type) == (True, 1, DistributedType.NO)
