"""The settings of one distillation: small frozen records, validated once, addressed by dotted keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from ddray.data.dataset import TextOptions
from ddray.distillation.keys import flatten, nest, parse
from ddray.errors import RequestError
from ddray.networks import Law


def _number(value: Any) -> Any:
    if isinstance(value, bool | str):  # pydantic would read true as 1 and "1" as 1
        raise ValueError("a number")
    return value


Number = BeforeValidator(_number)
Positive = Annotated[float, Number, Field(gt=0, le=1e6, allow_inf_nan=False)]
Finite = Annotated[float, Number, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
Count = Annotated[int, Number, Field(ge=1, le=10_000_000)]
Few = Annotated[int, Number, Field(ge=1, le=10_000)]
Several = Annotated[int, Number, Field(ge=1, le=1000)]
Vocabulary = Annotated[int, Number, Field(ge=3, le=1_000_000)]
Share = Annotated[float, Number, Field(ge=0, lt=1)]


class Record(BaseModel):
    """A frozen group of settings that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DataConfig(Record):
    """How real examples are presented to the outer loss."""

    augment: bool = Field(default=True, description="Use the dataset's own augmentation, where it has one.")
    vocab_size: Annotated[Vocabulary | None, Number] = Field(
        default=None, description="For text: how many words are known, the most frequent ones; null: 10,000 at most."
    )
    max_length: Annotated[Few | None, Number] = Field(
        default=None, description="For text: how many words of a sentence are read; null: what 95 % of them fit in, 400 at most."
    )
    embedding_dim: Annotated[Few | None, Number] = Field(
        default=None, description="For text: dimension of learned word vectors; a file has its own; null: 100."
    )
    vectors: str = Field(
        default="auto",
        description="For text: learned, a GloVe name, a file, or several joined by +; auto: GloVe if it is on disk, else learned.",
    )
    word_dropout: Share = Field(default=0.0, description="For text: share of the words of an outer batch that are made unknown.")

    @property
    def text(self) -> TextOptions:
        """What a text dataset is asked for."""
        return TextOptions(self.vocab_size, self.max_length, self.embedding_dim, self.vectors, self.word_dropout)


class NetworkConfig(Record):
    """Which networks the set is learned for."""

    source: Literal["random", "fixed"] = Field(default="random", description="Learn for any random network or fixed, known ones.")
    law: Law = Field(default="xavier", description="The distribution of initial weights; default: each layer's own.")
    gain: Positive = Field(
        default=1.0, description="Gain of the law; normal: its standard deviation; kaiming: the negative slope of a leaky ReLU."
    )
    starts: Several = Field(default=1, description="For source fixed: how many known starts there are, all kept in the set's file.")
    args: dict[str, Any] = Field(default={}, description="What `ddray archs` lists for the architecture: network.args.width=64.")

    @model_validator(mode="after")
    def _starts_are_known(self) -> NetworkConfig:
        if self.source == "random" and self.starts != 1:
            raise ValueError("network.starts is for network.source 'fixed'; use outer.networks for random networks")
        return self


class SyntheticConfig(Record):
    """The synthetic examples: S distinct minibatches (steps), each used once in every one of E passes (epochs)."""

    steps: Few = Field(default=10, description="S, the number of distinct minibatches.")
    epochs: Few = Field(default=3, description="E, the number of passes over all minibatches.")
    lr: Positive = Field(default=0.02, description="Where every inner learning rate starts; the rates are learned.")
    samples_per_class: Few = Field(default=1, description="Examples of each class in a minibatch.")
    classes: Annotated[int | tuple[int, ...] | None, Number] = Field(
        default=None, description="The first n classes, or a list of them by number; null: all that the dataset has."
    )
    init: Literal["normal", "real", "average"] = Field(
        default="normal", description="Start from noise in normalised space, from training examples, or from class averages."
    )
    learn: bool = Field(default=True, description="Learn the examples; otherwise they stay as they start.")


class LabelsConfig(Record):
    """Where labels start and whether they are learned."""

    init: Literal["one_hot", "smoothed", "normal", "uniform", "zeros", "ones", "bernoulli", "orthogonal"] = Field(
        default="one_hot", description="Start from the classes, exact or smoothed, random numbers, constants or orthogonal vectors."
    )
    smoothing: Share = Field(default=0.1, description="For init smoothed: the share of a label that is spread over all classes.")
    learn: bool = Field(default=True, description="Learn the labels; otherwise they stay as they start.")
    softmax: bool = Field(default=False, description="Pass the learned numbers through a softmax on their way to the loss.")
    scale: Finite = Field(default=1.0, description="Factor on the labels at the start.")
    shift: Finite = Field(default=0.0, description="Number added to the labels at the start.")
    shift_first: bool = Field(default=True, description="Start from (label + shift) * scale; otherwise from label * scale + shift.")


class InnerConfig(Record):
    """The optimiser that a network is trained with on the set: full batches of a step, one learned rate per step."""

    optimiser: Literal["sgd", "momentum", "adam"] = Field(default="sgd", description="What trains a network on the set.")
    momentum: Share = Field(default=0.9, description="For momentum: share of the velocity that is kept from step to step.")
    beta1: Share = Field(default=0.9, description="For adam: decay of the average of gradients.")
    beta2: Share = Field(default=0.999, description="For adam: decay of the average of squared gradients.")
    epsilon: Positive = Field(default=1e-8, description="For adam: added under the root, in units of the squared gradient.")


class OuterConfig(Record):
    """The optimiser of the set itself: Adam on inputs, labels and raw learning rates."""

    steps: Count = Field(default=1000, description="Number of outer steps; each changes the set once.")
    lr: Positive = Field(default=0.01, description="Learning rate of the set, before any decay.")
    beta1: Share = Field(default=0.5, description="Decay of Adam's average of gradients.")
    beta2: Share = Field(default=0.999, description="Decay of Adam's average of squared gradients.")
    label_lr: Positive = Field(default=1.0, description="Factor on outer.lr for labels.")
    rate_lr: Positive = Field(default=1.0, description="Factor on outer.lr for the inner learning rates.")
    decay: Literal["none", "step", "cosine"] = Field(
        default="cosine", description="How outer.lr falls: not at all, in cuts, or along a cosine to 0 at the end."
    )
    decay_every: Count = Field(default=400, description="For decay step: outer steps between two cuts.")
    decay_factor: Annotated[float, Number, Field(gt=0, le=1)] = Field(default=0.5, description="For decay step: factor of a cut.")
    clip: Positive | None = Field(default=5.0, description="Largest norm of the outer gradient; null: any.")
    clip_average: Positive | None = Field(
        default=None, description="Largest norm of the outer gradient in multiples of its running average (RaT-BPTT: 2); null: any."
    )
    clip_decay: Share = Field(default=0.9, description="Decay of the average in outer.clip_average, per outer step.")
    clip_each: bool = Field(default=False, description="Clip inputs, labels and rates each by its own norm, not all together.")
    average: Share = Field(
        default=0.0, description="Decay of the set's average over outer steps, which is then judged and kept; 0: the set itself."
    )
    batch: Count = Field(default=1024, description="Real examples per outer step.")
    networks: Several = Field(default=1, description="Networks per outer step; their gradients are averaged.")
    window: Annotated[Few | None, Number] = Field(
        default=None, description="Inner steps that the gradient goes through, up to a random end; null: all that are taken."
    )
    unroll_steps: Annotated[Few | None, Number] = Field(
        default=None, description="Inner steps that an outer step takes at most, where a window may end; null: all there are."
    )
    score_every: Count = Field(default=100, description="Outer steps between two looks at the validation split.")


class ObjectiveConfig(Record):
    """What the outer loss asks of a trained network."""

    kind: Literal["classification"] = Field(default="classification", description="Mean cross-entropy on real examples.")


class DistillConfig(Record):
    """Everything that decides what one distillation computes, apart from its data, architecture and seed."""

    data: DataConfig = DataConfig()
    network: NetworkConfig = NetworkConfig()
    synthetic: SyntheticConfig = SyntheticConfig()
    labels: LabelsConfig = LabelsConfig()
    inner: InnerConfig = InnerConfig()
    outer: OuterConfig = OuterConfig()
    objective: ObjectiveConfig = ObjectiveConfig()

    @classmethod
    def from_flat(cls, values: Mapping[str, Any]) -> DistillConfig:
        """Build from dotted keys: `{"synthetic.steps": 1, "outer.lr": 0.02}`; keys not named keep their defaults.

        Raises:
            RequestError: an unknown key, or a value of the wrong kind or outside its range.

        """
        return parse(cls, nest(values, cls))

    def flat(self) -> dict[str, Any]:
        """Every setting under its dotted key."""
        return flatten(self)

    @property
    def inner_steps(self) -> int:
        """T = S · E."""
        return self.synthetic.steps * self.synthetic.epochs

    @property
    def seen_steps(self) -> int:
        """Inner steps that the gradient goes through."""
        return self.outer.window or self.outer.unroll_steps or self.inner_steps

    def class_ids(self, classes: int) -> tuple[int, ...]:
        """The classes that have synthetic examples, of a dataset with `classes` classes.

        Raises:
            RequestError: `synthetic.classes` names none, one twice, or one that the dataset lacks.

        """
        chosen = self.synthetic.classes
        ids = tuple(range(classes)) if chosen is None else tuple(range(chosen)) if isinstance(chosen, int) else chosen
        if not ids or len(set(ids)) != len(ids) or not set(ids) <= set(range(classes)):
            raise RequestError(
                "synthetic.classes", chosen, f"1 to {classes} classes, or distinct ones of 0 to {classes - 1}"
            )
        return ids

    def stored_samples(self, classes: int) -> int:
        """Examples in the file, for a dataset of `classes` classes."""
        return self.synthetic.steps * len(self.class_ids(classes)) * self.synthetic.samples_per_class

    def step_order(self) -> list[int]:
        """The minibatch [0, S) that each of the T inner steps trains on."""
        return [step for _ in range(self.synthetic.epochs) for step in range(self.synthetic.steps)]


class EngineConfig(Record):
    """How the same numbers are computed; never searched, written down beside every result.

    What is `auto` is settled once, before a sweep or a distillation, by `ddray.distillation.choose`.
    """

    device: str = Field(default="auto", description="cpu, cuda, or cuda:1 and so on; auto: the GPU, where there is one.")
    threads: Annotated[int, Number, Field(ge=0, le=1024)] = Field(default=0, description="CPU threads of torch; 0: as they are.")
    adjoint: Literal["auto", "full", "recompute", "checkpoint"] = Field(
        default="auto", description="Keep the graphs of all inner steps (full), of one (recompute), or of a few (checkpoint)."
    )
    compile: Literal["auto", "off", "trace", "max"] = Field(
        default="auto", description="Run inner steps as written (off), as a graph (trace) or as a graph compiled by torch (max)."
    )
    layout: Annotated[str, Field(pattern="^(auto|blocked|plain|im2col|[BPXYTZL/MUVSD]+)$")] = Field(
        default="auto",
        description="Kernels of inner steps; a word has a letter for each convolution and product (see docs/engine.md).",
    )
    outer_layout: Annotated[str, Field(pattern="^(auto|blocked|[BPXYTZL/MUVSD]+)$")] = Field(
        default="auto", description="Kernels of the outer loss, named as those of engine.layout."
    )
    networks: Literal["auto", "loop", "batch"] = Field(
        default="auto", description="Train the networks of an outer step one after another (loop) or side by side (batch)."
    )
    chunk: Annotated[int, Number, Field(ge=0, le=1_000_000)] = Field(
        default=0, description="Real examples that pass the network at a time; 0: 128 on a CPU, all on a GPU."
    )
    bfloat16: bool = Field(default=False, description="Run the forward pass of the outer loss in mixed precision.")
    tf32: bool = Field(default=False, description="On a GPU, take ten bits of each factor's mantissa in products and convolutions.")
