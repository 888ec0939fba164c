"""The one exception for a caller's mistake, and other exceptions in a message."""


class UsageError(ValueError):
    """A caller's mistake: the message says what is wrong and how to put it right.

    The command line prints the message alone and leaves with exit code 2.
    """


def told(error: BaseException) -> str:
    """What an error is and says: on one line, and not too long."""
    try:
        text = " ".join(str(error).split())
    except Exception:  # of a user's own, in saying what it is
        text = "…"
    return f"{type(error).__name__}: {text}"[:200]
