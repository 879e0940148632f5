"""What the recipe of a run says to the verbs that take a checkpoint or a student's folder instead of a recipe."""

from pathlib import Path

from lrc.config import ConvertConfig, EvaluateConfig, Recipe, load_recipe
from lrc.errors import ConfigError
from lrc.models.set_aside import find_set_aside
from lrc.verbs.progress import say


def convert_settings(checkpoint: Path) -> ConvertConfig:
    """Return the section `convert` of the run whose `RUN/train/checkpoint-N`, or a file in it, this is."""
    place = find_set_aside(checkpoint.absolute())
    folder = place if place.is_dir() else place.parent
    recipe = _recipe_of(folder.parent.parent) if folder.parent.name == "train" else None
    return ConvertConfig() if recipe is None else recipe.convert


def evaluate_settings(model: str) -> EvaluateConfig:
    """Return the section `evaluate` of the run whose `RUN/convert`, `RUN/sft` or other folder this is."""
    folder = Path(model)
    recipe = _recipe_of(folder.absolute().parent) if folder.is_dir() else None
    if recipe is None:
        return EvaluateConfig()
    if recipe.evaluate != EvaluateConfig():
        say(f"scored as the run's recipe says: {recipe.evaluate}, where no flag does")
    return recipe.evaluate


def _recipe_of(run: Path) -> Recipe | None:
    """Read a run's recipe; one that this version can't read is named and not followed."""
    path = run / "train" / "recipe.yaml"
    if not path.is_file():
        return None
    try:
        return load_recipe(path)
    except ConfigError as error:
        say(f"note: the run's recipe is not followed. {error}")
        return None
