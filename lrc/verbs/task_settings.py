"""What `lrc evaluate` scores of benchmarks, from which data; the command line makes a flag of each field."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """Benchmarks through lm-evaluation-harness."""

    tasks: str | None = None
    """Benchmarks by name, separated by commas; "seed": the published nine, "reasoning": gsm8k and code."""
    data_dir: str | None = None
    """Folder with NAME.jsonl a task, or "embedded:benchmarks" (default: the hub)."""
    write_tasks: Path | None = None
    """New folder for the task files of --data-dir, to use with lm_eval --include_path."""
    limit: int | None = None
    """Items of each task, for a quick look."""
    num_fewshot: int | None = None
    """Examples in each prompt (default: what the task says, else 0)."""
    batch_size: str = "auto"
    """Prompts at once; "auto" is the most that fit on a GPU, 1 on a CPU."""
    allow_code: bool = False
    """Run tasks that execute what the model writes (humaneval, mbpp)."""

    def problems(self) -> list[str]:
        """Check what the types can't say; returns a line a problem."""
        problems = []
        if self.tasks is None and self != TaskSettings():
            problems.append("the flags that say how to score tasks need --tasks, which names them")
        if self.batch_size != "auto" and not (self.batch_size.isdecimal() and int(self.batch_size) > 0):
            problems.append(f"--batch-size must be 'auto' or a number above 0, found {self.batch_size!r}")
        if self.limit is not None and self.limit < 1:
            problems.append(f"--limit must be at least 1, found {self.limit}")
        if self.num_fewshot is not None and self.num_fewshot < 0:
            problems.append(f"--num-fewshot must be at least 0, found {self.num_fewshot}")
        folder = self.write_tasks
        if folder is not None:
            if self.data_dir is None:
                problems.append("--write-tasks writes task files for local data, so it needs --data-dir")
            if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
                problems.append(f"--write-tasks must name a new folder, but {folder} exists")
        return problems


NO_TASKS = TaskSettings()
"""Held-out text alone."""
