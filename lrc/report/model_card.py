"""The model card: README.md with the hub's front matter, written from what the run's own files say.

A fact that no file holds is said to be unknown; nothing is looked up.
"""

from dataclasses import dataclass, replace

from huggingface_hub import EvalResult, ModelCardData

from lrc.method_config import Method
from lrc.report.facts_page import code, data_name, escaped, facts_block, markdown_table, plot_blocks, scores_blocks
from lrc.report.licence import UNKNOWN, Licence
from lrc.report.number_text import count_text
from lrc.report.plots import Plot
from lrc.report.records import RunData
from lrc.report.scorecard import method_of, short_name, summary_text, teacher_name, title_text, training_tokens

HUB_NAMES = {
    "arc_easy": ("allenai/ai2_arc", "ARC-Easy"),
    "arc_challenge": ("allenai/ai2_arc", "ARC-Challenge"),
    "logiqa": ("EleutherAI/logiqa", "LogiQA"),
    "commonsense_qa": ("tau/commonsense_qa", "CommonsenseQA"),
    "piqa": ("baber/piqa", "PIQA"),
    "winogrande": ("allenai/winogrande", "WinoGrande"),
    "boolq": ("aps/super_glue", "BoolQ"),
    "sciq": ("allenai/sciq", "SciQ"),
    "mmlu": ("cais/mmlu", "MMLU"),
    "gsm8k": ("openai/gsm8k", "GSM8K"),
    "humaneval": ("openai/openai_humaneval", "HumanEval"),
    "mbpp": ("google-research-datasets/mbpp", "MBPP"),
}
"""Task -> data set on the hub, and its name; another task stands under its own name."""
METRIC_TYPES = {"acc": "accuracy", "acc_norm": "accuracy", "exact_match": "exact_match"}
BASELINE = (
    "A baseline for Low-Rank Clone (arXiv 2505.12781): random values in the shape of a smaller teacher, all trained"
)
MADE: dict[Method, str] = {
    "clone": "A student of its teacher by Low-Rank Clone (arXiv 2505.12781): projections of the teacher's weights, "
    "trained to follow its activations and predictions.",
    "only_kd": f"{BASELINE} to follow the teacher's predictions.",
    "tiny_bert": f"{BASELINE} to follow the teacher's hidden states, attention and predictions.",
    "origin": f"{BASELINE} on text alone; the teacher did not run.",
}
"""How a student of each method came about."""
LEARNT = (
    "The student's weights were random and learnt from what the teacher computes; none is made of the teacher's. "
    "Whether its licence binds the student all the same stands there: some have terms for what learns from outputs."
)
BOUND: dict[Method, str] = {
    "clone": "The student's weights are computed from the teacher's, so the teacher's licence binds them too; some "
    "demand a notice or a name.",
    "only_kd": LEARNT,
    "tiny_bert": LEARNT,
    "origin": "The student's weights have nothing of the teacher's; the folder's tokenizer and configuration have.",
}
"""What the teacher's licence has to do with a student of each method."""
FEW_TOKENS = 1_000_000_000
"""Below it the card says that the student is not a finished model; the published students saw 10 to 20 billion."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where the student comes from, as far as the verb could tell."""

    teacher_id: str | None
    """The teacher's id on the hub; None for a folder."""
    licence: Licence
    """The teacher's."""
    repo: str | None
    """The student's id on the hub; None if it is not uploaded."""
    after_training: str | None = None
    """What was done to the student after distillation, in words."""
    scored_other: str | None = None
    """Folder or hub id of another model, if the scores are of that one and not of the student."""
    model_type: str | None = None
    """transformers' name of the student's architecture; None: that of its teacher."""
    quantised_by: str | None = None
    """Package that holds the student's quantised weights; None: they are plain."""


def model_card(data: RunData, plots: dict[str, Plot], origin: Origin) -> str:
    """Return the card: front matter, then the facts in plain sentences and tables."""
    # what the scorecard says of the model that it scored is true of no other
    known = data if origin.scored_other is None else replace(data, results=None)
    blocks = [f"---\n{front_matter_text(data, origin)}\n---", f"# {escaped(title_text(known))}"]
    blocks.append(f"{escaped(summary_text(known))} {MADE[method_of(data)]}".strip())
    blocks += ["## Facts", facts_block(known)]
    if origin.after_training:
        blocks.append(f"After {training_word(data)}: {origin.after_training}.")
    blocks += ["## Use", _usage(origin), "## Teacher and licence", _licence_text(data, origin)]
    blocks += ["## Training data", *_data_blocks(data)]
    scores = scores_blocks(data)
    if origin.scored_other is not None:
        scores.insert(0, f"**{other_scored_text(code(short_name(origin.scored_other)))}**")
    blocks += ["## Scores", *(scores or ["Not scored yet."])]
    blocks += ["## Intended use and limits", _limits(data)]
    links = plot_blocks(plots)
    blocks += ["## Plots", *links] if links else []
    return "\n\n".join(blocks) + "\n"


def training_word(data: RunData) -> str:
    """Word the run's own training; only `origin` trains without the teacher."""
    return "training" if method_of(data) == "origin" else "distillation"


def other_scored_text(name: str) -> str:
    """Word the warning that the scores are of another model, which `name` is."""
    return f"Scored was {name}, another model than this student."


def front_matter_text(data: RunData, origin: Origin) -> str:
    """Return the YAML that the hub reads."""
    licence, results = origin.licence, [] if origin.scored_other is not None else _eval_results(data)
    paths = [source.path for source in data.sources] + ([data.fine_tuned.data] if data.fine_tuned else [])
    datasets = sorted({name for path in paths if (name := _hub_dataset(path))})
    method = method_of(data)
    tags = (["low-rank-clone"] if method == "clone" else []) + (["distillation"] if method != "origin" else [])
    card = ModelCardData(
        license=licence.id,
        license_name=licence.name,
        license_link=licence.link,
        library_name="transformers",
        pipeline_tag="text-generation",
        base_model=None if method == "origin" else origin.teacher_id,
        datasets=datasets or None,
        tags=tags or None,
        model_name=short_name(origin.repo or title_text(data)) if results else None,
        eval_results=results or None,
    )
    return card.to_yaml()


def _eval_results(data: RunData) -> list[EvalResult]:
    """Return the scores as the hub lists them; none of a part of a benchmark or of rows that are not the hub's."""
    if data.tasks is None or data.tasks.limit is not None or data.tasks.data != "hub":
        return []
    found = []
    for row in data.tasks.scores:
        if row.student is None or row.student.value is None:
            continue
        dataset, name = HUB_NAMES.get(row.task, (row.task, row.task))
        metric = row.metric.split(",")[0]
        found.append(
            EvalResult(
                task_type="text-generation",
                dataset_type=dataset,
                dataset_name=name,
                dataset_config=name,  # keeps ARC-Easy and ARC-Challenge, of one data set, apart
                dataset_args={"num_few_shot": row.num_fewshot},
                metric_type=METRIC_TYPES.get(metric, metric),
                metric_name=metric,
                metric_value=row.student.value,
            )
        )
    return found


def _hub_dataset(path: str) -> str | None:
    """Return OWNER/NAME of `hf://datasets/OWNER/NAME/...`."""
    prefix = "hf://datasets/"
    parts = path.removeprefix(prefix).split("/") if path.startswith(prefix) else []
    return f"{parts[0]}/{parts[1].split('@')[0]}" if len(parts) > 2 else None


def _usage(origin: Origin) -> str:
    name = origin.repo or "STUDENT_FOLDER"
    kind = "the teacher's own class" if origin.model_type is None else f"the model type {code(origin.model_type)}"
    beside = "" if origin.quantised_by is None else f" with {code(origin.quantised_by)} installed"
    return (
        f"A {'plain' if origin.quantised_by is None else 'quantised'} model folder of {kind}, which stock transformers "
        f"loads{beside}:\n\n"
        "```python\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("{name}")\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")\n'
        "```"
    )


def _licence_text(data: RunData, origin: Origin) -> str:
    teacher = origin.teacher_id or teacher_name(data)
    who = "The run's files do not name the teacher." if teacher is None else f"The teacher is {code(teacher)}."
    licence = origin.licence
    if licence.id == UNKNOWN:
        what = "Its licence is unknown: look it up before you use or share the student."
    else:
        where = f", says {code(licence.found_in)} of its folder" if licence.found_in else ""
        what = f"Its licence is {code(licence.name or licence.id)}{where}."
    return f"{who} {what} {BOUND[method_of(data)]}"


def _data_blocks(data: RunData) -> list[str]:
    blocks = _distillation_data(data)
    if (found := data.fine_tuned) is not None:
        blocks.append(
            f"Then it was fine-tuned on {found.sequences:,} chats ({count_text(found.tokens, 3)} tokens) made of "
            f"{found.rows:,} rows of {code(data_name(found.data))}."
        )
    return blocks


def _distillation_data(data: RunData) -> list[str]:
    tokens = training_tokens(data)
    seen = "The number of training tokens is unknown." if tokens is None else f"The student saw {tokens:,} tokens."
    if not data.sources:
        name = None if data.recipe is None else short_name(data.recipe.data.train)
        where = "is unknown" if name is None else f"is {code(name)}; no manifest says what went into it"
        return [f"{seen} The training data {where}."]
    header = ("Source", "Kind", "Rows", "Documents kept", "Tokens")
    rows = [
        (
            code(data_name(source.path)),
            source.kind,
            f"{source.rows:,}",
            f"{source.kept:,}",
            count_text(source.tokens),
        )
        for source in data.sources
    ]
    return [f"{seen} Prepared sources:", markdown_table(header, rows)]


def _limits(data: RunData) -> str:
    method = method_of(data)
    uses = "For the uses of its teacher where a smaller model is wanted, and for research on compression."
    source = "its training text" if method == "origin" else "the teacher"
    lines = [
        uses if method == "clone" else "For comparison with a clone of the same shape and tokens.",
        f"It inherits what {source} gets wrong, biases and unsafe answers included, and adds errors of its own.",
        "Beyond the scores above nothing was tested: no safety evaluation, no languages or domains but those of the "
        "data.",
    ]
    tokens = training_tokens(data)
    if tokens is not None and tokens < FEW_TOKENS:
        lines.append(
            f"It saw {count_text(tokens, 3)} tokens where the published students saw 10 B to 20 B: a demonstration of "
            f"{'the method' if method == 'clone' else 'a baseline'}, not a finished model."
        )
    if data.parity is not None and not data.parity.passed:
        lines.append("**The exported folder failed its parity check: it is not the model that was trained.**")
    return "\n".join(f"- {line}" for line in lines)
