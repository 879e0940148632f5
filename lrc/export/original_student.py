"""What a checkpoint of the method's original code does not say of its student: its sizes, and the eps of its norms.

That code trains with an eps of its own and exports the teacher's. A student trained here has the teacher's all along.
"""

from dataclasses import dataclass
from typing import Any

from lrc.config import StudentConfig
from lrc.errors import ConfigError

ORIGINAL_EPS = 1e-5
"""What the original code trains with, unless a flag says another."""


@dataclass(frozen=True, kw_only=True)
class OriginalStudent:
    """A student of the original code whose norms were trained with an eps of their own."""

    sizes: StudentConfig
    rms_norm_eps: float


def sizes_and_eps(student: StudentConfig | OriginalStudent | None) -> tuple[StudentConfig | None, float | None]:
    """Take apart what was given of a student; without an eps of its own it has the teacher's, which None stands for."""
    return (student.sizes, student.rms_norm_eps) if isinstance(student, OriginalStudent) else (student, None)


def set_student_eps(config: Any, given: float | None, *, is_recorded: bool) -> tuple[str, ...]:
    """Put the eps that a student's norms were trained with into its config.

    Args:
        config: The student's transformers config, made of the teacher's.
        given: The eps; None: the teacher's stays.
        is_recorded: Whether `lrc_config.json` describes the student.

    Returns:
        Notes for the user.

    Raises:
        ConfigError: The checkpoint has no eps of its own to tell, or it is no eps.
    """
    own = getattr(config, "rms_norm_eps", None)
    if given is None:
        if is_recorded or own in (None, ORIGINAL_EPS):
            return ()
        return (
            f"the original code trains a student's norms with an eps of {ORIGINAL_EPS:g} unless told otherwise; this "
            f"student gets the teacher's, {own:g}, as the original exports it. To keep the one of the training: "
            "convert_ckpt.py --target-rms-norm-eps.",
        )
    if is_recorded:
        raise ConfigError(
            f"An eps of the norms is for checkpoints without lrc_config.json, found {given:g} for one that has it: it "
            "was trained with the teacher's. Leave it out."
        )
    if own is None or not 0 < given < 1:
        raise ConfigError(
            f"The eps of the norms must be above 0 and below 1, of a class that has rms_norm_eps; found {given:g} for "
            f"{config.model_type}. Give the one of the training, or leave it out."
        )
    config.rms_norm_eps = given
    return ()


def take_student_eps(student_config: Any, teacher_config: Any) -> None:
    """Give a loaded teacher's config, which the pair makes the student's of, the student's eps.

    The teacher's own modules have theirs already.
    """
    if hasattr(student_config, "rms_norm_eps"):
        teacher_config.rms_norm_eps = student_config.rms_norm_eps
