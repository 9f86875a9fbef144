"""Real data, as tensors."""

from ddray.data.dataset import Dataset, Split
from ddray.data.images import DatasetInfo, available, load

__all__ = ["Dataset", "DatasetInfo", "Split", "available", "load"]
