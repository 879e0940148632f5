"""Sites: the words for what is projected, who shares a projection, and where student and teacher are compared.

Everything here is plain data. `models/discovery.py` fills it in for an architecture; `models/pair.py` trains it.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

Role = Literal["reader", "writer"]
StageKind = Literal["attn", "mlp"]
Correction = Literal["none", "outputs", "mlp"]


@dataclass(frozen=True, kw_only=True)
class ProjectedTensor:
    """One teacher tensor that is merged with a projection."""

    name: str
    """Parameter name in the stock model, for example `model.layers.0.self_attn.q_proj.weight`."""
    role: Role
    axis: int
    """The axis that is as wide as the residual stream."""

    @property
    def module(self) -> str:
        """Name of the module that owns the tensor."""
        return self.name.rpartition(".")[0]

    @property
    def site(self) -> str:
        """Name of what one projection serves, see `site_of`."""
        return site_of(self.name)


def site_of(tensor: str) -> str:
    """Name what a tensor's projection belongs to: `o_proj.weight` and `o_proj.bias` -> `o_proj`.

    Tensors that are no module's `weight` or `bias` (stacked experts) stand for themselves, and their biases join
    them: `experts.down_proj` and `experts.down_proj_bias` -> `experts.down_proj`.
    """
    owner, _, last = tensor.rpartition(".")
    return owner if last in ("weight", "bias") else tensor.removesuffix("_bias")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One read-compute-write of a layer: the readers that share an input and the writers that answer.

    Names are relative to the layer. A reader or writer is a module, or a tensor inside one (`bare`).
    """

    kind: StageKind
    readers: tuple[str, ...]
    writers: tuple[str, ...]
    norm: str | None
    """The norm that makes the readers' input; its own input is the residual stream."""
    post_norm: str | None
    """The norm on a writer's output before it joins the residual stream (Gemma 3), if any."""
    bare: tuple[tuple[str, str], ...] = ()
    """Readers and writers that are no modules (stacked experts), each with the module that holds it."""
    residual: float | None = 1.0
    """Factor on what the writer (or its post-norm) makes as it joins the stream (Granite); None: it is not simply
    added, or another stage reads the same stream (parallel blocks)."""
    block: str | None = None
    """The module that gets the stream as the layer has it, where no norm does and the readers get all positions in one
    row (FlexOlmo's experts)."""

    def module_of(self, site: str) -> str:
        """Name the module that runs a reader or writer."""
        return dict(self.bare).get(site, site)

    @property
    def point(self) -> str:
        """The module whose input is the residual stream that the stage reads."""
        return self.norm or self.block or self.module_of(self.readers[0])


@dataclass(frozen=True, kw_only=True)
class Variant:
    """Which readers share a projection (published flags `use_all_attn`, `use_in_out_mlp`, `tie_word_emb_proj`)."""

    attention_projections: Literal["all", "io"] = "all"
    ffn_projections: Literal["all", "io"] = "all"
    tie_embedding_projection: bool = False
    correction: Correction = "none"
    """Weights of MLP outputs (`outputs`), or of whole MLPs (`mlp`), are merged ones plus a fixed `C`
    (`corrected_weights`)."""

    def shares_input(self, kind: StageKind) -> bool:
        """Whether the readers of such a stage share one projection (`io`)."""
        return (self.attention_projections if kind == "attn" else self.ffn_projections) == "io"


def projection_of(module: str, stage: Stage, variant: Variant) -> str:
    """Name the projection of a reader or writer module, relative to its layer.

    Args:
        module: A member of `stage.readers` or `stage.writers`.
        stage: The stage that the module belongs to.
        variant: `io` stages have one projection for all their readers, named after the first one's parent, so that a
            router and its experts share it too.
    """
    if module in stage.readers and variant.shares_input(stage.kind):
        return f"{stage.readers[0].rpartition('.')[0]}.input"
    return module


def parent_of(stage: Stage) -> str:
    """Name the innermost module that holds all readers and writers of a stage."""
    paths = [stage.module_of(name).split(".")[:-1] for name in (*stage.readers, *stage.writers)]
    shared = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)


def corrected_weights(stage: Stage, variant: Variant) -> dict[str, int]:
    """List the tensors of a stage that corrections are added to: name -> hidden axis of a linear layer's.

    They are the weight of an MLP's one writer, if that is a module, and with `mlp` those of its readers, if a start can
    tell what the writer has to make. An attention has none: most of its weights have no more numbers than their
    projections, which so reach every value.
    """
    if variant.correction == "none" or stage.kind != "mlp" or stage.bare or len(stage.writers) != 1:
        return {}
    is_known = stage.residual == 1 or (stage.residual is not None and stage.post_norm is None)
    readers = stage.readers if variant.correction == "mlp" and is_known else ()
    return {f"{stage.writers[0]}.weight": 0} | {f"{reader}.weight": 1 for reader in readers}


def clone_terms(stage: Stage, variant: Variant) -> dict[str, str]:
    """List a stage's clone terms: term name -> the reader or writer (relative to the layer) it is measured at.

    `all` stages compare each reader's output, `io` stages the lifted input (measured at the first reader); every
    stage compares its writers' outputs. One writer gives `attn-out` / `mlp-out`; a second one adds its own name.
    """
    terms = {}
    if variant.shares_input(stage.kind):
        terms[f"{stage.kind}-in"] = stage.readers[0]
    else:
        for reader in stage.readers:
            if reader in dict(stage.bare):
                continue  # what it makes is seen inside its module only
            terms[f"{stage.kind}-{short_name(reader)}"] = reader
    for position, writer in enumerate(stage.writers):
        suffix = "out" if position == 0 else f"out-{short_name(writer)}"
        terms[f"{stage.kind}-{suffix}"] = writer
    return terms


def layer_terms(stages: tuple[Stage, ...], variant: Variant) -> dict[str, tuple[str, Stage]]:
    """List a layer's clone terms: term name -> reader or writer, and its stage.

    Two stages of a kind may claim one name (routed and shared experts, a hybrid's two mixers); the later one then adds
    the name of the module around it: `mlp-out-shared_experts`.
    """
    terms: dict[str, tuple[str, Stage]] = {}
    for stage in stages:
        for term, site in clone_terms(stage, variant).items():
            name = term if term not in terms else f"{term}-{site.rpartition('.')[0].rpartition('.')[2]}"
            terms[name] = (site, stage)
    return terms


def compared_projections(
    stages: tuple[Stage, ...],
    variant: Variant,
    term_names: Collection[str],
    *,
    attention_output_space: Literal["student", "teacher"],
) -> frozenset[str]:
    """List a layer's projections that its clone terms use as they are, relative to the layer.

    Those are the projections of shared inputs, which are lifted, and of outputs that are compared in student space.

    Args:
        stages: The layer's.
        variant: Which readers share a projection.
        term_names: Terms that are measured.
        attention_output_space: Where attention outputs are compared.
    """
    found = set()
    for term, (site, stage) in layer_terms(stages, variant).items():
        lifts = site in stage.readers and variant.shares_input(stage.kind)
        projects = site in stage.writers and not (stage.kind == "attn" and attention_output_space == "teacher")
        if term in term_names and (lifts or projects):
            found.add(projection_of(site, stage, variant))
    return frozenset(found)


def short_name(module: str) -> str:
    """`self_attn.q_proj` -> `q`."""
    return module.rpartition(".")[2].removesuffix("_proj")
