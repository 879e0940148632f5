"""Rows of text or token ids, turned into the batches that training and scoring read."""
