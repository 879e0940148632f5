"""The method: clone points, merging, losses and start values as pure functions on tensors; torch only."""
