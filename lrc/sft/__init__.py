"""Supervised fine-tuning: chats to labelled tokens, TRL's trainer with the teacher beside it, LLaMA-Factory's files."""
