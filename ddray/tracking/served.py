"""A distilled set as an MLflow model: loaded, it is a network trained on the set. No pickle."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ddray.distillation.distilled_set import DistilledSet, load


class TrainedNetwork:
    """What `mlflow.pyfunc.load_model` gives: normalised inputs [n, ...] to logits [n, outputs], both float32."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network

    @torch.no_grad()
    def predict(self, model_input: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of a batch."""
        logits: NDArray[np.float32] = self._network(torch.from_numpy(np.ascontiguousarray(model_input))).numpy()
        return logits


def _load_pyfunc(path: str) -> TrainedNetwork:
    """MLflow's entry point: train the network that the set in `path` is for, with seed 0."""
    return TrainedNetwork(load(path).train(seed=0))


def write_model(distilled: DistilledSet, directory: Path, data: str) -> None:
    """Write an MLflow model into `directory`, the set in its subfolder `data`."""
    distilled.save(directory / data)
    record = distilled.manifest
    model = {
        "flavors": {
            "python_function": {"loader_module": __name__, "data": data, "python_version": platform.python_version()}
        },
        "signature": {
            "inputs": _tensor_schema(record.dataset.input_shape),
            "outputs": _tensor_schema((record.network.outputs,)),
        },
    }
    # An MLmodel is YAML, and so is JSON; MLflow's own writer would load all of mlflow.pyfunc for these few lines.
    (directory / "MLmodel").write_text(json.dumps(model, indent=1) + "\n", encoding="utf-8")


def _tensor_schema(shape: tuple[int, ...]) -> str:
    """MLflow's description of a float32 batch of examples of this shape."""
    return json.dumps([{"type": "tensor", "tensor-spec": {"dtype": "float32", "shape": [-1, *shape]}}])
