"""The eps of the original code's students: kept, told or refused."""

from types import SimpleNamespace
from typing import Any

import pytest

from lrc.config import StudentConfig
from lrc.errors import ConfigError
from lrc.export.original_student import OriginalStudent, set_student_eps, sizes_and_eps, take_student_eps

SIZES = StudentConfig(hidden_size=16)


def config(eps: float | None = 1e-6) -> Any:
    return SimpleNamespace(model_type="qwen2", **({} if eps is None else {"rms_norm_eps": eps}))


def test_a_student_without_an_eps_of_its_own_has_the_teachers() -> None:
    assert sizes_and_eps(None) == (None, None)
    assert sizes_and_eps(SIZES) == (SIZES, None)
    assert sizes_and_eps(OriginalStudent(sizes=SIZES, rms_norm_eps=0.1)) == (SIZES, 0.1)


def test_a_given_eps_becomes_the_students() -> None:
    student = config()
    assert set_student_eps(student, 1e-5, is_recorded=False) == ()
    assert student.rms_norm_eps == 1e-5


def test_an_eps_that_is_left_out_stays_the_teachers_and_is_told_where_the_original_has_another() -> None:
    student = config()
    (note,) = set_student_eps(student, None, is_recorded=False)
    assert "eps of 1e-05 unless told otherwise" in note
    assert "1e-06" in note
    assert student.rms_norm_eps == 1e-6
    for other, is_recorded in ((config(), True), (config(1e-5), False), (config(None), False)):
        assert set_student_eps(other, None, is_recorded=is_recorded) == ()


@pytest.mark.parametrize(
    ("eps", "given", "is_recorded", "said"),
    [
        (1e-6, 1e-5, True, "without lrc_config.json"),
        (None, 1e-5, False, "of a class that has rms_norm_eps; found 1e-05 for qwen2"),
        (1e-6, 0.0, False, "above 0 and below 1"),
        (1e-6, float("nan"), False, "found nan"),
    ],
)
def test_an_eps_that_can_not_be_is_refused(eps: float | None, given: float, is_recorded: bool, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        set_student_eps(config(eps), given, is_recorded=is_recorded)


def test_the_pair_is_made_with_the_students_eps() -> None:
    teacher = config()
    take_student_eps(config(0.1), teacher)
    assert teacher.rms_norm_eps == 0.1
    take_student_eps(config(None), teacher)
    assert teacher.rms_norm_eps == 0.1
