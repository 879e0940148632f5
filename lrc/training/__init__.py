"""The one distillation loop: batches in, checkpoints and metrics out."""
