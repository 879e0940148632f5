"""The quality arena: students of many methods at equal tokens (`benchmarks/quality.py`)."""
