"""What a task may be scored by, and what it may report: metrics of all outputs and targets of a split."""

from leanfront.search.scores import ACCURACY as ACCURACY
from leanfront.search.scores import AUC as AUC
from leanfront.search.scores import F1 as F1
from leanfront.search.scores import MEAN_ABSOLUTE_ERROR as MEAN_ABSOLUTE_ERROR
from leanfront.search.scores import MEAN_IOU as MEAN_IOU
from leanfront.search.scores import Metric as Metric
