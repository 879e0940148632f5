"""What a width costs at the head: the closed form, the best states, and states that are the teacher's own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.arena import head_floor
from benchmarks.arena.cells import parse_cell
from benchmarks.arena.run import Arena
from lrc.models.teacher import load_model

VOCABULARY, TOKENS, D_TEACHER, D_STUDENT = 40, 3_000, 8, 4


@pytest.fixture
def states() -> head_floor.States:
    generator = torch.Generator().manual_seed(0)
    scales = torch.linspace(0.2, 3, D_TEACHER)
    head = torch.randn(VOCABULARY, D_TEACHER, generator=generator) * scales
    drawn = torch.randn(TOKENS, D_TEACHER, generator=generator)
    measured = drawn[:64]
    labels = torch.randint(0, VOCABULARY, (64,), generator=generator)
    return head_floor.States(train=drawn, measured=dict.fromkeys(head_floor.MEASURED, (measured, labels)), head=head)


def student(states: head_floor.States, d_student: int = D_STUDENT) -> head_floor.Student:
    directions = head_floor.closed_form(states.head, d_student)
    return head_floor.Student(nn.Parameter(directions.clone()), nn.Parameter(directions.clone()))


def kl(states: head_floor.States, made: head_floor.Student, best: int | None = None) -> float:
    found: float = head_floor.measures(made, states, best=best)["held_out"]["kl"]
    return found


def test_whitening_gives_states_unit_energy_and_keeps_logits() -> None:
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randn(500, 6, generator=generator) @ torch.randn(6, 6, generator=generator)
    less, more = head_floor.whitened(drawn)
    white = drawn.double() @ less
    torch.testing.assert_close(white.T @ white / 500, torch.eye(6, dtype=torch.float64))
    torch.testing.assert_close(white @ more, drawn.double())


def test_the_closed_form_has_the_least_squared_error_of_centred_logits(states: head_floor.States) -> None:
    directions = head_floor.closed_form(states.head, D_STUDENT).double()
    torch.testing.assert_close(directions.T @ directions, torch.eye(D_STUDENT, dtype=torch.float64), atol=1e-6, rtol=0)
    centred = (states.head - states.head.mean(0)).double()
    lost = (centred - centred @ directions @ directions.T).square().sum()
    singular = torch.linalg.svdvals(centred)
    assert float(lost) == pytest.approx(float(singular[D_STUDENT:].square().sum()), rel=1e-6)


def test_full_width_loses_nothing(states: head_floor.States) -> None:
    assert kl(states, student(states, D_TEACHER)) == pytest.approx(0, abs=1e-6)


def least_kl(trained: list[torch.Tensor], logits: Callable[[], torch.Tensor], teacher_logits: torch.Tensor) -> float:
    """Minimise the mean KL of the plain formula in float64 by L-BFGS."""
    log_t = torch.log_softmax(teacher_logits, -1)
    optimizer = torch.optim.LBFGS(trained, max_iter=500, line_search_fn="strong_wolfe")

    def objective() -> torch.Tensor:
        optimizer.zero_grad()
        found = (log_t.exp() * (log_t - torch.log_softmax(logits(), -1))).sum(-1).mean()
        found.backward()
        return found

    optimizer.step(objective)  # type: ignore[arg-type]  # its stub wants a float
    return objective().item()


@pytest.mark.parametrize("has_free_head", [False, True])
def test_training_comes_to_the_least_kl(states: head_floor.States, has_free_head: bool) -> None:
    made = student(states)
    if has_free_head:
        made.free = nn.Parameter((states.head @ made.up).detach())
    everything = head_floor.States(
        train=states.train,
        measured=dict.fromkeys(head_floor.MEASURED, (states.train, torch.zeros(TOKENS, dtype=torch.long))),
        head=states.head,
    )
    teacher, head = states.train.double(), states.head.double()
    down = made.down.detach().double().requires_grad_()
    matrix = (made.up if made.free is None else made.free).detach().double().requires_grad_()
    wanted = least_kl(
        [down, matrix],
        lambda: teacher @ down @ (matrix if has_free_head else head @ matrix).T,
        teacher @ head.T,
    )
    up = made.up.detach().clone()
    told: list[tuple[int, int]] = []
    head_floor.train(made, states, passes=150, rate=0.02, progress=lambda done, total: told.append((done, total)))
    assert kl(everything, made) == pytest.approx(wanted, rel=0.01)
    assert told[-1] == (300, 300)
    assert torch.equal(made.up, up) is has_free_head


def test_best_states_have_the_least_kl_from_anywhere(states: head_floor.States) -> None:
    made = student(states)
    teacher, _ = states.measured["held_out"]
    head = made.head(states.head).detach().double()
    anywhere = torch.zeros(len(teacher), D_STUDENT, dtype=torch.float64, requires_grad=True)
    wanted = least_kl([anywhere], lambda: anywhere @ head.T, (teacher @ states.head.T).double())
    assert kl(states, made, best=len(teacher)) == pytest.approx(wanted, rel=0.01)
    assert wanted < 0.7 * kl(states, made)


def test_what_is_gathered_gives_the_teachers_own_logits(tmp_path: Path) -> None:
    arena = Arena(root=tmp_path, committed=tmp_path / "committed", tiny_teacher_steps=3)
    cell = parse_cell("tiny/half/default/16k/seed0")
    texts = arena.texts(cell)
    gathered = head_floor.gather(arena, cell, texts, 640)
    model = load_model(arena.teacher(cell, texts), dtype=torch.float32, device=torch.device("cpu"))
    assert gathered.train.shape == (640, 64)
    windows = head_floor.measured_texts(
        texts.paths,
        Path(arena.teacher(cell, texts)),
        sequence_length=cell.entry.sequence_length,
        count=cell.entry.measured_windows,
    )
    (ids, labels), *_ = windows["held_out"].windows
    with torch.no_grad():
        wanted = model(input_ids=ids).logits[0]
    is_scored = labels[0] != -100
    states, kept = gathered.measured["held_out"]
    count = int(is_scored.sum())
    logits = states[:count] @ gathered.head.float().T
    torch.testing.assert_close(logits, wanted[is_scored], atol=0.03, rtol=0.03)  # bfloat16 where it is fast
    assert torch.equal(kept[:count], labels[0][is_scored])


def test_the_script_finds_its_modules_where_only_lrc_is_installed() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    script = Path("benchmarks/head_floor.py").resolve()
    done = subprocess.run([sys.executable, script, "--help"], env=environment, cwd="/", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "--passes" in done.stdout


def test_the_command_writes_the_table_and_its_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(head_floor, "Arena", lambda **given: Arena(**given, tiny_teacher_steps=3))
    out = tmp_path / "out.json"
    told = ["--tokens", "4096", "--passes", "1", "--best", "32"]
    monkeypatch.setattr(sys, "argv", ["head_floor.py", "tiny/half", "--root", str(tmp_path), *told, "--out", str(out)])
    head_floor.main("")
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("| free head, best states |") for line in lines)
    facts = json.loads(out.read_text())
    assert facts["hidden_size"] == {"teacher": 64, "student": 32}
    assert facts["tokens"] == 4096
    assert list(facts["lines"]) == ["closed form", "trained", "best states", "free head", "free head, best states"]
    for texts in facts["lines"].values():
        assert 0 <= texts["development"]["kl"] < 0.01  # a teacher of a few steps needs hardly any of its width
        assert texts["held_out"]["top1_agreement"] > 0.9
