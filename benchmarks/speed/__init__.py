"""What `benchmarks/step.py` and `benchmarks/at_size.py` measure with: shapes, ways to do a step, rates, memory."""
