"""`lrc sft`: the inputs are checked, then come the chats, the trainer, and a plain folder that appears whole."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from lrc.config import Recipe, recipe_to_dict
from lrc.data.file_hash import file_sha256
from lrc.errors import ConfigError, DataError
from lrc.evaluation.chat_agreement import measure_chats
from lrc.export.folder import written_folder
from lrc.export.plain_folder import CONFIG, copy_companions
from lrc.models.checkpoint import versions
from lrc.models.compute import choose_device, choose_dtype, dtype_name, keep_freed_memory
from lrc.models.folder import ModelTensors, weights_hash
from lrc.models.teacher import load_model
from lrc.sft.fine_tune import FineTuning, fine_tune
from lrc.sft.samples import ChatCounts, held_out_chats, read_samples, write_samples
from lrc.sft_config import SFT_FACTS
from lrc.training.beside import write_beside
from lrc.training.launch import write_recipe
from lrc.training.run_folder import only_run
from lrc.training.strategy import join_processes
from lrc.verbs.progress import progress_lines, say
from lrc.verbs.sft_inputs import RUN_FACTS, SftInputs, check_inputs, require_data

FREE_ON_RESUME = {"log_steps", "save_steps", "save_total_limit", "device", "activation_checkpointing", "held_out"}
"""Settings that a run may change when it goes on."""
CHATS = "chats.arrow"


def sft(recipe: Recipe, *, resume: str | None = None, overwrite: bool = False, dry_run: bool = False) -> Path:
    """Fine-tune a finished student on chats; see the recipe's section `sft`.

    Args:
        recipe: The run.
        resume: `auto`: go on from the newest checkpoint of a run that was killed.
        overwrite: Replace an earlier result, or start a killed run anew.
        dry_run: Check everything, chats included, then stop.

    Returns:
        `RUN/sft`, a plain Hugging Face folder.

    Raises:
        ConfigError, DataError, CheckpointError: Before the expensive part, with what to do.
        NumericsError: The loss was not finite.
    """
    inputs = check_inputs(recipe, resume=resume, overwrite=overwrite)
    begun = _keep_date(inputs)
    held_out, held_out_counts = held_out_chats(inputs.encoder, recipe.sft)
    if dry_run:
        return _dry_run(recipe, inputs, held_out_counts)
    keep_freed_memory()
    with only_run(inputs.out) as hold:
        return _sft(recipe, inputs, begun, held_out, held_out_counts, hold)


def _sft(
    recipe: Recipe,
    inputs: SftInputs,
    begun: str,
    held_out: list[Any],
    held_out_counts: ChatCounts,
    hold: Callable[[], None],
) -> Path:
    device = choose_device(recipe.sft.device, setting="sft.device")
    state = _processes(device)
    _check_processes(inputs, state.num_processes)
    dtype = _dtype(recipe.sft.compute_dtype, inputs.stored, device)
    counts = ChatCounts()
    if state.is_main_process:
        launch = {"begun": begun, "processes": state.num_processes, "dtype": dtype_name(dtype)}
        counts = _prepare_work(recipe, inputs, launch | {"overwrite": inputs.overwrite}, hold)
        _say_counts(counts, held_out_counts)
    state.wait_for_everyone()
    student, teacher = _load(recipe, inputs, device, dtype)
    before = measure_chats(student, teacher, held_out) if held_out else None
    with progress_lines("sft", "steps", lines=20) as progress:
        model, facts = fine_tune(
            FineTuning(
                student=student,
                tokenizer=inputs.tokenizer,
                teacher=teacher,
                sequences=inputs.work / CHATS,
                settings=recipe.sft,
                work=inputs.work,
                device=device,
                dtype=dtype,
                resume=inputs.resume,
                progress=progress,
                note=say,
            )
        )
    if state.is_main_process:
        measured = {"source": recipe.sft.held_out, "chats": held_out_counts.facts(), "before": before}
        measured |= {"after": measure_chats(model, teacher, held_out) if held_out else None}
        machine = {"device": str(device), "dtype": dtype_name(dtype), "threads": torch.get_num_threads()}
        facts |= {**_facts(recipe, inputs, counts), "held_out": measured if held_out else None, "machine": machine}
        _write(recipe, inputs, model, facts)
        say(_last_line(inputs.out, facts))
    state.wait_for_everyone()
    return inputs.out


def _dry_run(recipe: Recipe, inputs: SftInputs, held_out: ChatCounts) -> Path:
    with tempfile.TemporaryDirectory() as scratch:
        _say_counts(_write_chats(recipe, inputs, Path(scratch) / CHATS), held_out)
    say(f"dry run: {recipe.sft.data} for {inputs.student}: good")
    return inputs.out


def _say_counts(chats: ChatCounts, held_out: ChatCounts) -> None:
    say(f"chats: {chats.line()}")
    if held_out.rows:
        say(f"held out: {held_out.line()}")


def _load(recipe: Recipe, inputs: SftInputs, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    """Load the student in float32 to be trained, and the teacher, or None, frozen in the compute dtype."""
    trusted = recipe.trust_remote_code
    student = load_model(str(inputs.student), dtype=torch.float32, device=device, trust_remote_code=trusted)
    student.requires_grad_(True)
    if inputs.teacher is None:
        return student, None
    return student, load_model(str(inputs.teacher), dtype=dtype, device=device, trust_remote_code=trusted)


def _processes(device: torch.device) -> PartialState:
    """Join the launched processes.

    Raises:
        ConfigError: They would train alone, or are to shard the model.
    """
    sharded = [name for name in ("FSDP", "DEEPSPEED") if os.environ.get(f"ACCELERATE_USE_{name}", "false") == "true"]
    if sharded:
        raise ConfigError(
            f"lrc sft trains on one process or with DDP, but {sharded[0]} was asked for. Launch it with torchrun, or "
            "use LLaMA-Factory: lrc sft RECIPE --write-llama-factory OUT, with a line `deepspeed:` of your own."
        )
    return join_processes(device, "ddp")


def _write_chats(recipe: Recipe, inputs: SftInputs, path: Path) -> ChatCounts:
    counts = ChatCounts()
    samples = read_samples(require_data(recipe), inputs.encoder, recipe.sft, counts, path.parent)
    shown = [0]

    def progress(written: int) -> None:
        if written >= shown[0] + 20_000:
            shown[0] = written
            say(f"chats: {written} sequences tokenised")

    write_samples(path, samples, progress)
    return counts


def _keep_date(inputs: SftInputs) -> str:
    """Write chats as of the moment that the run began at, and return it, so that the next day they are the same."""
    begun = str(inputs.stored.get("begun", datetime.now().isoformat()))
    inputs.encoder.keep_date(datetime.fromisoformat(begun))
    return begun


def _check_processes(inputs: SftInputs, processes: int) -> None:
    """Check that a run goes on with as many processes as it began with, or its steps would hold other chats."""
    before = inputs.stored.get("processes", processes)  # runs of older versions don't say it
    if before != processes:
        raise ConfigError(
            f"The run in {inputs.work} must go on with the number of processes that it was begun with, {before}, for a "
            f"step's chats are shared out among them; now there are {processes}. Launch it with {before}, or start "
            "anew with --overwrite."
        )


def _dtype(wanted: str, stored: dict[str, Any], device: torch.device) -> torch.dtype:
    """Choose the compute dtype; `auto` goes on in that of the run, for a measurement may end otherwise now."""
    return choose_dtype(stored.get("dtype", wanted) if wanted == "auto" else wanted, device)


def _prepare_work(recipe: Recipe, inputs: SftInputs, launch: dict[str, Any], hold: Callable[[], None]) -> ChatCounts:
    """Tokenise the chats, then make the work folder; of a resumed run, check that they and the settings are the same.

    Until all of that is well nothing but a temporary folder is written.

    Args:
        recipe: The run.
        inputs: Checked.
        launch: What the next sitting takes over as it is: when the run began, processes, compute dtype, what it may
            replace.
        hold: Keeps other runs out from then on.
    """
    stands = next(parent for parent in inputs.work.absolute().parents if parent.is_dir())
    with _named_disk_errors(inputs.work), tempfile.TemporaryDirectory(dir=stands, prefix=".sft-chats-") as scratch:
        draft = Path(scratch) / CHATS
        counts = _write_chats(recipe, inputs, draft)
        facts = {
            "settings": {k: v for k, v in recipe_to_dict(recipe)["sft"].items() if k not in FREE_ON_RESUME},
            "student": weights_hash(inputs.student),
            "teacher": None if inputs.teacher is None else weights_hash(inputs.teacher),
            "chats": file_sha256(draft),
        }
        if inputs.resume:
            _check_resume(inputs, facts)
        hold()
        if not inputs.resume:
            shutil.rmtree(inputs.work, ignore_errors=True)
        inputs.work.mkdir(parents=True, exist_ok=True)
        write_beside(inputs.work / RUN_FACTS, json.dumps(facts | launch, indent=2) + "\n")
        draft.rename(inputs.work / CHATS)
    return counts


def _check_resume(inputs: SftInputs, facts: dict[str, Any]) -> None:
    differ = [name for name, value in facts.items() if inputs.stored.get(name) != value]
    if differ:
        raise ConfigError(
            f"The run in {inputs.work} was begun with other {' and '.join(differ)}, so it can't go on. Restore them, "
            "or start anew with --overwrite."
        )


@contextmanager
def _named_disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{folder} can't be written: {error}. Free some space or name another run folder.") from error


def _facts(recipe: Recipe, inputs: SftInputs, counts: ChatCounts) -> dict[str, Any]:
    return {
        "student": recipe.sft.model or str(Path(recipe.run) / "convert"),
        "student_hash": weights_hash(inputs.student),
        "teacher": None if inputs.teacher is None else recipe.teacher,
        "teacher_kl": recipe.sft.teacher_kl,
        "data": recipe.sft.data,
        "chats": counts.facts(),
        "versions": {**versions(), **{name: version(name) for name in ("trl", "datasets")}},
    }


def _write(recipe: Recipe, inputs: SftInputs, model: Any, facts: dict[str, Any]) -> None:
    """Write the folder: new weights in the student's stored dtype, every other file as the student has it."""
    with written_folder(inputs.out, overwrite=inputs.overwrite) as draft:
        _round_as_stored(model, ModelTensors(inputs.student))
        model.save_pretrained(draft, max_shard_size=recipe.convert.max_shard_bytes)
        copy_companions(inputs.student, draft)
        shutil.copyfile(inputs.student / CONFIG, draft / CONFIG)
        for path in draft.glob("*.safetensors"):
            path.chmod(0o644)
        shutil.copyfile(inputs.work / "metrics.jsonl", draft / "metrics.jsonl")
        write_recipe(draft / "recipe.yaml", recipe)
        (draft / SFT_FACTS).write_text(json.dumps(facts, indent=2) + "\n")
    shutil.rmtree(inputs.work, ignore_errors=True)


def _round_as_stored(model: torch.nn.Module, stored: ModelTensors) -> None:
    """Give each tensor the dtype that the student's file has it in: some of a model may be float32 among others."""
    usual = stored.dtype()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(stored.read(name).dtype if name in stored else usual)


def _last_line(out: Path, facts: dict[str, Any]) -> str:
    line = f"fine-tuned: {out}, {facts['steps']} steps, mean loss {facts['loss']:.4f}"
    if facts["held_out"]:
        before, after = facts["held_out"]["before"], facts["held_out"]["after"]
        names = [(name, key) for name, key in (("CE", "cross_entropy"), ("KL", "kl")) if key in after]
        changes = (f"{name} {before[key]:.4f} -> {after[key]:.4f}" for name, key in names)
        line += f"; held-out {', '.join(changes)}"
    return line
