"""The page carries the JSON's numbers, escapes what models write, and loads nothing."""

import base64
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lrc.report.licence import Licence
from lrc.report.model_card import Origin
from lrc.report.page import page_html
from lrc.report.plots import Plot
from lrc.report.read_run import METRICS_FILE, PARITY_FILE, RECIPE_FILE, RESULTS_FILE, START_FILE, read_run
from lrc.report.records import RunData
from tests.report.synthetic_run import parity_values, write_json, write_run

PLOT_NAMES = ("held_out", "losses", "clone_terms", "start_errors", "effective_rank", "rank_history")
PLOTS = {name: Plot(light_png=f"light {name}".encode(), dark_png=f"dark {name}".encode()) for name in PLOT_NAMES}
ORIGIN = Origin(teacher_id=None, licence=Licence(id="unknown"), repo=None)
LOADING_ATTRIBUTES = {"src", "srcset", "href", "data", "poster", "action", "background", "xlink:href"}


class Page(HTMLParser):
    """Collects what the tests ask about."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.numbers: list[float] = []
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = dict(attrs)
        self.links += [value or "" for name, value in attrs if name in LOADING_ATTRIBUTES]
        self.ids += [values["id"] or ""] if "id" in values else []
        self.numbers += [float(values["value"] or "nan")] if tag == "data" else []

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "demo", num_steps=4, num_layers=2)


@pytest.fixture
def data(run: Path) -> RunData:
    return read_run(run)


def test_numbers_on_the_page_are_those_of_the_json(data: RunData) -> None:
    page = Page(page_html(data, PLOTS, ORIGIN))
    results, parity = data.results, data.parity
    assert results is not None
    assert results.teacher is not None
    assert parity is not None
    for card in (results.teacher, results.student):
        for value in (card.cross_entropy, card.perplexity, card.bits_per_byte, card.parameters, card.file_size_bytes):
            assert value in page.numbers
        assert card.prefill_tokens_per_second in page.numbers
        assert card.decode_tokens_per_second in page.numbers
    assert {results.kl_to_teacher, results.top1_agreement, results.top5_agreement} <= set(page.numbers)
    assert {parity.tolerance, parity.logit_scale, parity.after_reload.max_abs_difference} <= set(page.numbers)
    for text in ("1.552", "1.269", "50.9 %", "134.5 M", "16,352 positions", "cpu with 2 threads in float32"):
        assert text in page.text


def test_text_of_models_and_files_is_escaped(data: RunData) -> None:
    attack = "<script>alert('a & b')</script>"
    assert data.results is not None
    results = replace(data.results, source=f"{attack}/<img src=x>", versions={attack: attack})
    html = page_html(replace(data, run=Path(attack), results=results, recipe_text=attack), PLOTS, ORIGIN)
    page = Page(html)
    assert "script" not in page.tags
    assert page.tags.count("img") == len(PLOTS)
    assert attack in page.text
    assert "&lt;script&gt;alert(&#39;a &amp; b&#39;)&lt;/script&gt;" in html


def test_page_loads_nothing_from_outside(data: RunData) -> None:
    page = Page(page_html(data, PLOTS, ORIGIN))
    assert page.links
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in page.links)
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert not {"script", "link", "iframe", "object", "embed"} & set(page.tags)
    css = (Path(__file__).parents[2] / "lrc/report/page.css").read_text("utf-8")
    assert "url(" not in css
    assert "@import" not in css


def test_every_plot_is_embedded_for_light_and_dark(data: RunData) -> None:
    images = [link for link in Page(page_html(data, PLOTS, ORIGIN)).links if link.startswith("data:")]
    decoded = {base64.b64decode(image.partition(",")[2]).decode() for image in images}
    assert decoded == {f"{mode} {name}" for mode in ("light", "dark") for name in PLOT_NAMES}


def test_samples_stand_side_by_side(data: RunData) -> None:
    html = page_html(data, PLOTS, ORIGIN)
    page = Page(html)
    assert data.results is not None
    for sample in data.results.samples:
        assert sample.teacher is not None
        for text in (sample.prompt, sample.teacher, sample.student):
            assert " ".join(text.split()) in page.text
    assert "def add(a, b):\n    return</div>" in html
    assert html.count('<p class="who teacher">Teacher</p>') == len(data.results.samples)


@pytest.mark.parametrize(("passed", "badge"), [(True, "✓ parity passed"), (False, "✗ parity failed")])
def test_parity_has_a_badge_in_words(run: Path, passed: bool, badge: str) -> None:
    write_json(run / PARITY_FILE, parity_values(passed=passed))
    text = Page(page_html(read_run(run), PLOTS, ORIGIN)).text
    assert badge in text
    assert ("is not the student that was trained" in text) == (not passed)


@pytest.mark.parametrize(
    ("file", "note"),
    [
        (RESULTS_FILE, "Left out: evaluate/results.json is not there; lrc evaluate writes it."),
        (METRICS_FILE, "Left out: there is no training step in train/metrics.jsonl; lrc train writes them."),
        (START_FILE, "Left out: train/start.json is not there; lrc train writes it."),
        (PARITY_FILE, "Left out: convert/parity.json is not there; lrc convert writes it."),
        (RECIPE_FILE, "Left out: train/recipe.yaml is not there; lrc train writes it."),
    ],
)
def test_missing_file_leaves_a_note(run: Path, file: str, note: str) -> None:
    (run / file).unlink()
    assert note in Page(page_html(read_run(run), {}, ORIGIN)).text


def test_complete_run_leaves_nothing_out(data: RunData) -> None:
    assert "Left out" not in Page(page_html(data, PLOTS, ORIGIN)).text


def test_caption_speaks_of_the_start_only_where_it_is_drawn(data: RunData) -> None:
    assert "hollow diamond" in Page(page_html(data, PLOTS, ORIGIN)).text
    assert "hollow diamond" not in Page(page_html(replace(data, held_out=data.held_out[1:]), PLOTS, ORIGIN)).text


def test_run_without_a_teacher_shows_the_student_alone(tmp_path: Path) -> None:
    run = write_run(tmp_path / "demo", num_steps=1, num_layers=1, with_teacher=False)
    shutil.rmtree(run / "train")
    html = page_html(read_run(run), {}, ORIGIN)
    assert '<p class="who teacher">' not in html
    assert "A student of a teacher at width 288" in html


def test_recipe_is_shown_as_it_stands_in_the_file(run: Path, data: RunData) -> None:
    page = Page(page_html(data, PLOTS, ORIGIN))
    assert "details" in page.tags
    assert (run / RECIPE_FILE).read_text("utf-8") in page.words


def test_benchmarks_have_a_row_a_task(data: RunData) -> None:
    text = Page(page_html(data, PLOTS, ORIGIN)).text
    assert "Benchmarks" in text
    for cell in ("arc_easy", "63.50 ± 1.0", "51.25 ± 1.0", "-14.0 to -10.5", "average of 2"):
        assert cell in text
    assert data.tasks is not None
    limited = replace(data, tasks=replace(data.tasks, limit=50))
    assert "on the first 50 items of each task" in Page(page_html(limited, PLOTS, ORIGIN)).text


def test_a_run_without_benchmarks_says_what_writes_them(data: RunData) -> None:
    assert "lrc evaluate --tasks writes them" in Page(page_html(replace(data, tasks=None), PLOTS, ORIGIN)).text


def test_a_collapsed_student_is_warned_of_at_the_top(data: RunData) -> None:
    assert 'role="alert"' not in page_html(data, PLOTS, ORIGIN)
    last = replace(data.held_out[-1], has_collapsed=True)
    page = page_html(replace(data, held_out=(*data.held_out[:-1], last)), PLOTS, ORIGIN)
    assert page.index('role="alert"') < page.index("<nav")
    assert "has collapsed" in Page(page).text


def test_what_was_scored_and_the_fine_tuning_are_told(data: RunData) -> None:
    text = Page(page_html(data, PLOTS, replace(ORIGIN, after_training="fine-tuned on chats with `lrc sft`"))).text
    assert text.count("Scored: convert") == 2  # held-out text and benchmarks
    assert "nats per token. After distillation: fine-tuned on chats with lrc sft." in text
    assert "Fine-tuned on chats after its distillation: the curves of training below end before." in text
    for fact in (
        "Fine-tuning 50 steps on 1,200 chats of hf://datasets/owner/chats/data/train_sft-*.parquet",
        "Teacher KL in fine-tuning weight 0.5",
        "Held-out chats, KL to the teacher 0.9876 -> 0.6543 nats per token",
    ):
        assert fact in text
    bare = Page(page_html(replace(data, fine_tuned=None), PLOTS, ORIGIN)).text
    assert "Left out: the student has no sft.json; lrc sft writes one." in bare
    assert "Fine-tuned" not in bare


def test_scores_of_another_model_are_warned_of_and_head_no_page(data: RunData) -> None:
    own = Page(page_html(data, PLOTS, ORIGIN))
    assert "cloned from width 576 to 288" in own.text
    assert "another model" not in own.text
    html = page_html(data, PLOTS, replace(ORIGIN, scored_other="runs/other/sft"))
    page = Page(html)
    assert "Scored was sft, another model than this student." in page.text
    assert html.index("another model than this student") < html.index("<nav")
    head = Page(html[: html.index("<nav")]).text
    assert "cloned from width" not in head
    assert "67.27 M" in own.text
    assert "67.27 M" not in head  # its tiles are those of training's last measure
    assert "before training" in head
