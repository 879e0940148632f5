"""A template that asks for the date gets one that stays, in the form it asks for; nothing else of it changes."""

from datetime import datetime

import pytest
from jinja2 import TemplateError

from lrc.data.chat_date import dated
from tests.sft.tiny_chats import CHATML, chat_tokenizer, turns

NOW = datetime(2024, 7, 26)
DATED = "{{ 'Today: ' + strftime_now('%d %b %Y') + '/' + strftime_now(format=\"%H\") + '\n' }}"


def written(template: str) -> str:
    text: str = chat_tokenizer(template).apply_chat_template(turns("a", "b"), tokenize=False)
    return text


@pytest.mark.parametrize(
    ("call", "text"),
    [
        ('strftime_now("%d %b %Y")', "26 Jul 2024"),
        ("strftime_now( format='%Y-%m-%d' )", "2024-07-26"),
        ("strftime_now is defined", "True"),
    ],
)
def test_every_form_of_the_date_is_that_of_the_moment(call: str, text: str) -> None:
    assert written(dated(f"{{%- set day = {call} %}}{{{{ day }}}}{{# strftime_now('%H') #}}", NOW)) == text


def test_a_template_without_a_date_stays() -> None:
    assert dated(CHATML, NOW) == CHATML
    assert dated("{{ my_strftime_now('%d') }}", NOW) == "{{ my_strftime_now('%d') }}"


def test_a_form_that_the_template_makes_up_is_refused() -> None:
    template = "{% set form = '%Y' %}{{ strftime_now('%d') }}{{ strftime_now(form) }}"
    assert written(template)
    with pytest.raises(TemplateError, match="must be given its format as a plain string"):
        written(dated(template, NOW))


def test_a_kept_date_changes_nothing_else() -> None:
    for template in (CHATML, DATED + CHATML, f"\n  {DATED}{CHATML}", "\n\n {{ strftime_now('%Y') }}" + CHATML):
        for again in range(2):  # the year, or the hour, may end in between
            plain, kept = written(template), written(dated(template, datetime.now()))
            if kept == plain:
                break
            assert not again, (kept, plain)
