"""How errors leave the command line: one sentence and an exit code."""

import sys
import traceback

_NEEDED = {"onnxruntime": "onnxruntime", "onnx": "onnx", "torch": "torch"}
_NEEDED |= {"sklearn": "scikit-learn", "onnxscript": "onnxscript", "optuna": "optuna", "plotly": "plotly"}


def is_wrong_input(error: BaseException) -> bool:
    """Whether an error is one that our packages raise for wrong input: a ValueError class of their own, or a
    package that is not installed."""
    if isinstance(error, ModuleNotFoundError):
        return _missing_package(error) is not None
    return isinstance(error, ValueError) and type(error).__module__.partition(".")[0] == "leanfront"


def _missing_package(error: ModuleNotFoundError) -> str | None:
    return _NEEDED.get((error.name or "").partition(".")[0])


def exit_code(error: Exception, debug: bool = False) -> int:
    """Say on stderr what went wrong (``debug``: with the traceback); 2 for wrong input, 1 for the rest."""
    if debug:
        traceback.print_exception(error)
    elif isinstance(error, ModuleNotFoundError) and is_wrong_input(error):
        package = _missing_package(error)
        print(f"error: {error.name} is needed, but is not installed; pip install {package}", file=sys.stderr)
    elif is_wrong_input(error):
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    else:
        message = " ".join(str(error).split())
        print(f"failed: {type(error).__name__}: {message} (--debug shows where)", file=sys.stderr)
    return 2 if is_wrong_input(error) else 1
