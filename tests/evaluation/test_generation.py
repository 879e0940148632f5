"""What is written follows the model's own distribution, whatever generation settings its folder brings."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lrc.evaluation.generation import write_tokens
from tests.tiny import tiny_teacher

PROMPT = [1, 9, 7]
INPUTS = {"input_ids": torch.tensor([PROMPT]), "attention_mask": torch.ones(1, len(PROMPT), dtype=torch.long)}
NARROWING = {"top_k": 3, "top_p": 0.5, "min_p": 0.2, "repetition_penalty": 3.0, "no_repeat_ngram_size": 1}


def model_of(**settings: Any) -> Any:
    """Make a model with more words than transformers' default top-k keeps."""
    model: Any = tiny_teacher("llama", vocab_size=200)
    model.generation_config.update(**settings)
    return model


def likeliest(model: Any, count: int) -> list[int]:
    ids = list(PROMPT)
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(PROMPT) :]


@pytest.mark.parametrize("settings", [{}, NARROWING], ids=["none", "narrowing"])
def test_sampling_is_from_the_softmax_of_logits_over_temperature(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(**settings)
    drawn_from: list[Tensor] = []
    draw = torch.multinomial

    def keep(probabilities: Tensor, num_samples: int) -> Tensor:
        drawn_from.append(probabilities.clone())
        return draw(probabilities, num_samples)

    monkeypatch.setattr(torch, "multinomial", keep)
    write_tokens(model, INPUTS, max_new_tokens=1, pad_token_id=0, temperature=0.7)
    with torch.no_grad():
        expected = (model(INPUTS["input_ids"]).logits[:, -1].float() / 0.7).softmax(-1)
    assert len(drawn_from) == 1
    torch.testing.assert_close(drawn_from[0], expected, rtol=1e-4, atol=1e-7)


def test_without_a_temperature_the_likeliest_token_comes_each_time() -> None:
    expected = likeliest(model_of(), 6)
    settings = {**NARROWING, "suppress_tokens": expected[:2], "num_beams": 3, "eos_token_id": expected[3]}
    model = model_of(**settings)
    written = write_tokens(model, INPUTS, max_new_tokens=6, pad_token_id=0)
    assert written[0].tolist() == PROMPT + expected[: expected.index(expected[3]) + 1]
    assert {name: getattr(model.generation_config, name) for name in settings} == settings
