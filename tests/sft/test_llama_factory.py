"""LLaMA-Factory's files: the recipe's settings under its names, one data set a file, and the shipped published ones."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from lrc.errors import ConfigError, DataError
from lrc.sft.llama_factory import llama_factory_files
from lrc.sft_config import SftConfig

SHIPPED = Path(__file__).parents[2] / "configs" / "llama_factory"
LLAMA3 = "{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>{% endfor %}"
MESSAGES = ("chats.jsonl", {"messages": []})


def files(out: Path, *sources: tuple[str, dict[str, Any]], template: str = LLAMA3, **settings: Any) -> tuple[Any, Any]:
    texts = llama_factory_files(
        out,
        settings=SftConfig(**settings),
        student=Path("student"),
        chat_template=template,
        files=sources or (MESSAGES,),
    )
    return yaml.safe_load(texts["sft.yaml"]), json.loads(texts["dataset_info.json"])


def test_the_defaults_are_the_shipped_published_file(tmp_path: Path) -> None:
    made, _ = files(tmp_path)
    shipped = yaml.safe_load((SHIPPED / "llama3-sft-full.yaml").read_text())
    of_its_place = {"model_name_or_path", "dataset_dir", "dataset", "output_dir", "save_steps"}
    shared = (made.keys() & shipped.keys()) - of_its_place
    assert {key: made[key] for key in shared} == {key: shipped[key] for key in shared}
    assert {
        "learning_rate",
        "num_train_epochs",
        "warmup_ratio",
        "lr_scheduler_type",
        "cutoff_len",
        "template",
    } <= shared
    assert {"per_device_train_batch_size", "gradient_accumulation_steps", "bf16", "finetuning_type", "stage"} <= shared


@pytest.mark.parametrize("name", ["llama3-sft-full", "qwen-sft-full"])
def test_the_shipped_files_have_the_published_settings_and_their_data_set(name: str) -> None:
    shipped = yaml.safe_load((SHIPPED / f"{name}.yaml").read_text())
    assert (shipped["learning_rate"], shipped["num_train_epochs"], shipped["warmup_ratio"]) == (1e-5, 1.0, 0.1)
    assert (shipped["cutoff_len"], shipped["lr_scheduler_type"], shipped["finetuning_type"]) == (2048, "linear", "full")
    assert shipped["per_device_train_batch_size"] * shipped["gradient_accumulation_steps"] == 24
    assert shipped["dataset_dir"] == "configs/llama_factory"
    assert shipped["dataset"] in json.loads((SHIPPED / "dataset_info.json").read_text())
    assert "deepspeed" not in shipped or (SHIPPED.parents[1] / shipped["deepspeed"]).is_file()


def test_each_file_is_a_data_set_of_its_form(tmp_path: Path) -> None:
    made, info = files(
        tmp_path,
        ("a.jsonl", {"messages": []}),
        ("b.json", {"conversations": []}),
        ("c.parquet", {"instruction": "", "input": "", "output": ""}),
        ("d.jsonl", {"instruction": "", "output": ""}),
    )
    assert made["dataset"] == "chats_0,chats_1,chats_2,chats_3"
    assert made["dataset_dir"] == str(tmp_path)
    assert [entry["formatting"] for entry in info.values()] == ["sharegpt", "sharegpt", "alpaca", "alpaca"]
    assert info["chats_0"]["file_name"] == str(Path("a.jsonl").absolute())
    assert info["chats_1"]["columns"] == {"messages": "conversations"}
    assert info["chats_2"]["columns"] == {"prompt": "instruction", "query": "input", "response": "output"}
    assert info["chats_3"]["columns"] == {"prompt": "instruction", "response": "output"}


def sharegpt(*roles: str) -> dict[str, Any]:
    return {"conversations": [{"from": role, "value": "a"} for role in roles]}


def openai(*roles: str) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": "a"} for role in roles]}


@pytest.mark.parametrize(
    ("row", "tags"),
    [
        (sharegpt("human", "gpt"), None),
        (sharegpt("system", "user", "assistant"), ("from", "value", "user", "assistant")),
        (sharegpt("human", "assistant"), ("from", "value", "human", "assistant")),
        (openai("user", "assistant"), ("role", "content", "user", "assistant")),
        (openai("human", "gpt"), ("role", "content", "human", "gpt")),
    ],
)
def test_the_roles_are_called_what_the_rows_call_them(tmp_path: Path, row: dict[str, Any], tags: Any) -> None:
    names = ("role_tag", "content_tag", "user_tag", "assistant_tag")
    expected = tags and {**dict(zip(names, tags, strict=True)), "system_tag": "system"}
    (tmp_path / "a.jsonl").write_text(f"{json.dumps(row)}\n" * 2)
    for path in (str(tmp_path / "a.jsonl"), "elsewhere.jsonl"):
        assert files(tmp_path, (path, row))[1]["chats_0"].get("tags") == expected


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ((sharegpt("human", "gpt"), {}, sharegpt("user", "gpt")), "3: .*name of the user in a file, here 'human'"),
        ((openai("user", "assistant"), openai("user", "gpt")), "2: .*name of the assistant.*rows that say 'gpt'"),
        ((openai("user", "assistant"), sharegpt("human", "gpt")), "2: .*one kind of row from a file, here 'messages'"),
    ],
)
def test_a_file_whose_rows_do_not_agree_is_refused(tmp_path: Path, rows: Any, said: str) -> None:
    (tmp_path / "a.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    with pytest.raises(DataError, match=rf"a\.jsonl:{said}"):
        files(tmp_path, (str(tmp_path / "a.jsonl"), rows[0]))


def test_a_set_of_the_hub_is_named_by_its_split(tmp_path: Path) -> None:
    source = "hf://datasets/HuggingFaceH4/ultrachat_200k/data/train_sft-*.parquet"
    _, info = files(tmp_path, (source, {"messages": []}))
    shipped = json.loads((SHIPPED / "dataset_info.json").read_text())["ultrachat_200k"]
    assert info["chats_0"] == shipped


@pytest.mark.parametrize("path", ["chats.jsonl.gz", "s3://x/chats.jsonl", "hf://datasets/a/b/chats.jsonl"])
def test_a_file_that_it_can_not_read_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(DataError, match="fetch or unpack"):
        files(tmp_path, (path, {"messages": []}))


def test_a_teacher_beside_the_student_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"sft\.teacher_kl=0"):
        files(tmp_path, teacher_kl=1.0)


def test_dropping_over_long_chats_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"sft\.over_long=truncate"):
        files(tmp_path, over_long="drop")


@pytest.mark.parametrize(
    ("template", "name"),
    [
        (LLAMA3, "llama3"),
        ("You are Qwen, created by Alibaba Cloud.<|im_start|>", "qwen"),
        ("<|im_start|>You are a helpful AI assistant named SmolLM", "smollm2"),
        ("[INST] <<SYS>>\n{{ s }}\n<</SYS>>\n\n{{ m }} [/INST]", "llama2"),
        ("[INST] {{ m }} [/INST]", None),  # Mistral's
        ("<start_of_turn>", "gemma"),
        ("<|im_start|>", None),
    ],
)
def test_templates_that_it_knows_are_named_and_others_left_to_it(tmp_path: Path, template: str, name: str) -> None:
    assert files(tmp_path, template=template)[0].get("template") == name


def test_the_recipe_is_translated(tmp_path: Path) -> None:
    made, _ = files(
        tmp_path, lora_rank=8, packing=True, max_steps=5, device="cpu", compute_dtype="float32", schedule="constant"
    )
    assert (made["finetuning_type"], made["lora_rank"], made["lora_target"]) == ("lora", 8, "all")
    assert (made["packing"], made["neat_packing"], made["max_steps"]) == (True, True, 5)
    assert (made["use_cpu"], made["bf16"], made["lr_scheduler_type"]) == (True, False, "constant_with_warmup")
