"""Reads what the verbs left in a run folder into a `RunData`, the first step of the report.

Either `train/metrics.jsonl` or `evaluate/results.json` must be there; every other file may be missing.
"""

from pathlib import Path

from lrc.config import Recipe, load_recipe
from lrc.errors import DataError
from lrc.report.json_fields import Fields, read_json, read_json_lines
from lrc.report.manifest_records import MANIFEST, DataSource, read_sources
from lrc.report.records import (
    Card,
    FineTuned,
    HeldOut,
    Parity,
    ParityDifference,
    Results,
    RunData,
    Sample,
    Start,
    TrainPoint,
)
from lrc.report.task_records import read_task_results
from lrc.sft_config import SFT_FACTS

RECIPE_FILE = "train/recipe.yaml"
START_FILE = "train/start.json"
METRICS_FILE = "train/metrics.jsonl"
PARITY_FILE = "convert/parity.json"
FINE_TUNED_FILE = f"sft/{SFT_FACTS}"
RESULTS_FILE = "evaluate/results.json"


def read_run(run: Path) -> RunData:
    """Read every file of a run folder that the report shows.

    Raises:
        DataError: The folder is missing, holds neither metrics nor results, or a file in it is damaged (the message
            names the file and the line).
        ConfigError: The run's recipe is not a valid one.
    """
    if not run.is_dir():
        raise DataError(f"A run folder must be given, but {run} is not a folder. `lrc train RECIPE` writes one.")
    train, held_out = _read_metrics(run / METRICS_FILE) if (run / METRICS_FILE).exists() else ((), ())
    has_results = (run / RESULTS_FILE).exists()
    if not train and not held_out and not has_results:
        raise DataError(
            f"{run} must hold {METRICS_FILE} with at least one line, or {RESULTS_FILE}, but holds neither. "
            f"Run `lrc train RECIPE` first, or `lrc evaluate MODEL` with its output in {run / 'evaluate'}."
        )
    start = _read_start(run / START_FILE) if (run / START_FILE).exists() else None
    if start is not None and start.held_out is not None and not any(point.step == 0 for point in held_out):
        held_out = (start.held_out, *held_out)
    has_recipe = (run / RECIPE_FILE).exists()
    recipe = load_recipe(run / RECIPE_FILE) if has_recipe else None
    scores = read_json(run / RESULTS_FILE) if has_results else None
    tasks = None if scores is None else scores.optional_section("tasks")
    return RunData(
        run=run,
        recipe=recipe,
        recipe_text=(run / RECIPE_FILE).read_text(encoding="utf-8") if has_recipe else None,
        start=start,
        train=train,
        held_out=held_out,
        parity=_read_parity(run / PARITY_FILE) if (run / PARITY_FILE).exists() else None,
        fine_tuned=read_fine_tuned(run / FINE_TUNED_FILE) if (run / FINE_TUNED_FILE).exists() else None,
        results=_read_results(scores)
        if scores is not None and (tasks is None or "held_out" in scores.values)
        else None,
        tasks=None if tasks is None else read_task_results(tasks),
        student_hash=None if scores is None else scores.optional_text("student_hash"),
        sources=_read_sources(run, recipe),
    )


def _read_sources(run: Path, recipe: Recipe | None) -> tuple[DataSource, ...]:
    """Read the manifest beside the training data, where it still is, else this run's own.

    The run's own counts if no recipe names the data, or if it is what the run trained on before it was moved.
    """
    folders = [] if recipe is None else [Path(recipe.data.train)]
    if recipe is None or folders[0].resolve() == (Path(recipe.run) / "prepare").resolve():
        folders.append(run / "prepare")
    path = next((folder / MANIFEST for folder in folders if (folder / MANIFEST).is_file()), None)
    return () if path is None else read_sources(path)


def _read_metrics(path: Path) -> tuple[tuple[TrainPoint, ...], tuple[HeldOut, ...]]:
    train: dict[int, TrainPoint] = {}
    held_out: dict[int, HeldOut] = {}
    for line in read_json_lines(path):
        kind = line.text("kind")
        step = line.count("step")
        # A resumed run appends, so the later line of a step is the one that counts.
        if kind == "train":
            train[step] = _train_point(line)
        elif kind == "held_out":
            held_out[step] = _held_out(line, step=step, tokens=line.count("tokens"))
        else:
            raise DataError(f"{line.where}: 'kind' must be 'train' or 'held_out', found {kind!r}.")
    return tuple(train[step] for step in sorted(train)), tuple(held_out[step] for step in sorted(held_out))


def _train_point(line: Fields) -> TrainPoint:
    clone = line.section("clone")
    return TrainPoint(
        step=line.count("step"),
        tokens=line.count("tokens"),
        seconds=line.number("seconds"),
        lm_loss=line.number("lm_loss"),
        kl_loss=line.number("kl_loss"),
        clone_loss=line.number("clone_loss"),
        clone={term: clone.numbers(term) for term in clone.values},
    )


def _held_out(values: Fields, *, step: int, tokens: int) -> HeldOut:
    return HeldOut(
        step=step,
        tokens=tokens,
        kl=values.number("kl"),
        cross_entropy=values.number("cross_entropy"),
        teacher_cross_entropy=values.number("teacher_cross_entropy"),
        top1_agreement=values.number("top1_agreement"),
        positions=values.count("positions"),
        effective_rank=values.optional_numbers("effective_rank"),
        teacher_effective_rank=values.optional_numbers("teacher_effective_rank"),
        effective_rank_share=values.number("effective_rank_share") if "effective_rank_share" in values.values else None,
        has_collapsed="has_collapsed" in values.values and values.flag("has_collapsed"),
    )


def _read_start(path: Path) -> Start:
    values = read_json(path)
    held_out = values.optional_section("held_out")
    return Start(
        method=values.text("method"),
        calibration_tokens=values.count("calibration_tokens"),
        seconds=values.number("seconds"),
        layer_errors=values.optional_numbers("layer_errors") or (),
        held_out=None if held_out is None else _held_out(held_out, step=0, tokens=0),
        effective_rank=values.optional_numbers("effective_rank"),
        versions=values.section("versions").texts(),
    )


def _read_parity(path: Path) -> Parity:
    values = read_json(path)
    return Parity(
        passed=values.flag("passed"),
        in_memory=_parity_difference(values.section("in_memory")),
        after_reload=_parity_difference(values.section("after_reload")),
        tolerance=values.number("tolerance"),
        dtype=values.text("dtype"),
        positions=values.count("positions"),
        logit_scale=values.number("logit_scale"),
    )


def _parity_difference(values: Fields) -> ParityDifference:
    return ParityDifference(
        max_abs_difference=values.number("max_abs_difference"),
        relative_difference=values.number("relative_difference"),
    )


def read_fine_tuned(path: Path) -> FineTuned:
    """Read the `sft.json` of a fine-tuned student.

    Raises:
        DataError: It is damaged.
    """
    values = read_json(path)
    chats, held_out = values.section("chats"), values.optional_section("held_out")

    def change(measure: str) -> tuple[float | None, float | None] | None:
        if held_out is None or measure not in held_out.section("after").values:
            return None
        return held_out.section("before").number(measure), held_out.section("after").number(measure)

    return FineTuned(
        data=values.text("data"),
        rows=chats.count("rows"),
        sequences=chats.count("sequences"),
        left_out=sum(chats.count(what) for what in ("bad_rows", "dropped", "answerless")),
        truncated=chats.count("truncated"),
        tokens=chats.count("tokens"),
        answer_tokens=chats.count("answer_tokens"),
        steps=values.count("steps"),
        teacher_kl=values.number("teacher_kl"),
        cross_entropy=change("cross_entropy"),
        kl=change("kl"),
    )


def _read_results(values: Fields) -> Results:
    held_out, machine = values.section("held_out"), values.section("machine")
    teacher, student = values.optional_section("teacher"), values.section("student")
    rank, hidden_size = values.section("effective_rank"), values.section("hidden_size")
    return Results(
        source=held_out.text("source"),
        positions=held_out.count("positions"),
        num_bytes=held_out.count("bytes"),
        sequence_length=held_out.count("sequence_length"),
        teacher=None if teacher is None else _card(teacher),
        student=_card(student),
        kl_to_teacher=student.number("kl_to_teacher"),
        top1_agreement=student.number("top1_agreement"),
        top5_agreement=student.number("top5_agreement"),
        teacher_effective_rank=rank.optional_numbers("teacher"),
        student_effective_rank=rank.optional_numbers("student"),
        teacher_hidden_size=hidden_size.optional_count("teacher"),
        student_hidden_size=hidden_size.count("student"),
        samples=tuple(
            Sample(
                prompt=sample.text("prompt"), teacher=sample.optional_text("teacher"), student=sample.text("student")
            )
            for sample in values.sections("samples")
        ),
        versions=values.section("versions").texts(),
        device=machine.text("device"),
        threads=machine.optional_count("threads"),
        dtype=machine.text("dtype"),
    )


def _card(values: Fields) -> Card:
    return Card(
        name=values.text("name"),
        cross_entropy=values.number("cross_entropy"),
        perplexity=values.number("perplexity"),
        bits_per_byte=values.number("bits_per_byte"),
        parameters=values.count("parameters"),
        file_size_bytes=values.count("file_size_bytes"),
        prefill_tokens_per_second=values.number("prefill_tokens_per_second"),
        decode_tokens_per_second=values.number("decode_tokens_per_second"),
    )
