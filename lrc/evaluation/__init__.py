"""Measures on held-out text: divergence from the teacher, agreement, bits per byte, speed."""
