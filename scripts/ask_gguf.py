"""Asks a GGUF file one question in llama.cpp: `python scripts/ask_gguf.py FILE QUESTION`."""

import sys
from pathlib import Path

from lrc.export.llama_cpp import ask_llama_cpp

if __name__ == "__main__":
    answers = ask_llama_cpp(Path(sys.argv[1]), chats=[[{"role": "user", "content": sys.argv[2]}]])
    print(" ".join(answers.chats[0].split()))
