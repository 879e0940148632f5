"""Sets of tasks, their metrics, and what is refused."""

import pytest

from lrc.errors import ConfigError
from lrc.evaluation.task_names import METRICS, OTHER_METRIC, SEED, check_names, chosen_tasks


def test_seed_is_the_published_nine_with_their_metrics() -> None:
    published = "sciq,piqa,winogrande,arc_easy,logiqa,arc_challenge,boolq,mmlu,commonsense_qa"
    assert sorted(SEED) == sorted(published.split(","))
    by_norm = {name for name in SEED if METRICS.get(name, OTHER_METRIC) == "acc_norm,none"}
    assert by_norm == {"arc_challenge", "logiqa"}


def test_sets_and_names_are_joined_each_once() -> None:
    names, left_out = chosen_tasks("piqa, seed,hellaswag", allow_code=False)
    assert names == ["piqa", *(name for name in SEED if name != "piqa"), "hellaswag"]
    assert left_out == []


def test_code_is_run_only_where_it_is_allowed() -> None:
    assert chosen_tasks("reasoning", allow_code=False) == (["gsm8k"], ["humaneval", "mbpp"])
    assert chosen_tasks("reasoning", allow_code=True) == (["gsm8k", "humaneval", "mbpp"], [])
    with pytest.raises(ConfigError, match="mbpp runs the code"):
        chosen_tasks("gsm8k,mbpp", allow_code=False)


@pytest.mark.parametrize("text", ["", "piqa,", " , "])
def test_an_empty_name_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--tasks must be names"):
        chosen_tasks(text, allow_code=False)


def test_an_unknown_name_gets_a_hint() -> None:
    check_names(["piqa"], ["piqa", "sciq"])
    with pytest.raises(ConfigError, match=r"no task 'sed'. Did you mean 'seed'\?"):
        check_names(["piqa", "sed"], ["piqa", "sciq"])
    with pytest.raises(ConfigError, match="lm_eval ls tasks"):
        check_names(["zzzz"], ["piqa"])
