"""The recipe's section `start`: what can't hold beside the method and the student."""

import pytest

from lrc.start_config import StartConfig, StartMethod, start_problems


@pytest.mark.parametrize("method", ["random", "channel", "pca", "calibrated"])
def test_a_start_without_corrections_has_no_problem(method: StartMethod) -> None:
    assert start_problems(StartConfig(method=method), "clone", hidden_size=8, correction="none") == []


def test_no_more_outlier_channels_than_the_student_has() -> None:
    assert start_problems(StartConfig(outlier_channels=8), "clone", hidden_size=8, correction="none") == []
    (problem,) = start_problems(StartConfig(outlier_channels=9), "clone", hidden_size=8, correction="none")
    assert problem == "start.outlier_channels must be at most student.hidden_size = 8, found 9"


@pytest.mark.parametrize(("start", "method"), [("pca", "clone"), ("random", "clone"), ("calibrated", "only_kd")])
def test_corrections_are_a_calibrated_clones(start: StartMethod, method: str) -> None:
    assert start_problems(StartConfig(), "clone", hidden_size=8, correction="outputs") == []
    (problem,) = start_problems(StartConfig(method=start), method, hidden_size=8, correction="outputs")
    assert problem.endswith(f"found {method} and {start}")


def test_what_only_passes_fit_needs_one() -> None:
    no_pass = StartConfig(correction_passes=0)
    assert start_problems(no_pass, "clone", hidden_size=8, correction="outputs") == []
    assert start_problems(StartConfig(), "clone", hidden_size=8, correction="mlp") == []
    (problem,) = start_problems(no_pass, "clone", hidden_size=8, correction="mlp")
    assert problem.startswith("start.correction_passes must be at least 1 with student.correction = mlp, found 0")


def test_every_problem_is_told() -> None:
    found = start_problems(StartConfig(method="pca", outlier_channels=9), "clone", hidden_size=8, correction="outputs")
    assert len(found) == 2
