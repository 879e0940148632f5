"""The bridge to transformers: which weights are projected, the teacher, the student and the pair in lockstep."""
