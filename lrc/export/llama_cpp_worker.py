"""Asks llama.cpp, in a process of its own: `python -m lrc.export.llama_cpp_worker JOB`; JOB is a JSON file.

llama.cpp aborts its whole process on a file that it can't take, and logs as it likes: both stay in here. Answers go
beside the job: `answers.json`, and `log_probabilities.npy` with one row a position.
"""

import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

CONTEXT = 1024
"""Tokens of the context, which a probe or a short answer must not exceed."""


def answer_job(job_file: Path) -> None:
    """Answer a job.

    The job names `model`, `vocab_size`, `num_threads`, `sequences` (token ids), `every` (each how many-th position is
    scored), `texts` (to be tokenised), `chats` (lists of messages to be answered) and `max_tokens` of an answer.
    """
    job = json.loads(job_file.read_text(encoding="utf-8"))
    server = _open_server(job["model"], job["num_threads"])
    chats = [_chat(server, messages, job["max_tokens"]) for messages in job["chats"]]
    tokens = [_tokenise(server.listening_address, text) for text in job["texts"]]
    ordinary = _tokenise(server.listening_address, "a")[-1]
    prompts = [ids[: end + 1] for ids in job["sequences"] for end in range(0, len(ids), job["every"])]
    rows = np.empty((len(prompts), job["vocab_size"]), dtype=np.float32)  # as llama.cpp computes them
    for row, prompt in zip(rows, prompts, strict=True):
        row[:] = _next_log_probabilities(server, prompt, job["vocab_size"], ordinary)
    np.save(job_file.with_name("log_probabilities.npy"), rows)
    job_file.with_name("answers.json").write_text(json.dumps({"tokens": tokens, "chats": chats}), encoding="utf-8")


def _open_server(model: str, num_threads: int) -> Any:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = model
    params.n_ctx = CONTEXT
    params.n_parallel = 1
    params.n_gpu_layers = 0
    params.warmup = False
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED  # it computes in float16
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32  # float16 is the default
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = num_threads
    return xllamacpp.Server(params)


def _next_log_probabilities(server: Any, ids: list[int], vocab_size: int, ordinary: int) -> np.ndarray:
    """Return log softmax of the logits after `ids`, `[vocabulary]`; llama.cpp's server gives no bare logits.

    The server keeps the numbers back if the token it takes ends the text or is half a character. So it is made to take
    an ordinary one: the bias acts on what is taken, not on the numbers.
    """
    take = {"max_tokens": 1, "temperature": 0, "logit_bias": [[ordinary, 1e6]]}
    request = {"prompt": ids, "logprobs": vocab_size} | take
    response = server.handle_completions(request)
    if "choices" not in response:
        raise RuntimeError(f"no completion: {response}")
    found = response["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    row = np.full(vocab_size, np.nan)
    row[[entry["id"] for entry in found]] = [entry["logprob"] for entry in found]
    if np.isnan(row).any():
        raise RuntimeError(f"{len(found)} of {vocab_size} tokens have a probability")
    return row


def _tokenise(address: str, text: str) -> list[int]:
    body = json.dumps({"content": text, "add_special": False}).encode()
    request = urllib.request.Request(f"{address}/tokenize", data=body, headers={"Content-Type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy can't reach this machine's own port
    with opener.open(request, timeout=60) as response:
        return [int(token) for token in json.load(response)["tokens"]]


def _chat(server: Any, messages: list[dict[str, str]], max_tokens: int) -> str:
    response = server.handle_chat_completions({"messages": messages, "max_tokens": max_tokens, "temperature": 0})
    if "choices" not in response:
        raise RuntimeError(f"no answer: {response}")
    return str(response["choices"][0]["message"]["content"])


if __name__ == "__main__":
    answer_job(Path(sys.argv[1]))
