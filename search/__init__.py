"""Which changes are worth it: the search loop, the Pareto front and the command line.

``search.cli`` imports none of the heavy libraries (torch, optuna, pandas); commands load what they need.

The package is also the function ``leanfront.search(...)``: an attribute can be only one of the two.
"""

import sys
from types import ModuleType
from typing import Any

if __name__ == "search":  # from the repository's folder, or a task written for version 0.1
    raise ImportError("the package is leanfront: `from leanfront import Task`", name="search")


class _Search(ModuleType):
    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """As ``leanfront.runs.search``."""
        from leanfront.runs import search

        return search(*arguments, **named)


sys.modules[__name__].__class__ = _Search
