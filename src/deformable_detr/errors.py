"""The one exception that means "the input is wrong, and the person can mend it"."""

from __future__ import annotations


class UserError(ValueError):
    """Wrong input, told in one sentence: what is wrong, where, and how to mend it.

    The command line prints the sentence and exits with code 2, without a traceback. Python callers
    can catch it as a `ValueError`.
    """
