"""The one exception for a caller's mistake."""


class UsageError(ValueError):
    """A caller's mistake: the message says what is wrong and how to put it right.

    The command line prints the message alone and leaves with exit code 2.
    """
