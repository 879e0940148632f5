"""Convert: a checkpoint and its teacher become a plain Hugging Face folder, tensor by tensor, shard by shard."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lrc.clone.sites import Variant
from lrc.config import StudentConfig
from lrc.data.folder_hash import SUMS, find_damage
from lrc.errors import CheckpointError, ConfigError
from lrc.export.original_student import OriginalStudent, set_student_eps, sizes_and_eps
from lrc.export.plain_folder import copy_companions, write_config, write_shards
from lrc.export.teacher_tensors import TeacherTensors, is_renamed, open_teacher
from lrc.models.checkpoint import LRC_CONFIG, TRAINED_TENSORS, from_original, is_original, read_facts, variant_of
from lrc.models.dense import Dense, dense_of_facts
from lrc.models.discovery import Architecture, discover
from lrc.models.folder import ModelTensors, resolve_folder, weights_hash
from lrc.models.merge_plan import MergePlan, check_free, check_trained, merge_plan, student_tensor
from lrc.models.stock import check_plain_or_restored
from lrc.models.stored_tensors import StoredTensors, is_piece_file, stored_files
from lrc.models.student import empty_student, student_config
from lrc.models.teacher import load_config

CHUNK_BYTES = 2**28
"""Most of embedding and head that is merged at once, as the teacher's rows in float32."""
DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Source:
    """A checkpoint made ready to merge."""

    teacher_folder: Path
    student: StudentConfig
    architecture: Architecture
    """What discovery found in the teacher."""
    config: Any
    """The student's transformers config."""
    plan: MergePlan
    dense: Dense | None
    """What of the student is free (docs/methods.md)."""
    trained: Mapping[str, Tensor]
    """By checkpoint name; most checkpoints' are read when asked for."""
    notes: tuple[str, ...]
    trust_remote_code: bool
    renamed: bool
    """Whether the family's files name tensors unlike its model (stacked experts)."""

    def open_teacher(self) -> TeacherTensors:
        """Open the teacher's tensors."""
        return open_teacher(self.teacher_folder, renamed=self.renamed, trust_remote_code=self.trust_remote_code)


def check_dtype(dtype: str) -> None:
    """Check the name of an exported dtype.

    Raises:
        ConfigError: There is no such one.
    """
    if dtype != "teacher" and dtype not in DTYPES:
        raise ConfigError(f"The dtype must be teacher, {', '.join(DTYPES)}; found {dtype!r}.")


def read_source(
    checkpoint: Path,
    *,
    teacher: str | None,
    student: StudentConfig | OriginalStudent | None,
    locate: Callable[[str], str] = str,
    trust_remote_code: bool = False,
) -> Source:
    """Read a checkpoint and everything that it needs, and check that all of it fits together.

    Args:
        checkpoint: Checkpoint folder, whole or in pieces, or safetensors file.
        teacher: Teacher to use; None: the one that `lrc_config.json` names.
        student: Sizes and variant; None: those of `lrc_config.json`.
        locate: Turns a teacher's name into a folder or hub id (the embedded teacher).
        trust_remote_code: As in the recipe.

    Raises:
        ConfigError: `teacher` or `student` contradicts the checkpoint, or is missing where the checkpoint does not say.
        CheckpointError: The checkpoint is damaged, or belongs to another teacher.
    """
    weights = _weight_files(checkpoint)
    folder = weights[0].parent
    names = (*(path.name for path in weights), LRC_CONFIG)
    if (folder / SUMS).is_file() and (damage := find_damage(folder, names)) is not None:
        raise CheckpointError(f"The checkpoint {folder} is damaged: {damage}. Convert another one.")
    facts = read_facts(folder)
    sizes, eps = sizes_and_eps(student)
    teacher_name, chosen = _choose(facts, teacher, sizes, folder)
    teacher_folder = resolve_folder(locate(teacher_name))
    if facts is not None and weights_hash(teacher_folder) != facts["teacher_hash"]:
        raise CheckpointError(
            f"The checkpoint {folder} was trained with the teacher {facts['teacher']}, whose weights are not "
            f"those in {teacher_folder}. Name the teacher that it was trained with."
        )
    teacher_config = load_config(str(teacher_folder), trust_remote_code=trust_remote_code)
    check_plain_or_restored(teacher_config, str(teacher_folder))
    architecture, variant = discover(teacher_config), variant_of(chosen)
    dense = dense_of_facts(facts or {})
    plan = merge_plan(architecture, variant, dense)
    trained, stand_ins, notes = _read_trained(weights, variant)
    notes += _held_teacher_note(facts)
    check_trained(plan, stand_ins, architecture.hidden_size, chosen.hidden_size)
    config = student_config(teacher_config, chosen.hidden_size, tied=architecture.is_student_tied(variant))
    notes += set_student_eps(config, eps, is_recorded=facts is not None)
    if plan.free or plan.corrections:
        check_free(plan, stand_ins, empty_student(config))
    return Source(
        teacher_folder=teacher_folder,
        student=chosen,
        config=config,
        plan=plan,
        dense=dense,
        architecture=architecture,
        trained=trained,
        notes=notes,
        trust_remote_code=trust_remote_code,
        renamed=is_renamed(teacher_folder, plan.names, architecture.embedding, architecture.head),
    )


def _weight_files(checkpoint: Path) -> list[Path]:
    """List the files of a checkpoint's trained tensors; one process's file stands for those of all."""
    if checkpoint.is_file() and not is_piece_file(checkpoint, TRAINED_TENSORS):
        return [checkpoint]
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    is_named = checkpoint.is_dir() or is_piece_file(checkpoint, TRAINED_TENSORS) or checkpoint.name == TRAINED_TENSORS
    found = stored_files(folder, TRAINED_TENSORS) if is_named else []
    if not found:
        missing = checkpoint / TRAINED_TENSORS if checkpoint.is_dir() else checkpoint
        raise CheckpointError(
            f"A checkpoint must be a folder with {TRAINED_TENSORS}, whole or in the pieces of each process, or that "
            f"file; {missing} is not there."
        )
    return found


def _choose(
    facts: dict[str, Any] | None, teacher: str | None, student: StudentConfig | None, folder: Path
) -> tuple[str, StudentConfig]:
    """The teacher's name and the student: the checkpoint's own, which a given student must not contradict."""
    if facts is None:
        if student is None or teacher is None:
            raise ConfigError(
                f"{folder} has no lrc_config.json (a checkpoint of the original code?), so teacher, hidden size and "
                "the attention, ffn and tie settings must be given: convert_ckpt.py has flags for them."
            )
        return teacher, student
    stored = StudentConfig(**facts["student"])
    if student is not None and student != stored:
        raise ConfigError(_contradiction(student, stored, folder))
    return teacher or str(facts["teacher"]), stored


def _read_trained(
    weights: list[Path], variant: Variant
) -> tuple[Mapping[str, Tensor], dict[str, Tensor], tuple[str, ...]]:
    """Trained tensors under our names, the student's among them as stand-ins without values, and notes for the user."""
    stored = StoredTensors(weights)
    if not is_original(set(stored)):
        shapes = {name: shape for name, shape in stored.shapes.items() if not name.startswith("alignment.")}
        return stored, {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}, ()
    tensors, ignored = from_original(dict(stored), variant)
    if not ignored:
        return tensors, tensors, ()
    note = f"{len(ignored)} training-only tensors of the original code were ignored ({ignored[0]}, ...)."
    return tensors, tensors, (note,)


def _held_teacher_note(facts: dict[str, Any] | None) -> tuple[str, ...]:
    """Say so if training saw another teacher than the one that is merged."""
    held = ((facts or {}).get("recipe") or {}).get("teacher_weights") or {}
    if held.get("format", "native") == "native":
        return ()
    return (
        f"training held the teacher's matrices in {held['format']}; the student is made of the teacher's own weights, "
        "so its measures differ a little from training's (docs/scale.md). lrc evaluate tells them.",
    )


def _contradiction(given: StudentConfig, stored: StudentConfig, folder: Path) -> str:
    differ = [
        f"{name} is {getattr(stored, name)} in lrc_config.json but {value} was given"
        for name, value in vars(given).items()
        if value != getattr(stored, name)
    ]
    return f"The flags contradict the checkpoint {folder}: {'; '.join(differ)}. Leave them out: the checkpoint knows."


def write_student(
    source: Source,
    draft: Path,
    *,
    dtype: str,
    max_shard_bytes: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Merge every tensor and write config, shards, tokenizer and generation config into a folder.

    At most one shard and one teacher tensor (of embedding and head a run of rows) are in memory, except for families
    whose files use other names than their model: those are merged in memory and stored by transformers.

    Args:
        source: The checkpoint and its teacher.
        draft: An empty folder.
        dtype: `teacher`, or the name of a float dtype.
        max_shard_bytes: Largest file.
        progress: Called with (tensors done, tensors).
    """
    teacher = source.open_teacher()
    stored = teacher.dtype() if dtype == "teacher" else DTYPES[dtype]
    source.config.dtype = stored
    done = count(1)

    shapes: dict[str, Tensor] = {}

    def merged(name: str) -> Tensor:
        if name in shapes and name in (source.architecture.embedding, source.architecture.head):
            tensor = torch.empty(shapes[name].shape, dtype=stored)
            for first, last in row_chunks(len(tensor), source.architecture.hidden_size):
                tensor[first:last] = merged_rows(source, teacher, name, first, last)
        else:
            written = exported_dtype(source, teacher, name, stored)
            tensor = merged_tensor(source, teacher, name).to(written).contiguous()
        progress(next(done), len(source.plan.names))
        return tensor

    if isinstance(teacher, ModelTensors):
        shapes |= {name: _student_meta(source, teacher, name, stored) for name in source.plan.names}
        write_shards(shapes, draft, merged, max_shard_bytes)
    else:
        _write_by_transformers(source, draft, merged, max_shard_bytes)
    write_config(source.config, draft)
    copy_companions(source.teacher_folder, draft)


def _write_by_transformers(source: Source, draft: Path, merged: Callable[[str], Tensor], max_shard_bytes: int) -> None:
    model: Any = empty_student(source.config)
    model.load_state_dict({name: merged(name) for name in source.plan.names}, strict=False, assign=True)
    model.tie_weights()
    model.save_pretrained(draft, max_shard_size=max_shard_bytes)
    for path in draft.glob("*.safetensors"):
        path.chmod(0o644)


def merged_tensor(source: Source, teacher: TeacherTensors, name: str) -> Tensor:
    """Evaluate one tensor of the student, merged ones in float32; `name` is a member of `source.plan.names`."""
    return student_tensor(source.plan, name, teacher.read(stored_name(source, teacher, name)), source.trained)


def merged_rows(source: Source, teacher: TeacherTensors, name: str, first: int, last: int) -> Tensor:
    """Evaluate the rows from `first` to `last` of a student tensor whose rows are the teacher's: embedding or head."""
    rows = teacher.rows(stored_name(source, teacher, name), first, last)
    return student_tensor(source.plan, name, rows, source.trained, slice(first, last))


def stored_name(source: Source, tensors: TeacherTensors, name: str) -> str:
    """Return what a tensor is stored as; a tied head is stored once, under the embedding's name."""
    return name if name in tensors else source.architecture.embedding


def exported_dtype(source: Source, teacher: TeacherTensors, name: str, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of one tensor of a student that is exported in `dtype`.

    A teacher's files may hold some tensors in float32 among others in bfloat16. Where `dtype` is the teacher's, an
    inherited one keeps its own (the correction of DeepSeek-V3's router), and what is merged or trained has that of the
    teacher's tensor if it is wider (ERNIE 4.5's router), save embedding and head, which a folder's dtype is read off.
    An inherited one that holds no floats keeps its own everywhere.
    """
    is_inherited, is_teachers = name in source.plan.inherited, dtype == teacher.dtype()
    is_outer = name in (source.architecture.embedding, source.architecture.head)
    if not is_inherited and (is_outer or not is_teachers):
        return dtype
    own = teacher.read(stored_name(source, teacher, name)).dtype  # a file's values are mapped, not read
    if is_inherited:
        return own if is_teachers or not own.is_floating_point else dtype
    return own if own.itemsize > dtype.itemsize else dtype


def row_chunks(rows: int, width: int) -> Iterator[tuple[int, int]]:
    """Cut a tensor's rows of `width` values into runs of at most `CHUNK_BYTES` in float32."""
    height = max(1, CHUNK_BYTES // (4 * width))
    return ((first, min(first + height, rows)) for first in range(0, rows, height))


def _student_meta(source: Source, teacher: ModelTensors, name: str, dtype: torch.dtype) -> Tensor:
    shape, _ = teacher.shape_and_dtype(stored_name(source, teacher, name))
    if name in source.plan.free:
        shape = list(source.trained[source.plan.free[name]].shape)
    elif name in source.plan.merges:
        shape[source.plan.merges[name][1]] = source.student.hidden_size
    elif name in source.plan.gains:
        shape = [source.student.hidden_size]
    return torch.empty(shape, dtype=exported_dtype(source, teacher, name, dtype), device="meta")
