"""Ready-made readers of data: what ``leanfront.search.readers`` offers, under the name that tasks use."""

from leanfront.search.readers import *  # noqa: F403
from leanfront.search.readers import __all__ as __all__
