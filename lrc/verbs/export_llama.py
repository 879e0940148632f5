"""`lrc export --as llama`: a student as the very same LlamaForCausalLM, which passed its parity check."""

import json
from pathlib import Path

from lrc.config import ConvertConfig
from lrc.export.as_llama import llama_plan, write_llama
from lrc.export.folder import check_target, written_folder
from lrc.export.llama_parity import check_llama_parity
from lrc.verbs.progress import progress_lines, say
from lrc.verbs.sft_facts import carry_sft_facts


def export_llama(
    student: str,
    out: Path,
    *,
    max_shard_bytes: int = ConvertConfig.max_shard_bytes,
    overwrite: bool = False,
    dry_run: bool = False,
) -> Path:
    """Re-express a student as LlamaForCausalLM, prove the result and publish it as `out`.

    Args:
        student: Folder or hub id.
        out: Folder of the Llama.
        max_shard_bytes: Largest weights file.
        overwrite: Replace `out`.
        dry_run: Check everything, write nothing.

    Returns:
        `out`.

    Raises:
        ConfigError, CheckpointError: Bad input, before anything is written.
        NumericsError: The Llama's logits are not the student's; nothing is published.
    """
    check_target(out, overwrite=overwrite, inputs=[Path(student)])
    plan = llama_plan(student)
    narrow, wide = plan.config.hidden_size, plan.llama.hidden_size
    if wide != narrow:
        say(
            f"note: hidden size {narrow} is padded with zeros to {wide}, the next multiple of "
            f"{plan.llama.num_attention_heads} heads, which Llama wants"
        )
    if dry_run:
        say(f"dry run: {student} can be a Llama: good")
        return out
    with written_folder(out, overwrite=overwrite) as draft:
        with progress_lines("write", "tensors", lines=4) as progress:
            write_llama(plan, draft, max_shard_bytes=max_shard_bytes, progress=progress)
        facts = check_llama_parity(plan, draft)
        (draft / "parity.json").write_text(json.dumps(facts, indent=2) + "\n")
        carry_sft_facts(plan.folder, draft)
    say(
        f"parity: {facts['after_reload']['relative_difference']:.1e} of the logits' scale; rounding to "
        f"{facts['dtype']} {facts['rounding']:.1e}"
    )
    return out
