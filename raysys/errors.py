"""The one exception for mistakes that the person at the keyboard can mend."""

from __future__ import annotations


class UserError(Exception):
    """A wrong file, key, value or machine plan.

    The message is one or two sentences: what is wrong, where (file, row, column
    or key), and what to do. The command line prints it without a traceback and
    exits with code 2; jobs do the same.
    """
