"""Compare what vLLM ranks first with what transformers rank first; called by vllm_check.sh in vLLM's environment."""

import argparse
import json
import sys
from typing import Any

import torch

PROMPTS, LENGTH = 8, 26
LEAST_AGREEMENT = 0.99


def main() -> int:
    """Make a tiny student, or compare a served folder with a reference; returns 0 if they agree."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("served", help="folder that vLLM serves")
    parser.add_argument("reference", nargs="?", help="folder that transformers load")
    parser.add_argument("--hf-overrides", type=json.loads, default={})
    parser.add_argument("--make", action="store_true", help="write a tiny random Qwen2 student to SERVED instead")
    given = parser.parse_args()
    if given.make:
        make_student(given.served)
        return 0
    prompts, expected = reference_logprobs(given.reference)
    agreement, largest = compare(served_logprobs(given.served, prompts, given.hf_overrides), prompts, expected)
    print(
        f"{given.served}: ranks the same token first at {agreement:.1%} of {PROMPTS * (LENGTH - 1)} positions; largest "
        f"difference of a log probability {largest:.2e}"
    )
    return 0 if agreement >= LEAST_AGREEMENT else 1


def make_student(folder: str) -> None:
    """Write a random Qwen2 with 4 heads of 64 at hidden size 128, so that hidden size / heads is wrong."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        dtype="float32",
    )
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)


@torch.no_grad()
def reference_logprobs(folder: str) -> tuple[list[list[int]], torch.Tensor]:
    """Random prompts and the log probabilities that transformers give at each position, in float32."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.config.vocab_size, (PROMPTS, LENGTH), generator=generator)
    return ids.tolist(), model(input_ids=ids).logits.log_softmax(-1)


def served_logprobs(folder: str, prompts: list[list[int]], overrides: dict[str, Any]) -> list[Any]:
    """For each prompt vLLM's log probabilities of its tokens and of the one ranked first, a position each."""
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=folder,
        dtype="float32",
        enforce_eager=True,
        max_model_len=2 * LENGTH,
        skip_tokenizer_init=True,
        hf_overrides=overrides,
    )
    settings = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=1, detokenize=False)
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], settings, use_tqdm=False)
    return [output.prompt_logprobs for output in outputs]


def compare(found: list[Any], prompts: list[list[int]], expected: torch.Tensor) -> tuple[float, float]:
    """Share of positions with the same first token, and the largest difference of a prompt token's log probability."""
    same, largest = 0, 0.0
    for row, (positions, prompt) in enumerate(zip(found, prompts, strict=True)):
        for position in range(1, LENGTH):  # the first token has nothing before it
            entries = positions[position]
            first = next(token for token, entry in entries.items() if entry.rank == 1)
            same += first == int(expected[row, position - 1].argmax())
            token = prompt[position]
            largest = max(largest, abs(entries[token].logprob - float(expected[row, position - 1, token])))
    return same / (PROMPTS * (LENGTH - 1)), largest


if __name__ == "__main__":
    sys.exit(main())
