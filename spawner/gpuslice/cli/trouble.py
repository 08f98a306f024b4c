"""What a command says to a person instead of a traceback."""

from __future__ import annotations


class Trouble(Exception):
    """Something that a person can put right; the text is one sentence that says how."""
