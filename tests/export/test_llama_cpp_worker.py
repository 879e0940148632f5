"""What is asked of llama.cpp's server, and what of its answers counts; the server is made up here.

tests/export/test_gguf.py asks the real one.
"""

from typing import Any

import numpy as np
import pytest

from lrc.export.llama_cpp_worker import _chat, _next_log_probabilities


class Server:
    def __init__(self, completion: dict[str, Any]) -> None:
        self.completion = completion
        self.requests: list[dict[str, Any]] = []

    def handle_completions(self, request: dict[str, Any]) -> dict[str, Any]:
        self.requests.append(request)
        return self.completion

    handle_chat_completions = handle_completions


def completion(*top: tuple[int, float]) -> dict[str, Any]:
    entries = [{"id": token, "logprob": value} for token, value in top]
    return {"choices": [{"logprobs": {"content": [{"top_logprobs": entries}]}}]}


def test_whole_vocabulary_comes_back_in_the_order_of_ids() -> None:
    server = Server(completion((2, -0.5), (0, -1.5), (1, -2.5)))
    row = _next_log_probabilities(server, [7, 8], 3, ordinary=1)
    np.testing.assert_array_equal(row, [-1.5, -2.5, -0.5])
    assert server.requests[0]["prompt"] == [7, 8]
    assert server.requests[0]["logprobs"] == 3
    assert server.requests[0]["logit_bias"] == [[1, 1e6]]


def test_missing_tokens_and_refusals_are_errors() -> None:
    with pytest.raises(RuntimeError, match="1 of 3 tokens"):
        _next_log_probabilities(Server(completion((2, -0.5))), [7], 3, ordinary=1)
    with pytest.raises(RuntimeError, match="too long"):
        _next_log_probabilities(Server({"error": "too long"}), [7], 3, ordinary=1)
    with pytest.raises(RuntimeError, match="too long"):
        _chat(Server({"error": "too long"}), [], 8)


def test_chat_answer_is_greedy_text() -> None:
    server = Server({"choices": [{"message": {"content": "Paris."}}]})
    assert _chat(server, [{"role": "user", "content": "Where?"}], 8) == "Paris."
    assert server.requests[0]["temperature"] == 0
