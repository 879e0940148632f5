"""The student's tensors of a piece of a layer, for the calibrated start, which fits a layer piece by piece."""

from dataclasses import replace

from torch import Tensor

from lrc.models.pair import PairLayer


def tensors_below(layer: PairLayer, module: str, *, without: str | None = None) -> dict[str, Tensor]:
    """Evaluate the student's tensors below a module, as `student_tensors` does all of the layer's; no other is merged.

    Args:
        layer: In no dense phase.
        module: Relative to the layer.
        without: A module below whose merged tensors are left out.

    Returns:
        By names relative to the layer; gains without their gradient. Buffers that the student makes are left out.
    """
    inside, plan = f"{module}." if module else "", layer.plan
    wanted = [name for name in plan.merges if name.startswith(inside)]
    if without is not None:
        wanted = [name for name in wanted if not name.startswith(f"{without}.")]
    layer.plan = replace(plan, merges={name: plan.merges[name] for name in wanted})
    try:
        tensors = layer.merged_tensors()
    finally:
        layer.plan = plan
    own = {name for name, _ in (*layer.twin.named_parameters(), *layer.twin.named_buffers())}
    stored = layer.teacher.get_submodule(module).state_dict(prefix=inside, keep_vars=True)
    for name, value in stored.items():
        if name in plan.gains:
            tensors[name] = layer.parameter(name).detach().to(value.dtype)
        elif name in own and name not in plan.merges:
            tensors[name] = value
    return tensors
