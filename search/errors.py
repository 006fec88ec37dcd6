"""How errors leave the command line: one sentence and an exit code."""

import sys
import traceback

_OURS = ("search", "compression", "hw_profiles", "latency_models")


def is_wrong_input(error: BaseException) -> bool:
    """Whether an error is one that our packages raise for wrong input: a ValueError class of their own."""
    return isinstance(error, ValueError) and type(error).__module__.partition(".")[0] in _OURS


def exit_code(error: Exception, debug: bool = False) -> int:
    """Say on stderr what went wrong (``debug``: with the traceback); 2 for wrong input, 1 for the rest."""
    if debug:
        traceback.print_exception(error)
    elif is_wrong_input(error):
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    else:
        message = " ".join(str(error).split())
        print(f"failed: {type(error).__name__}: {message} (--debug shows where)", file=sys.stderr)
    return 2 if is_wrong_input(error) else 1
