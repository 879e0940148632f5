"""Carries what is known of a student's fine-tuning on to its exports, so that their model card can tell."""

import shutil
from pathlib import Path

from lrc.sft_config import SFT_FACTS


def carry_sft_facts(student: Path, export: Path) -> None:
    """Copy `sft.json` of a fine-tuned student; of another nothing.

    Args:
        student: Folder that was exported.
        export: Folder of the export.
    """
    if (student / SFT_FACTS).is_file():
        shutil.copyfile(student / SFT_FACTS, export / SFT_FACTS)
