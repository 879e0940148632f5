"""Fault drill: seeded rounds of kills, full disks, read-only folders, damaged files and signals, then resume.

    python benchmarks/faults.py                  # 50 rounds on 1 and 2 processes (a few minutes on one core)
    python benchmarks/faults.py --rounds 6 --seed 3
    python benchmarks/faults.py --processes 2 --strategy fsdp2      # checkpoints in pieces

A round is a tiny run that one to three faults hit, each followed by `--resume auto`. It has failed unless the run then
ends with the bytes of an uninterrupted one (weights and optimiser), with its losses and its held-out measures, each
step logged and measured once; unless a fault ended the way it should (exit code, file named); or if SIGTERM lost a
step. Faults are dealt like cards: none comes again before all of `--kinds` have come. Prints rounds, faults, lost
steps and failures, and writes the same as JSON.

Processes are forks of this one (`benchmarks/ranks.py`): a start costs a tenth of Python's own.
"""

import argparse
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from ranks import start_ranks, wait_for
from transformers import LlamaConfig, LlamaForCausalLM

import lrc.training.checkpoint as checkpoint_module
import lrc.training.loop as loop_module
import lrc.verbs.train as train_module
from lrc.config import Recipe, recipe_from_dict
from lrc.data.folder_hash import find_damage
from lrc.training.checkpoint_list import checkpoints, step_of
from lrc.training.preemption import PREEMPTED

STEPS, SAVE_STEPS, LENGTH, SEQUENCES = 12, 3, 16, 4
SHARDED = ("fsdp2", "zero3")
"""Strategies in which every rank writes."""
KINDS = ("kill", "kill while saving", "kill while replacing", "disk full", "read-only", "cut", "flip", "SIGTERM")
NOBODY = 65_534
PATIENCE_SECONDS = 120.0
GRACE_SECONDS = 2.0
"""How long the other ranks may go on when one has failed; a launcher ends them too."""


@dataclass
class Tally:
    """What the drill has seen."""

    rounds: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    lost_steps: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


def make_inputs(root: Path) -> Recipe:
    """Write a tiny teacher and tokenised rows; return the recipe of the uninterrupted run."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=48, num_key_value_heads=2, head_dim=8, tie_word_embeddings=False, **sizes)
    LlamaForCausalLM(config).save_pretrained(root / "teacher")
    rows = torch.randint(4, 48, (66, LENGTH)).tolist()
    for name, part in (("rows", rows[:-2]), ("held_out", rows[-2:])):
        (root / f"{name}.jsonl").write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in part))
    values: dict[str, Any] = {
        "run": str(root / "whole"),
        "teacher": str(root / "teacher"),
        "student": {"hidden_size": 16},
        "start": {"method": "random"},
        "data": {
            "train": str(root / "rows.jsonl"),
            "held_out": str(root / "held_out.jsonl"),
            "held_out_tokens": 2 * LENGTH,
            "sequence_length": LENGTH,
        },
        "train": {
            "max_steps": STEPS,
            "batch_size": SEQUENCES,
            "learning_rate": 1e-3,
            "log_steps": 1,
            "save_steps": SAVE_STEPS,
            "save_total_limit": 2,
            "evaluate_steps": 1,  # a signal at any step leaves a measure for later, and with it a checkpoint to replace
            "compute_dtype": "float32",
            "device": "cpu",
        },
    }
    return recipe_from_dict(values, origin="faults")


class Drill:
    """One seed's rounds below a folder."""

    def __init__(
        self,
        root: Path,
        seed: int,
        say: Callable[[str], None],
        kinds: tuple[str, ...] = KINDS,
        *,
        strategy: str = "auto",
    ) -> None:
        self.root = root
        self.strategy: Any = strategy
        self.kinds = kinds
        self.deck: list[str] = []
        self.damaged: dict[Path, set[str]] = {}
        """Checkpoints of the round to the files in them that were damaged."""
        self.random = random.Random(seed)
        self.say = say
        self.tally = Tally()
        self.recipe = make_inputs(root)
        root.chmod(0o755)  # the read-only rounds go on as nobody
        for path in (root / "teacher").iterdir():
            path.chmod(0o644)
        train_module.train(self.recipe, dry_run=True)
        # the family was checked just now, in the parent of all processes
        train_module.require_family = lambda config: None  # type: ignore[attr-defined]
        self.seconds: dict[int, float] = {}
        self.whole: dict[int, tuple[dict[str, bytes], dict[int, float], dict[int, float]]] = {}

    def run(self, rounds: int, processes: tuple[int, ...]) -> Tally:
        """Do the rounds in turn on each number of processes."""
        for count in processes:
            began = time.monotonic()
            codes = self.launch(self.named(f"whole-{count}", count), count)
            assert codes == [0] * count, (self.root / "output" / f"whole-{count}" / "rank-0.txt").read_text()
            self.seconds[count] = time.monotonic() - began
            self.whole[count] = self.result(self.named(f"whole-{count}", count))
        for number in range(rounds):
            self.round(number, processes[number % len(processes)])
        return self.tally

    def named(self, name: str, count: int) -> Recipe:
        """Name a run on `count` processes; a step has the same sequences on any."""
        strategy = self.strategy if count > 1 else "auto"
        settings = replace(self.recipe.train, batch_size=SEQUENCES // count, strategy=strategy)
        return replace(self.recipe, run=str(self.root / name), train=settings)

    def launch(
        self,
        recipe: Recipe,
        count: int,
        *,
        prepare: Callable[[int], None] = lambda rank: None,
        strike: Callable[[list[Any]], None] = lambda ranks: None,
    ) -> list[int]:
        """Start or resume a run; `prepare(rank)` acts in each process, `strike(ranks)` from outside."""

        def work(rank: int) -> None:
            prepare(rank)
            train_module.train(recipe, resume="auto")

        ranks = start_ranks(work, count, self.root / "output" / Path(recipe.run).name)
        began = time.monotonic()
        strike(ranks)
        codes = wait_for(ranks, seconds=PATIENCE_SECONDS, grace=GRACE_SECONDS)
        if time.monotonic() - began > PATIENCE_SECONDS / 3:  # ranks.py has asked each process where it stands
            folder = self.root / "output" / Path(recipe.run).name
            raise AssertionError(f"a sitting hung: {codes}\n" + "\n".join(map(_tail, sorted(folder.iterdir()))))
        return codes

    def result(self, recipe: Recipe) -> tuple[dict[str, bytes], dict[int, float], dict[int, float]]:
        """Read a finished run: the last checkpoint's tensors, the loss of each step and its held-out KL."""
        folder = Path(recipe.run) / "train"
        last = folder / f"checkpoint-{STEPS}"
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for kind, first in (("train", 1), ("held_out", 0)):
            steps = [line["step"] for line in lines if line["kind"] == kind]
            assert steps == list(range(first, STEPS + 1)), f"{kind}: logged steps {steps}"
        assert find_damage(last) is None
        tensors = {path.name: path.read_bytes() for path in last.glob("*.safetensors")}
        losses = {line["step"]: line["loss"] for line in lines if line["kind"] == "train"}
        return tensors, losses, {line["step"]: line["kl"] for line in lines if line["kind"] == "held_out"}

    def round(self, number: int, count: int) -> None:
        """Hit one run with faults, finish it, and compare it with the uninterrupted one."""
        recipe = self.named(f"round-{number}", count)
        kinds = [self.deal() for _ in range(self.random.randint(1, 3))]
        self.damaged.clear()
        story: list[str] = []
        began = time.monotonic()
        try:
            for kind in kinds:
                self.tally.faults[kind] += 1
                story.append(self.fault(kind, recipe, count))
            codes = self.launch(recipe, count)
            assert codes == [0] * count, f"the last resume ended with {codes}"
            assert self.result(recipe) == self.whole[count], "the result differs from the uninterrupted run's"
            self.check_named(recipe)
            shutil.rmtree(recipe.run)
        except AssertionError as error:
            output = self.root / "output" / Path(recipe.run).name / "rank-0.txt"
            self.tally.failures.append(f"round {number} ({count} processes, {kinds}): {error}\n{_tail(output)}")
            self.say(self.tally.failures[-1])
        self.tally.rounds += 1
        self.say(f"round {number:>3}  {count} processes  {time.monotonic() - began:.1f} s  {'; '.join(story)}")

    def deal(self) -> str:
        """Draw the next kind of fault."""
        if not self.deck:
            self.deck = self.random.sample(self.kinds, len(self.kinds))
        return self.deck.pop()

    def fault(self, kind: str, recipe: Recipe, count: int) -> str:
        """Let one fault happen, check how the run ended, and count the steps that a resume has to do again."""
        actions: dict[str, Callable[[Recipe, int], str]] = {
            "kill": self.kill,
            "kill while saving": self.kill_while_saving,
            "kill while replacing": self.kill_while_replacing,
            "disk full": self.fill_disk,
            "read-only": self.forbid_writing,
            "cut": lambda recipe, count: self.damage(recipe, count, cuts=True),
            "flip": lambda recipe, count: self.damage(recipe, count, cuts=False),
            "SIGTERM": self.terminate,
        }
        before = (last_logged(recipe), newest_step(recipe))
        what = actions[kind](recipe, count)
        after = (last_logged(recipe), newest_step(recipe))
        # a run that was hit before it had gone on has lost no more than was lost already
        lost = 0 if after == before else max(0, after[0] - after[1])
        self.tally.lost_steps[kind] += lost
        if kind == "SIGTERM":
            assert lost == 0, f"SIGTERM lost {lost} steps"
        return f"{kind} ({what}, {lost} steps to do again)"

    def moment(self, count: int) -> float:
        """Choose a moment of a run, in seconds from its start."""
        return self.random.uniform(0.0, 1.1) * self.seconds[count]

    def kill(self, recipe: Recipe, count: int) -> str:
        victim, seconds = self.random.randrange(count), self.moment(count)

        def strike(ranks: list[Any]) -> None:
            time.sleep(seconds)
            ranks[victim].kill(signal.SIGKILL)

        codes = self.launch(recipe, count, strike=strike)
        assert codes[victim] in (0, -signal.SIGKILL), f"kill -9 ended with {codes}"
        return f"rank {victim} after {seconds:.2f} s"

    def kill_while_saving(self, recipe: Recipe, count: int) -> str:
        call, before = self.random.randint(1, 24), self.random.random() < 0.5
        victim = self.random.randrange(count) if self.strategy in SHARDED else 0

        def prepare(rank: int) -> None:
            if rank == victim:
                die_at_call(call, before=before)

        codes = self.launch(recipe, count, prepare=prepare)
        assert codes[victim] in (0, -signal.SIGKILL), f"kill -9 while saving ended with {codes}"
        return f"rank {victim} {'before' if before else 'after'} call {call}"

    def kill_while_replacing(self, recipe: Recipe, count: int) -> str:
        """Stop a run by a signal, so that its checkpoint is due a measure, and kill it as it replaces that one."""
        first, before = newest_step(recipe), self.random.random() < 0.5
        if first == STEPS:
            return "finished before"
        batch = self.random.randint(first, STEPS - 1)

        def prepare_to_stop(rank: int) -> None:
            if rank == 0:
                stop_at_batch(batch)

        def prepare(rank: int) -> None:
            if rank == 0:
                die_at_replacing(before=before)

        codes = self.launch(recipe, count, prepare=prepare_to_stop)
        assert codes == [PREEMPTED] * count, f"SIGTERM in a step ended with {codes}"
        codes = self.launch(recipe, count, prepare=prepare)
        assert codes[0] == -signal.SIGKILL, f"kill -9 while replacing ended with {codes}"
        return f"after step {batch + 1}, {'before' if before else 'after'} the new one had its name"

    def fill_disk(self, recipe: Recipe, count: int) -> str:
        size = self.random.randint(500, 40_000)

        def prepare(rank: int) -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

        codes = self.launch(recipe, count, prepare=prepare)
        if 2 in codes:
            assert "disk is full" in self.output(recipe), "a full disk was not named"
        else:
            assert codes == [0] * count, f"a full disk ended with {codes}"
        return f"files up to {size} bytes"

    def forbid_writing(self, recipe: Recipe, count: int) -> str:
        folder = Path(recipe.run) / "train"
        folder.mkdir(parents=True, exist_ok=True)
        is_done = bool(checkpoints(folder)) and newest_step(recipe) == STEPS
        paths = [folder.parent, folder, *folder.glob("*.*")]
        modes = [path.stat().st_mode for path in paths]
        for path, mode in zip(paths, modes, strict=True):
            path.chmod(mode & 0o555 | 0o444)

        def prepare(rank: int) -> None:
            if os.getuid() == 0:  # who may write anywhere
                os.setuid(NOBODY)

        try:
            codes = self.launch(recipe, count, prepare=prepare)
        finally:
            for path, mode in zip(paths, modes, strict=True):
                path.chmod(mode)
        assert codes[0] == 2, f"a read-only folder ended with {codes}"
        assert "can't be written" in self.output(recipe), "a read-only folder was not named"
        return "finished before" if is_done else "refused"

    def damage(self, recipe: Recipe, count: int, *, cuts: bool) -> str:
        folder = Path(recipe.run) / "train"
        while not (found := checkpoints(folder)):
            self.kill(recipe, count)
        path = self.random.choice(sorted(found[-1].iterdir()))
        content = bytearray(path.read_bytes())
        position = self.random.randrange(len(content))
        if cuts:
            del content[position:]
        else:
            content[position] ^= 1 << self.random.randrange(8)
        path.write_bytes(content)
        self.damaged.setdefault(found[-1], set()).add(path.name)
        # it is to be named at once, so the next sitting is cut short
        if len(found) == 1:
            codes = self.launch(recipe, count)
            assert set(codes) == {2}, f"a run whose only checkpoint is damaged ended with {codes}"
            self.check_named(recipe)
            shutil.rmtree(found[-1])  # the user starts anew
        else:
            self.kill(recipe, count) if self.random.random() < 0.5 else self.terminate(recipe, count)
        return f"{path.parent.name}/{path.name} at byte {position}"

    def check_named(self, recipe: Recipe) -> None:
        """Check that the output names every checkpoint of the round that was damaged, with a file that was."""
        said = self.output(recipe)
        for path, names in self.damaged.items():
            files = "|".join(map(re.escape, sorted(names)))
            assert re.search(rf"{re.escape(str(path))} is damaged and passed over: ({files})", said), (
                f"{path} was damaged ({sorted(names)}) and not named"
            )

    def terminate(self, recipe: Recipe, count: int) -> str:
        number, seconds = self.random.choice((signal.SIGTERM, signal.SIGUSR1)), self.moment(count)

        def strike(ranks: list[Any]) -> None:
            time.sleep(seconds)
            for rank in ranks:
                rank.kill(number)

        codes = self.launch(recipe, count, strike=strike)
        # a signal before the handlers stand, or after the last step, ends a process as usual; the drill, as a launcher
        # does, then kills those who wait for it
        usual = {-number, -signal.SIGKILL} if -number in codes else set()
        assert set(codes) <= {0, PREEMPTED} | usual, f"{number.name} ended with {codes}"
        return f"{number.name} after {seconds:.2f} s"

    def output(self, recipe: Recipe) -> str:
        """Read what the first process has printed in all sittings."""
        path = self.root / "output" / Path(recipe.run).name / "rank-0.txt"
        return path.read_text() if path.is_file() else ""


def die_at_call(number: int, *, before: bool) -> None:
    """End this process with SIGKILL at the n-th call of what a save is made of, before or after that call."""
    calls = 0

    def deadly(inner: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == number and before:
                os.kill(os.getpid(), signal.SIGKILL)
            result = inner(*arguments, **options)
            if calls == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    for name in ("save_file", "write_sums", "_flush", "remove_checkpoint"):
        setattr(checkpoint_module, name, deadly(getattr(checkpoint_module, name)))
    shutil.rmtree = deadly(shutil.rmtree)  # type: ignore[assignment]
    Path.rename = deadly(Path.rename)  # type: ignore[method-assign]


def stop_at_batch(number: int) -> None:
    """Send SIGTERM to this process when the loop reads a batch."""
    read = loop_module.step_batches

    def reading(blocks: Any, plan: Any, batch: int, **options: Any) -> Any:
        if batch == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return read(blocks, plan, batch, **options)

    loop_module.step_batches = reading  # type: ignore[assignment]


def die_at_replacing(*, before: bool) -> None:
    """End this process with SIGKILL between a checkpoint's move aside and its successor's, or right after both."""
    rename, is_aside = Path.rename, False

    def renaming(self: Path, target: Path) -> Path:
        nonlocal is_aside
        if is_aside and before:
            os.kill(os.getpid(), signal.SIGKILL)
        found = rename(self, target)
        if is_aside:
            os.kill(os.getpid(), signal.SIGKILL)
        is_aside = target.name.endswith(checkpoint_module.REPLACED)
        return found

    Path.rename = renaming  # type: ignore[method-assign, assignment]


def last_logged(recipe: Recipe) -> int:
    """Return the last step that the log has; 0 without one."""
    path = Path(recipe.run) / "train" / "metrics.jsonl"
    steps = re.findall(r'"step": (\d+)', path.read_text()) if path.is_file() else []
    return max(map(int, steps), default=0)


def newest_step(recipe: Recipe) -> int:
    """Return the step of the newest checkpoint that is whole; 0 without one."""
    found = [path for path in checkpoints(Path(recipe.run) / "train") if find_damage(path) is None]
    return step_of(found[-1]) if found else 0


def _tail(path: Path) -> str:
    return path.read_text()[-3000:] if path.is_file() else ""


def table(tally: Tally, seconds: float) -> str:
    rows = ["| fault | times | steps done again |", "|---|---|---|"]
    rows += [f"| {kind} | {tally.faults[kind]} | {tally.lost_steps[kind]} |" for kind in KINDS]
    total, lost = tally.faults.total(), tally.lost_steps.total()
    last = f"rounds {tally.rounds}, faults {total}, lost steps {lost}, failures {len(tally.failures)}, {seconds:.0f} s"
    return "\n".join([*rows, "", last])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--strategy", default="auto", help="train.strategy where there are several processes")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="faults to choose from")
    parser.add_argument("--out", type=Path, default=Path("runs/faults/faults.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        tell = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731
        drill = Drill(Path(folder), arguments.seed, tell, tuple(arguments.kinds), strategy=arguments.strategy)
        tally = drill.run(arguments.rounds, tuple(arguments.processes))
    for failure in tally.failures:
        print(failure)
    print(table(tally, time.monotonic() - began))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    facts = {"rounds": tally.rounds, "faults": tally.faults, "lost_steps": tally.lost_steps}
    arguments.out.write_text(json.dumps({**facts, "failures": tally.failures}, indent=2) + "\n")
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(main())
