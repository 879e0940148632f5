"""What a run folder says, as frozen records: the typed form of the JSON files that the verbs write.

`read_run` fills them; the plots and the page read nothing else. A float that a verb wrote as null is None.
"""

from dataclasses import dataclass
from pathlib import Path

from lrc.config import Recipe
from lrc.report.manifest_records import DataSource
from lrc.report.task_records import TaskResults

PerLayer = tuple[float | None, ...]
"""One value a layer, the first layer first; None where the layer has none."""


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Student against teacher on held-out text, at one moment of training."""

    step: int
    """Optimiser steps done."""
    tokens: int
    """Training tokens seen."""
    kl: float | None
    """KL(teacher || student) at temperature 1, nats per token."""
    cross_entropy: float | None
    """The student's, nats per token."""
    teacher_cross_entropy: float | None
    """The teacher's on the same text, nats per token."""
    top1_agreement: float | None
    """Share of positions, 0 to 1, where both models rank the same token first."""
    positions: int
    """Positions scored."""
    effective_rank: PerLayer | None
    """Effective rank of the student's stream after each layer; None in runs of older versions."""
    teacher_effective_rank: PerLayer | None
    """The teacher's, its stream projected to the student's width as well as can be."""
    effective_rank_share: float | None
    """The student's over the teacher's, mean over the layers."""
    has_collapsed: bool
    """Whether the student's stream uses too few directions to follow the teacher."""


@dataclass(frozen=True, kw_only=True)
class TrainPoint:
    """The training losses of one logged step."""

    step: int
    """Optimiser steps done."""
    tokens: int
    """Training tokens seen."""
    seconds: float | None
    """Time since the start of the run."""
    lm_loss: float | None
    """Next-token cross entropy of the student, nats per position."""
    kl_loss: float | None
    """KL to the teacher at the recipe's temperature, nats per position."""
    clone_loss: float | None
    """The reduced clone terms, before their weight alpha."""
    clone: dict[str, PerLayer]
    """Each clone term, for example `attn-q`, layer by layer."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """The start values, before the first optimiser step."""

    method: str
    """`random`, `channel`, `pca` or `calibrated`."""
    calibration_tokens: int
    """Tokens the start was fitted on."""
    seconds: float | None
    """Time the fit took."""
    layer_errors: PerLayer
    """Relative error of the student's stream after each layer against the projected teacher's; may be empty."""
    held_out: HeldOut | None
    """Held-out measures at step 0."""
    effective_rank: PerLayer | None
    """Effective rank of the student's stream after each layer."""
    versions: dict[str, str]
    """Library name to version."""


@dataclass(frozen=True, kw_only=True)
class ParityDifference:
    """Logits of the merged student against those of the factored one."""

    max_abs_difference: float | None
    """Largest absolute difference of two logits."""
    relative_difference: float | None
    """The difference as a share of the size of the logits."""


@dataclass(frozen=True, kw_only=True)
class Parity:
    """The check that the exported student is the trained one."""

    passed: bool
    """Whether the differences stay within the tolerance."""
    in_memory: ParityDifference
    """Right after the merge."""
    after_reload: ParityDifference
    """Read back from the exported folder."""
    tolerance: float | None
    """Difference allowed."""
    dtype: str
    """Dtype of the exported weights."""
    positions: int
    """Positions compared."""
    logit_scale: float | None
    """Size of the logits that the differences are to be seen against."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """One model's scores."""

    name: str
    """Folder or hub id."""
    cross_entropy: float | None
    """Nats per token."""
    perplexity: float | None
    """exp(cross entropy)."""
    bits_per_byte: float | None
    """Cross entropy in bits over the bytes of the text; comparable across tokenizers."""
    parameters: int
    """Parameters, a tied embedding and head counted once."""
    file_size_bytes: int
    """Size of the weight files."""
    prefill_tokens_per_second: float | None
    """Rate of reading a prompt."""
    decode_tokens_per_second: float | None
    """Rate of writing new tokens, one by one."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One prompt and what each model continues it with."""

    prompt: str
    """The text both models were given."""
    teacher: str | None
    """None if no teacher was scored."""
    student: str
    """The student's continuation."""


@dataclass(frozen=True, kw_only=True)
class Results:
    """The scorecard of a finished student, and of its teacher if one was scored."""

    source: str
    """Where the held-out text comes from."""
    positions: int
    """Positions scored."""
    num_bytes: int
    """Bytes of text scored."""
    sequence_length: int
    """Window of the scored text, in tokens."""
    teacher: Card | None
    """None if no teacher was scored."""
    student: Card
    """The finished student."""
    kl_to_teacher: float | None
    """KL(teacher || student) at temperature 1, nats per token."""
    top1_agreement: float | None
    """Share of positions, 0 to 1, where both models rank the same token first."""
    top5_agreement: float | None
    """The same among the first five tokens, 0 to 1."""
    teacher_effective_rank: PerLayer | None
    """Effective rank of the teacher's stream after each layer."""
    student_effective_rank: PerLayer | None
    """Effective rank of the student's stream after each layer."""
    teacher_hidden_size: int | None
    """`d_T`."""
    student_hidden_size: int
    """`d_S`."""
    samples: tuple[Sample, ...]
    """Continuations side by side."""
    versions: dict[str, str]
    """Library name to version."""
    device: str
    """Device the rates were measured on."""
    threads: int | None
    """CPU threads used."""
    dtype: str
    """Dtype of both models' forward."""


@dataclass(frozen=True, kw_only=True)
class FineTuned:
    """The fine-tuning on chats that followed the distillation."""

    data: str
    """The chats, as the recipe names them."""
    rows: int
    """Rows read of them."""
    sequences: int
    """Training sequences made of them."""
    left_out: int
    """Rows and sequences that were not learnt from: bad rows, over-long ones without room for an answer or dropped."""
    truncated: int
    """Over-long sequences whose end was cut off."""
    tokens: int
    """Tokens of the sequences."""
    answer_tokens: int
    """Those of them that are learnt."""
    steps: int
    """Optimiser steps."""
    teacher_kl: float | None
    """Weight of the KL to the teacher; 0: plain fine-tuning."""
    cross_entropy: tuple[float | None, float | None] | None
    """On the answers of held-out chats before and after, nats per token; None if nothing was held out."""
    kl: tuple[float | None, float | None] | None
    """KL(teacher || student) on them before and after, nats per token; None without a teacher too."""


@dataclass(frozen=True, kw_only=True)
class RunData:
    """Everything the report shows; a part that no verb has written yet is None (or empty)."""

    run: Path
    """The run folder."""
    recipe: Recipe | None
    """The resolved recipe that the run was trained with."""
    recipe_text: str | None
    """The same, as it stands in the file."""
    start: Start | None
    """From train/start.json."""
    train: tuple[TrainPoint, ...]
    """From train/metrics.jsonl, in the order of steps."""
    held_out: tuple[HeldOut, ...]
    """From train/metrics.jsonl in the order of steps, with the measure of start.json as step 0."""
    parity: Parity | None
    """From convert/parity.json."""
    fine_tuned: FineTuned | None
    """From sft/sft.json."""
    results: Results | None
    """From evaluate/results.json; None if only tasks were scored."""
    tasks: TaskResults | None
    """From evaluate/results.json."""
    student_hash: str | None
    """Of the weights that both are of, `models/folder.py:weights_hash`; None: the results do not say."""
    sources: tuple[DataSource, ...]
    """From the manifest of the training data, if `lrc prepare` made it."""
