"""The log: means over the steps since the last line, lines that survive a kill, and what the console shows."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from lrc.config import TrainConfig
from lrc.models.pair_model import PairLosses, StepCounts
from lrc.training import metrics
from lrc.training.launch import make_accelerator
from lrc.training.metrics import Interval, MetricsLog, format_seconds

TERMS = ("attn-q", "attn-out", "mlp-out")
LAYERS = 2


@pytest.fixture
def accelerator(tmp_path: Path) -> Accelerator:
    return make_accelerator(TrainConfig(max_steps=1), tmp_path, torch.device("cpu"))


def micro_batch(seed: int, sequences: int, terms: int = len(TERMS)) -> PairLosses:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return 5 * torch.rand(shape, generator=generator) + 0.1

    return PairLosses(objective=draw().requires_grad_(), lm=draw(sequences), kl=draw(), clone=draw(LAYERS, terms))


def test_means_are_those_of_a_plain_loop_over_the_steps(accelerator: Accelerator) -> None:
    interval = Interval(accelerator, LAYERS, len(TERMS))
    steps = [[micro_batch(10 * step + micro, sequences=2 + micro) for micro in range(2)] for step in range(3)]
    counts = [StepCounts(labels=30 + step, positions=35 + 2 * step, sequences=5) for step in range(3)]
    for step, count in zip(steps, counts, strict=True):
        for losses in step:
            interval.add(losses)
        interval.close_step(count)
    means = interval.means(TERMS)

    batches = [losses for step in steps for losses in step]
    labels, positions = sum(count.labels for count in counts), sum(count.positions for count in counts)
    expected = [
        [sum(batch.clone[layer, term].item() for batch in batches) / positions for layer in range(LAYERS)]
        for term in range(len(TERMS))
    ]
    assert means["loss"] == pytest.approx(sum(batch.objective.item() for batch in batches) / 3, rel=1e-12)
    lm = sum(value for batch in batches for value in batch.lm.tolist())
    assert means["lm_loss"] == pytest.approx(lm / labels, rel=1e-6)
    assert means["kl_loss"] == pytest.approx(sum(batch.kl.item() for batch in batches) / labels, rel=1e-12)
    assert list(means["clone"]) == list(TERMS)
    for term, found in enumerate(means["clone"].values()):
        assert found == pytest.approx(expected[term], rel=1e-12)
    assert means["clone_loss"] == pytest.approx(sum(sum(term) for term in expected) / 6, rel=1e-12)
    assert set(means) == {"loss", "lm_loss", "kl_loss", "clone_loss", "clone"}


def test_what_a_layer_does_not_have_is_null_and_no_part_of_the_mean(accelerator: Accelerator) -> None:
    interval = Interval(accelerator, LAYERS, len(TERMS))
    losses = micro_batch(0, sequences=2)
    losses.clone[1, 2] = 0  # as the pair fills it
    interval.add(losses)
    interval.close_step(StepCounts(labels=4, positions=5, sequences=2))
    means = interval.means(TERMS, [frozenset(TERMS), frozenset(TERMS[:2])])
    assert means["clone"]["mlp-out"] == [pytest.approx(float(losses.clone[0, 2]) / 5), None]
    assert means["clone"]["attn-q"] == pytest.approx((losses.clone[:, 0] / 5).tolist())
    assert means["clone_loss"] == pytest.approx(float(losses.clone.sum()) / 5 / 5)


def test_classes_are_means_over_their_own_labels(accelerator: Accelerator) -> None:
    interval = Interval(accelerator, LAYERS, 0)
    interval.add_classes(torch.tensor([6.0, 3.0, 4.0]), [3, 3, 1], ("math", "chat", "math"))
    interval.add_classes(torch.tensor([2.0, 0.0]), [1, 0], ("math", "empty"))
    assert interval.means(())["lm_loss_by_class"] == {"chat": 1.0, "empty": 0.0, "math": 12.0 / 5}


def test_classes_are_means_over_all_ranks(accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch) -> None:
    interval = Interval(accelerator, LAYERS, 0)
    interval.add_classes(torch.tensor([6.0, 3.0]), [3, 3], ("math", "chat"))
    other = {"math": (4.0, 1), "code": (1.0, 4)}
    monkeypatch.setattr("lrc.training.metrics.gather_object", lambda own: [*own, other])
    assert interval.means(())["lm_loss_by_class"] == {"chat": 1.0, "code": 0.25, "math": 10.0 / 4}


def test_a_pair_without_clone_terms_logs_none(accelerator: Accelerator) -> None:
    interval = Interval(accelerator, LAYERS, 0)
    interval.add(micro_batch(0, 2, terms=0))
    interval.close_step(StepCounts(labels=4, positions=5, sequences=2))
    means = interval.means(())
    assert (means["clone"], means["clone_loss"]) == ({}, 0.0)
    assert means["kl_loss"] > 0


def test_an_interval_without_steps_is_zero(accelerator: Accelerator) -> None:
    means = Interval(accelerator, 1, 1).means(("attn-q",))
    assert means == {"loss": 0.0, "lm_loss": 0.0, "kl_loss": 0.0, "clone_loss": 0.0, "clone": {"attn-q": [0.0]}}


def test_small_values_are_not_lost_beside_a_large_sum(accelerator: Accelerator) -> None:
    interval = Interval(accelerator, 1, 0)
    for kl in [2.0**25] + [0.25] * 400:  # float32 would swallow every 0.25
        interval.add(PairLosses(torch.tensor(0.0), torch.zeros(1), torch.tensor(kl), torch.zeros(1, 0)))
    interval.close_step(StepCounts(labels=1, positions=1, sequences=1))
    assert interval.means(())["kl_loss"] == 2.0**25 + 100


class Clock:
    """Stands for the module `time` in `lrc.training.metrics`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Tracker:
    """Stands for the accelerator: keeps what the trackers get."""

    def __init__(self, is_main_process: bool = True) -> None:
        self.is_main_process = is_main_process
        self.logged: list[tuple[dict[str, Any], int]] = []

    def log(self, numbers: dict[str, Any], step: int) -> None:
        self.logged.append((numbers, step))


def log_at(path: Path, accelerator: Any, total_steps: int = 100) -> MetricsLog:
    return MetricsLog(path / "metrics.jsonl", accelerator, total_steps=total_steps)


def train_values(step: int) -> dict[str, Any]:
    losses = {"loss": 1.23456, "lm_loss": 4.5, "kl_loss": 1.0, "clone_loss": 0.25, "clone": {"attn-q": [0.5, 0.0]}}
    return {"step": step, "tokens": 64 * step, **losses, "tokens_per_second": 812.4}


HELD_OUT = {
    "step": 50,
    "tokens": 3200,
    "kl": 1.04567,
    "cross_entropy": 4.6113,
    "teacher_cross_entropy": 3.79,
    "top1_agreement": 0.51374,
    "positions": 60,
}


def test_each_line_is_appended_and_its_numbers_reach_the_trackers(tmp_path: Path) -> None:
    tracker = Tracker()
    log = log_at(tmp_path, tracker)
    log.write("train", train_values(10))
    log.write("held_out", HELD_OUT)
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert lines == [{"kind": "train", **train_values(10)}, {"kind": "held_out", **HELD_OUT}]
    plain = {f"train/{key}": value for key, value in train_values(10).items() if key != "clone"}
    assert tracker.logged == [(plain, 10), ({f"held_out/{key}": value for key, value in HELD_OUT.items()}, 50)]


def test_the_console_shows_losses_speed_and_the_time_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(metrics, "time", clock)
    log = log_at(tmp_path, Tracker())
    clock.now += 500  # the start values: no part of the pace
    log.write("train", train_values(10))
    clock.now += 40
    log.write("train", train_values(20))  # 4 seconds a step
    log.write("held_out", HELD_OUT)
    clock.now += 200
    log.write("train", train_values(100))
    losses = "loss 1.2346  LM 4.5000  KL 1.0000  clone 0.2500  812 tokens/s"
    assert capsys.readouterr().err.splitlines() == [
        f"step     10/100  {losses}",
        f"step     20/100  {losses}  ETA 5:20",
        "held out   step     50  KL 1.0457  agreement 51.4%  CE 4.6113 (teacher 3.7900)",
        f"step    100/100  {losses}  ETA 0:00",
    ]


@pytest.mark.parametrize("has_collapsed", [False, True])
def test_a_collapsed_student_is_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], has_collapsed: bool
) -> None:
    log_at(tmp_path, Tracker()).write(
        "held_out", {**HELD_OUT, "effective_rank_share": 0.361, "has_collapsed": has_collapsed}
    )
    first, *rest = capsys.readouterr().err.splitlines()
    assert first.endswith("(teacher 3.7900)  rank 36%")
    assert len(rest) == int(has_collapsed)
    for line in rest:
        assert line.startswith("warning    step     50  the student's residual stream has collapsed")
        assert "36% of what its width allows" in line


def test_other_processes_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tracker = Tracker(is_main_process=False)
    log = log_at(tmp_path, tracker)
    log.write("train", train_values(10))
    assert list(tmp_path.iterdir()) == []
    assert tracker.logged == []
    assert capsys.readouterr().err == ""
    log.path.write_text('{"step": 9}\n')
    log.rewind(0)
    assert log.path.read_text() == '{"step": 9}\n'


def test_rewinding_drops_later_and_cut_lines_and_keeps_the_others_as_they_are(tmp_path: Path) -> None:
    log = log_at(tmp_path, Tracker())
    kept = ['{"kind": "held_out", "step": 0}', '{"step":2,   "kind": "train", "loss": 1e-05}', '{"step": 4}']
    dropped = ['{"step": 5}', '{"step": 40}', '{"kind": "train"}', '{"kind": "train", "st']
    log.path.write_text("\n".join([kept[0], dropped[0], kept[1], dropped[1], kept[2], *dropped[2:]]))
    log.rewind(4)
    assert log.path.read_text() == "".join(f"{line}\n" for line in kept)
    log.write("train", train_values(6))
    assert [json.loads(line)["step"] for line in log.path.read_text().splitlines()] == [0, 2, 4, 6]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize(("is_measured", "kept"), [(True, [0, 1, 2]), (False, [0, 1])])
def test_rewinding_drops_a_measure_that_will_be_made_again(tmp_path: Path, is_measured: bool, kept: list[int]) -> None:
    log = log_at(tmp_path, Tracker())
    lines = [
        f'{{"kind": "{kind}", "step": {step}}}\n' for kind, step in (("held_out", 3), ("train", 4), ("held_out", 4))
    ]
    log.path.write_text("".join(lines))
    log.rewind(4, is_measured=is_measured)
    assert log.path.read_text() == "".join(lines[number] for number in kept)


def test_rewinding_without_a_log_does_nothing(tmp_path: Path) -> None:
    log_at(tmp_path, Tracker()).rewind(4)
    assert list(tmp_path.iterdir()) == []


def test_the_trackers_may_be_an_accelerators(tmp_path: Path, accelerator: Accelerator) -> None:
    log_at(tmp_path, accelerator).write("train", train_values(1))
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["step"] == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00"),
        (0.4, "0:00"),
        (59.4, "0:59"),
        (59.6, "1:00"),
        (65, "1:05"),
        (3599.6, "1:00:00"),
        (3725, "1:02:05"),
        (360_000, "100:00:00"),
        (-3, "0:00"),
    ],
)
def test_seconds_are_written_as_on_a_clock(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text
