"""How the published commands read flags, and how they end."""

from dataclasses import dataclass

import pytest

from lrc.errors import ConfigError, LrcError, NumericsError
from lrc.verbs.published_flags import flag, parse_flags, run_command


@dataclass(frozen=True, kw_only=True)
class Flags:
    """A command with one flag of each type."""

    batch_size: int = flag(4, "a whole number")
    learning_rate: float = flag(1e-4, "a number of 100 %")
    use_all_attn: bool = flag(False, "a boolean")
    save_path: str = flag("out", "a text")
    resume_checkpoint: str | None = flag(None, "a text or nothing")


def parse(*argv: str) -> Flags:
    return parse_flags(argv, Flags, program="command")[0]


def message_of(*argv: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(*argv)
    return str(caught.value)


def test_values_have_the_types_of_the_fields() -> None:
    flags, given = parse_flags(["--batch-size", "2", "--learning_rate", "3e-4"], Flags, program="command")
    assert flags == Flags(batch_size=2, learning_rate=3e-4)
    assert given == {"batch_size", "learning_rate"}


@pytest.mark.parametrize("name", ["--save-path", "--save_path"])
def test_dashes_and_underscores_are_the_same_in_names_only(name: str) -> None:
    assert parse(name, "a_b-c").save_path == "a_b-c"
    assert parse(f"{name}=a_b-c").save_path == "a_b-c"


@pytest.mark.parametrize("word", ["True", "true", "1", "yes", "YES"])
def test_words_for_true(word: str) -> None:
    assert parse("--use_all_attn", word).use_all_attn is True


@pytest.mark.parametrize("word", ["False", "false", "0", "no", "NO"])
def test_words_for_false(word: str) -> None:
    assert parse("--use_all_attn", word).use_all_attn is False


def test_a_boolean_flag_without_a_value_is_true() -> None:
    assert parse("--use_all_attn", "--batch-size", "2") == Flags(use_all_attn=True, batch_size=2)


def test_another_word_is_no_boolean() -> None:
    assert "'maybe'" in message_of("--use_all_attn", "maybe")


@pytest.mark.parametrize("argv", [("--save-path=~/out",), ("--save-path", "~/out")])
def test_a_tilde_that_no_shell_has_expanded_is_the_home_folder(
    argv: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert parse(*argv).save_path == "/home/me/out"
    assert parse("--resume_checkpoint=~/run").resume_checkpoint == "/home/me/run"


@pytest.mark.parametrize("word", ["None", "none", ""])
def test_words_for_nothing(word: str) -> None:
    assert parse("--resume_checkpoint", word).resume_checkpoint is None


def test_a_negative_number_is_a_value() -> None:
    assert parse("--batch_size", "-1").batch_size == -1


@pytest.mark.parametrize("argv", [("--batch_size", "three"), ("--batch_size",)])
def test_a_wrong_or_missing_value_names_its_flag(argv: tuple[str, ...]) -> None:
    assert "--batch-size" in message_of(*argv)


def test_an_unknown_flag_gives_the_nearest_name() -> None:
    message = message_of("--bacth_size", "2")
    assert "unknown flag --bacth-size" in message
    assert "did you mean --batch-size?" in message


def test_an_abbreviated_flag_is_unknown() -> None:
    assert "did you mean --save-path?" in message_of("--save-pat", "x")


def test_an_unknown_flag_like_no_other_gives_all_names() -> None:
    assert "known: --batch-size, --learning-rate" in message_of("--zzz")


def test_a_stray_word_is_refused() -> None:
    assert "'stray'" in message_of("--batch-size", "2", "stray")


def test_one_flag_in_two_spellings_must_not_contradict_itself() -> None:
    assert "--use-all-attn" in message_of("--use_all_attn", "1", "--use-all-attn", "0")
    assert parse("--use_all_attn", "1", "--use-all-attn", "True").use_all_attn is True


def test_help_shows_meaning_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse("--help")
    assert caught.value.code == 0
    assert "a number of 100 % (default: 0.0001)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("failure", "code", "line"),
    [
        (None, 0, ""),
        (LrcError("no such teacher"), 2, "error: no such teacher"),
        (NumericsError("the loss is not finite"), 1, "error: the loss is not finite"),
        (OSError("disk full"), 1, "error: OSError: disk full"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_a_command_ends_with_its_code_and_one_line(
    failure: BaseException | None, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> None:
        if failure is not None:
            raise failure

    assert run_command(command) == code
    assert "".join(capsys.readouterr().err.splitlines()[-1:]) == line
