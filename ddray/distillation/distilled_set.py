"""The finished artefact: a handful of synthetic examples and all that is needed to train on them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ddray.data import Corpus, Dataset, RealData, TextDataset
from ddray.data import load as load_dataset
from ddray.data.words import WordTable
from ddray.distillation import set_files
from ddray.distillation.decode import nearest_words, write_listing
from ddray.distillation.engine import engine_for_scores, make_engine, resolve_device
from ddray.distillation.evaluate import (
    Judge,
    Protocol,
    Score,
    SplitName,
    constant_rates,
    part_for,
    starts_to_score,
)
from ddray.distillation.manifest import DatasetRecord, Manifest
from ddray.distillation.preview import draw, drawable
from ddray.distillation.streams import generator, seed_of
from ddray.distillation.unroll import Synthetic, train_as_distilled
from ddray.errors import RequestError
from ddray.networks import ARCHITECTURES, Network, build


@dataclass(frozen=True)
class DistilledSet:
    """Synthetic inputs, labels and learning rates.

    Attributes:
        inputs: [S, n, ...] in normalised space, S minibatches of n samples.
        labels: [S, n, width] targets as the loss sees them.
        rates: [T] positive learning rates, one for each inner step.
        known: [starts, P] initial weights of a `fixed` network source, else None.
        manifest: everything else.
        vectors: for text, the vector of each word, [V, D]; else None.

    """

    inputs: Tensor
    labels: Tensor
    rates: Tensor
    known: Tensor | None
    manifest: Manifest
    vectors: Tensor | None = None

    @property
    def stored_samples(self) -> int:
        """Examples in the file: the budget that users compare by."""
        return self.inputs.shape[0] * self.inputs.shape[1]

    @property
    def synthetic(self) -> Synthetic:
        """The tensors as the inner loop takes them."""
        return Synthetic(self.inputs, self.labels, self.rates)

    def to(self, device: torch.device | str) -> DistilledSet:
        """The set on a device, where its networks are then trained and judged.

        Raises:
            RequestError: a device that torch does not know or this machine does not have.

        """
        place = resolve_device(str(device), "device")
        known, vectors = (None if kept is None else kept.to(place) for kept in (self.known, self.vectors))
        inputs, labels, rates = (kept.to(place) for kept in (self.inputs, self.labels, self.rates))
        return replace(self, inputs=inputs, labels=labels, rates=rates, known=known, vectors=vectors)

    def save(self, directory: Path | str) -> Path:
        """Write `distilled.safetensors` and `manifest.json` into `directory`, whole or not at all.

        Raises:
            RequestError: the directory exists and holds something other than a distilled set.

        """
        tensors = {"inputs": self.inputs, "labels": self.labels, "rates": self.rates}
        tensors |= {
            name: kept for name, kept in (("known", self.known), ("vectors", self.vectors)) if kept is not None
        }
        return set_files.write(Path(directory), tensors, self.manifest)

    def build_network(self, network: nn.Module | None = None) -> Network:
        """The network that the manifest names, if it is one of ours, or the one given, checked against its shapes."""
        record = self.manifest.network
        if network is not None:
            built = Network(network)
            built.probe(self.manifest.dataset.input_shape)
        elif record.arch in ARCHITECTURES:
            built = build(
                record.arch, self.manifest.dataset.input_shape, len(self.manifest.dataset.class_names), record.args
            )
        else:
            raise RequestError("network", None, f"the set is for {record.arch}, which is not ours: pass the module in")
        if self.known is not None and built.shapes != record.shapes:
            raise RequestError(
                "network", type(built.module).__name__, "its weights have other shapes than the set's known start"
            )
        return built.to(self.inputs.device)

    def train(
        self, seed: int = 0, network: nn.Module | None = None, *, rate: float | None = None, epochs: int | None = None
    ) -> nn.Module:
        """Train a network on the set, as distilled, and return it in evaluation mode.

        Args:
            seed: decides the fresh weights of a `random` source, or which of the known starts is taken.
            network: a module to train in place of the one that the manifest names; its weights are drawn anew.
            rate: one learning rate for all steps in place of the recorded ones.
            epochs: passes over the set in place of the recorded number; needs `rate`.

        Raises:
            RequestError: the network is not ours and was not passed in, or its shapes clash.

        """
        built = self.build_network(network)
        record = self.manifest.network
        if self.known is not None:
            start = self.known[seed % len(self.known)]
        else:
            start = built.draw(record.law, record.gain, generator("train", seed))
        synthetic, order = self.schedule(rate, epochs)
        step = make_engine(built, self.manifest.distill_config.inner).step
        return built.install(train_as_distilled(step, start, synthetic, order, seed_of("train dropout", seed)))

    def schedule(self, rate: float | None = None, epochs: int | None = None) -> tuple[Synthetic, tuple[int, ...]]:
        """The set and its step order, as recorded or with another constant rate and number of epochs.

        Raises:
            RequestError: other epochs than recorded, without a rate for their steps.

        """
        order = self.manifest.step_order
        if epochs is not None and epochs != len(order) // len(self.inputs):
            if epochs < 1:
                raise RequestError("epochs", epochs, "at least 1")
            if rate is None:
                raise RequestError(
                    "epochs", epochs, f"the set records rates for {len(order)} steps: give a rate as well"
                )
            order = tuple(range(len(self.inputs))) * epochs
        if rate is None:
            return self.synthetic, order
        if not 0 < rate < float("inf"):
            raise RequestError("rate", rate, "a positive number")
        return replace(self.synthetic, rates=constant_rates(rate, len(order), self.rates)), order

    def otherwise(self, rate: float | None = None, epochs: int | None = None, arch: str | None = None) -> str | None:
        """What of this differs from what the set records, in words; None where nothing does."""
        recorded = len(self.manifest.step_order) // len(self.inputs)
        differs = [
            f"rate {rate:g}" if rate is not None else "",
            f"{epochs} epochs" if epochs not in (None, recorded) else "",
            str(arch) if arch not in (None, self.manifest.network.arch) else "",
        ]
        return ", ".join(filter(None, differs)) or None

    def evaluate(
        self,
        nets: int | None = None,
        split: SplitName = "validation",
        *,
        dataset: str | Path | RealData | None = None,
        data: Path | str | None = None,
        network: nn.Module | None = None,
        protocol: Protocol = "as-distilled",
        rate: float | None = None,
        epochs: int | None = None,
    ) -> Score:
        """Score the set: train networks on it and count what they get right.

        Args:
            nets: fresh networks, 20 if not given; a set for known networks has as many as it has starts.
            split: "validation" or "test". A look at test is written down by `ddray evaluate SET --split test`, which knows
                the set's file; this call does not, and keeps no count of looks.
            dataset: the real data, or what leads to it; by itself the recorded name, looked for in `data` if that is given.
            network: a module to train in place of the one that the manifest names.
            protocol: "as-distilled" replays the recorded steps and rates; "retrain" is ordinary SGD on the samples;
                "decoded", for text, replays them on the words nearest to the distilled ones.
            rate: with "as-distilled", one rate for all steps in place of the recorded ones.
            epochs: with "as-distilled" and `rate`, other passes over the set than recorded.

        Raises:
            RequestError: data other than the set was made from, or more networks than there are known starts.

        """
        if protocol not in self.protocols:
            raise RequestError("protocol", protocol, f"one of {', '.join(self.protocols)}")
        if dataset is None or isinstance(dataset, str | Path):
            dataset = load_dataset(self.manifest.dataset.name if dataset is None else dataset, data)
        real = self.real_data(dataset)
        built = self.build_network(network)
        count = self.networks_to_score(nets)
        config = self.manifest.distill_config
        synthetic, order = self.schedule(rate, epochs)
        synthetic = self.in_words(synthetic) if protocol == "decoded" else synthetic
        starts = starts_to_score(built, config.network, self.known, "C", count)
        engine = engine_for_scores(built, config.inner, self.manifest.engine, count * len(order))
        judge = Judge(real.to(self.inputs.device), split, part_for(split, "C", known=self.known is not None))
        score = judge.score(engine, starts, synthetic, order, protocol)
        return score.model_copy(update={"otherwise": self.otherwise(rate, epochs)})

    def real_data(self, loaded: RealData) -> Dataset:
        """Real data as the set's networks are shown it: for text, by the set's own words and vectors.

        Raises:
            RequestError: not, byte for byte, the data that the set was made from.

        """
        check_same_data(self.manifest.dataset, loaded)
        options, text = self.manifest.distill_config.data.text, self.manifest.text
        if text is None or self.vectors is None:
            return loaded.presented(options)
        corpus = loaded.corpus if isinstance(loaded, TextDataset) else loaded
        if not isinstance(corpus, Corpus):
            raise RequestError("dataset", loaded.name, "text, as the set is")
        table = WordTable(text.words, self.vectors.cpu().numpy(), text.vectors)
        return corpus.presented_with(table, text.max_length, options)

    def in_words(self, synthetic: Synthetic) -> Synthetic:
        """A synthetic set of this set's sentences with every position replaced by the vector of the nearest word.

        Raises:
            RequestError: the set is not text.

        """
        if self.vectors is None:
            raise RequestError("protocol", "decoded", "for text alone")
        return replace(synthetic, inputs=self.vectors[nearest_words(synthetic.inputs, self.vectors)[0][..., 0]])

    @property
    def protocols(self) -> tuple[Protocol, ...]:
        """The ways in which a set like this is scored."""
        return ("as-distilled", "retrain") if self.vectors is None else ("as-distilled", "retrain", "decoded")

    @property
    def preview_suffix(self) -> str | None:
        """The file in which a set like this is looked at; None if it is neither text nor images that can be drawn."""
        if self.vectors is not None:
            return ".txt"
        return ".png" if drawable(self.manifest.dataset.input_shape) else None

    def networks_to_score(self, nets: int | None) -> int:
        """The number of networks of a score; refuses to draw more than a known source has."""
        if self.known is None:
            if nets is not None and nets < 1:
                raise RequestError("nets", nets, "at least 1")
            return nets or 20
        if nets is not None and nets != len(self.known):
            allowed = f"the set is for {len(self.known)} known network(s); leave it out"
            raise RequestError("nets", nets, allowed)
        return len(self.known)

    def preview(self, file: Path | str) -> Path:
        """Show the synthetic examples with their labels: images in a .png, .pdf or .svg, sentences in a .txt as words."""
        return draw(self, Path(file)) if self.vectors is None else write_listing(self, Path(file))


def load(directory: Path | str) -> DistilledSet:
    """Read a distilled set from the directory that `save` wrote. Nothing that a manifest names is imported.

    Raises:
        RequestError: not a distilled set; truncated, altered, or of a newer format.

    """
    tensors, manifest = set_files.read(Path(directory))
    return DistilledSet(
        tensors["inputs"], tensors["labels"], tensors["rates"], tensors.get("known"), manifest, tensors.get("vectors")
    )


def check_same_data(record: DatasetRecord, dataset: RealData) -> None:
    """Refuse data whose splits are not, byte for byte, those that a set was made from."""
    found = dataset.digests()
    for split, digest in record.digests.items():
        if found[split] != digest:
            raise RequestError("dataset", dataset.name, f"its {split} split is not the one this set was made from")


def vectors_of(dataset: Dataset) -> Tensor | None:
    """The vectors that go into a set made from a dataset: those of a text, where the dataset lies."""
    return dataset.vectors.clone() if isinstance(dataset, TextDataset) else None
