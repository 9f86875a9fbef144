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
Vocabulary = Annotated[int, Number, Field(ge=3, le=1_000_000)]


class Record(BaseModel):
    """A frozen group of settings that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DataConfig(Record):
    """How real examples are presented to the outer loss."""

    augment: bool = True  # use the dataset's own augmentation, where it has one
    vocab_size: Annotated[Vocabulary | None, Number] = None  # text: words known; None: 10,000 at most
    max_length: Annotated[Few | None, Number] = None  # text: words of a sentence; None: what 95 % of them fit in
    embedding_dim: Annotated[Few | None, Number] = None  # text: of learned word vectors; a file has its own. None: 100
    # text: learned, a GloVe name or a file, or several joined by +; auto: GloVe of that dimension if it is on disk, else learned
    vectors: str = "auto"
    word_dropout: Annotated[float, Number, Field(ge=0, lt=1)] = 0.0  # text: share of words unknown in an outer batch

    @property
    def text(self) -> TextOptions:
        """What a text dataset is asked for."""
        return TextOptions(self.vocab_size, self.max_length, self.embedding_dim, self.vectors, self.word_dropout)


class NetworkConfig(Record):
    """Which networks the set is learned for."""

    source: Literal["random", "fixed"] = "random"
    law: Law = "xavier"
    gain: Positive = 1.0
    starts: Annotated[int, Number, Field(ge=1, le=1000)] = 1  # fixed: how many known starts, kept in the artefact
    args: dict[str, Any] = {}

    @model_validator(mode="after")
    def _starts_are_known(self) -> NetworkConfig:
        if self.source == "random" and self.starts != 1:
            raise ValueError("network.starts is for network.source 'fixed'; use outer.networks for random networks")
        return self


class SyntheticConfig(Record):
    """The synthetic examples: S distinct minibatches (steps), each used once in every one of E passes (epochs)."""

    steps: Few = 10
    epochs: Few = 3
    lr: Positive = 0.02  # where every inner learning rate starts
    samples_per_class: Few = 1
    classes: Annotated[int | tuple[int, ...] | None, Number] = (
        None  # the first n classes, or these; None: all that the dataset has
    )
    init: Literal["normal", "real", "average"] = (
        "normal"  # noise in normalised space, training examples, or class means
    )
    learn: bool = True


class LabelsConfig(Record):
    """Where labels start and whether they are learned."""

    init: Literal["one_hot", "smoothed", "normal", "uniform", "zeros", "ones", "bernoulli", "orthogonal"] = "one_hot"
    smoothing: Annotated[float, Number, Field(ge=0, lt=1)] = 0.1  # for smoothed: the share spread over all classes
    learn: bool = True
    softmax: bool = False  # the learned numbers pass through a softmax on their way to the loss
    scale: Finite = 1.0
    shift: Finite = 0.0
    shift_first: bool = True  # (label + shift) * scale, else label * scale + shift


class InnerConfig(Record):
    """The optimiser that a network is trained with on the set: full batches of a step, one learned rate per step."""

    optimiser: Literal["sgd", "momentum", "adam"] = "sgd"
    momentum: Annotated[float, Number, Field(ge=0, lt=1)] = 0.9
    beta1: Annotated[float, Number, Field(ge=0, lt=1)] = 0.9  # adam
    beta2: Annotated[float, Number, Field(ge=0, lt=1)] = 0.999
    epsilon: Positive = 1e-8  # adam: under the root, in units of the squared gradient


class OuterConfig(Record):
    """The optimiser of the set itself: Adam on inputs, labels and raw learning rates."""

    steps: Count = 1000
    lr: Positive = 0.01
    beta1: Annotated[float, Number, Field(ge=0, lt=1)] = 0.5
    beta2: Annotated[float, Number, Field(ge=0, lt=1)] = 0.999
    label_lr: Positive = 1.0  # factor on lr for labels
    rate_lr: Positive = 1.0  # factor on lr for learning rates
    decay: Literal["none", "step", "cosine"] = "cosine"
    decay_every: Count = 400  # step decay: outer steps between two cuts …
    decay_factor: Annotated[float, Number, Field(gt=0, le=1)] = 0.5  # … by this factor
    clip: Positive | None = 5.0  # largest norm of the outer gradient
    clip_average: Positive | None = None  # largest norm in multiples of its running average (RaT-BPTT: 2)
    clip_decay: Annotated[float, Number, Field(ge=0, lt=1)] = 0.9  # of that average, per outer step
    clip_each: bool = False  # norms of inputs, labels and rates each by itself, else of all together
    # Decay of the set's running average over outer steps, which is then what is judged and kept; 0: the set itself.
    average: Annotated[float, Number, Field(ge=0, lt=1)] = 0.0
    batch: Count = 1024  # real examples per outer step
    networks: Annotated[int, Number, Field(ge=1, le=1000)] = 1  # networks per outer step, their gradients averaged
    window: Annotated[Few | None, Number] = None  # inner steps that the gradient goes through; None: all
    unroll_steps: Annotated[Few | None, Number] = None  # inner steps taken at most, where a window may end; None: T
    score_every: Count = 100  # outer steps between two looks at the validation split


class ObjectiveConfig(Record):
    """What the outer loss asks of a trained network."""

    kind: Literal["classification"] = "classification"


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

    device: str = "auto"
    threads: Annotated[int, Number, Field(ge=0, le=1024)] = 0  # CPU threads of torch; 0: leave as it is
    adjoint: Literal["auto", "full", "recompute", "checkpoint"] = "auto"  # what the gradient's memory is spent on
    compile: Literal["auto", "off", "trace", "max"] = "auto"  # as written; as a graph; as a graph through inductor
    # Kernels of inner steps; a word has a letter for each convolution, on a GPU each product too (ddray.distillation.kernels).
    layout: Annotated[str, Field(pattern="^(auto|blocked|plain|im2col|[BPXYMUVSD]+)$")] = "auto"
    outer_layout: Annotated[str, Field(pattern="^(auto|blocked|[BMUVSD]+)$")] = "auto"  # and those of the outer loss, on a GPU
    networks: Literal["auto", "loop", "batch"] = "auto"  # several networks one after another, or side by side
    chunk: Annotated[int, Number, Field(ge=0, le=1_000_000)] = 0  # real examples at a time; 0: 128 on a CPU, else all
    bfloat16: bool = False  # the outer forward pass in mixed precision
    tf32: bool = False  # on a GPU, products and convolutions with ten bits of each factor's mantissa
