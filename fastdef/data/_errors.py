"""One line for what other packages say in many."""


def one_line(error: BaseException) -> str:
    """The message of ``error`` without its line breaks, cut where it is long."""
    return " ".join(str(error).split())[:200] or type(error).__name__
