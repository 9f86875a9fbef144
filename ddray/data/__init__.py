"""Real data, as tensors."""

from ddray.data.dataset import Dataset, DatasetInfo, Split, TextOptions
from ddray.data.load import available, load
from ddray.data.text import Corpus, RealData, TextDataset

__all__ = ["Corpus", "Dataset", "DatasetInfo", "RealData", "Split", "TextDataset", "TextOptions", "available", "load"]
