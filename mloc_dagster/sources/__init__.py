"""Where models and data sets come from, and the cache that they are pulled into."""

from mloc_dagster.sources.cache import Cache
from mloc_dagster.sources.pull import peek_dataset, peek_model, pull_dataset, pull_model
from mloc_dagster.sources.pulled import Progress, Pulled, PullError

__all__ = ["Cache", "Progress", "PullError", "Pulled", "peek_dataset", "peek_model", "pull_dataset", "pull_model"]
