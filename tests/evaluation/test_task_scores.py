"""Means, errors and paired differences against lm-evaluation-harness's formulas and against plain sampling."""

import random
import statistics

import pytest

from lrc.evaluation.task_scores import average, estimate, paired_difference


def test_a_mean_and_its_error_by_hand() -> None:
    found = estimate([[1.0, 0.0, 1.0, 1.0]])
    assert found.value == 0.75
    assert found.standard_error == pytest.approx((0.25 / 4) ** 0.5)  # sample variance 3/4 * 1/4 * 4/3 = 1/4
    low, high = found.interval() or (0, 0)
    assert (low, high) == (pytest.approx(0.75 - 1.96 * 0.25, abs=1e-4), pytest.approx(0.75 + 1.96 * 0.25, abs=1e-4))


@pytest.mark.filterwarnings("ignore")  # what other libraries warn of when lm_eval imports them
def test_errors_are_those_of_the_library() -> None:
    from lm_eval.api.metrics import aggregate_subtask_metrics, mean_stderr, pooled_sample_stderr

    noise = random.Random(0)
    parts = [[float(noise.random() < chance) for _ in range(size)] for chance, size in ((0.2, 5), (0.9, 8), (0.5, 30))]
    alone = estimate([parts[2]])
    assert alone.standard_error == pytest.approx(mean_stderr(parts[2]))
    together = estimate(parts)
    sizes = [len(part) for part in parts]
    assert together.value == pytest.approx(aggregate_subtask_metrics([statistics.mean(part) for part in parts], sizes))
    errors = [mean_stderr(part) for part in parts]
    assert together.standard_error == pytest.approx(pooled_sample_stderr(errors, sizes))


def test_a_part_of_one_item_counts_for_the_mean_and_tells_no_error() -> None:
    assert estimate([[1.0]]).standard_error is None
    assert estimate([[1.0], [0.0]]).interval() is None
    with_one = estimate([[1.0, 0.0, 0.0], [1.0]])
    assert with_one.value == 0.5
    assert with_one.standard_error == pytest.approx(((2 / 3) / 2 / 4) ** 0.5)


def test_pairing_takes_out_what_both_models_share() -> None:
    teacher = [float(place % 2) for place in range(100)]
    student = [*teacher[:-2], 0.0, 0.0]  # one item lost
    found = paired_difference([student], [teacher])
    assert found.value == pytest.approx(-0.01)
    assert found.standard_error == pytest.approx(0.01)
    unpaired = (2 * (estimate([teacher]).standard_error or 0) ** 2) ** 0.5
    assert unpaired > 7 * 0.01


def test_two_models_with_different_items_are_no_pair() -> None:
    with pytest.raises(ValueError, match="zip"):
        paired_difference([[1.0, 0.0]], [[1.0]])


def test_the_interval_holds_the_truth_in_about_95_of_100_samples() -> None:
    noise = random.Random(1)
    inside = 0
    for _ in range(400):
        pairs = [(noise.random(), noise.random()) for _ in range(150)]
        student, teacher = [float(a < 0.6) for a, _ in pairs], [float(0.5 * a + 0.5 * b < 0.5) for a, b in pairs]
        low, high = paired_difference([student], [teacher]).interval() or (0, 0)
        inside += low <= 0.1 <= high
    assert 0.92 < inside / 400 < 0.98


def test_the_average_counts_each_task_the_same() -> None:
    found = average([estimate([[1.0, 0.0]]), estimate([[1.0] * 9 + [0.0]])])
    assert found.value == pytest.approx(0.7)
    assert found.standard_error == pytest.approx((0.5**2 + 0.1**2) ** 0.5 / 2)
    assert average([estimate([[1.0]]), estimate([[1.0, 0.0]])]).standard_error is None
