"""Low-Rank Clone: turn a teacher language model into a smaller student of the same architecture.

Read `lrc/clone/` first: it is the method. `lrc/cli.py` lists the verbs.
"""

__version__ = "0.1.0"
