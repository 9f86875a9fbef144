"""Networks for sentences, which come embedded: x is [N, L, E], L positions of E numbers each.

The table of word vectors is no part of them. Layers and sizes are those that text was first distilled with (Sucholutsky &
Schonlau, "Soft-Label Dataset Distillation and Text Dataset Distillation", 2019), but for `Transformer`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddray.errors import RequestError
from ddray.networks.recurrent import LSTM, RNN

_LONG = 48
"""Positions from which on it pays to look up the winners' windows, rather than differentiate through all of them."""
_CACHED = 3_200
"""Positions whose responses stay in the cache between being added up and compared: 3.7 times as fast as 512 whole reviews."""


@runtime_checkable
class TakesWords(Protocol):
    """A network that can be given sentences as numbers of words, which is faster than as vectors."""

    def by_words(self, vectors: Tensor) -> Callable[[Tensor], Tensor]:
        """From numbers of words, int [N, L], whose vectors are [V, E], to logits [N, outputs], in evaluation."""


class TextConvNet(nn.Module):
    """Kim's CNN: 100 kernels each over 3, 4 and 5 words, the largest response of each; 120,601 weights for E = 100, binary.

    Args:
        input_shape: (L, E) with L at least 5.
        outputs: number of logits.
        dropout: share of the 300 responses that are dropped in training.

    """

    def __init__(self, input_shape: tuple[int, ...], outputs: int, dropout: float = 0.5) -> None:
        length, width = sentences_of("TextConvNet", input_shape)
        if length < 5:
            allowed = "at least 5 for TextConvNet, whose largest kernel spans 5 words"
            raise RequestError("data.max_length", length, allowed)
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(1, 100, (words, width)) for words in (3, 4, 5))
        self.dropout = _dropout(dropout)
        self.linear = nn.Linear(300, outputs)

    def forward(self, x: Tensor) -> Tensor:
        responses = [_largest(x, layer.weight[:, 0], layer.bias) for layer in self.convolutions]  # type: ignore[arg-type, index]
        # ReLU after the maximum is the same function as before it, on a fraction of the values.
        logits: Tensor = self.linear(self.dropout(torch.relu(torch.cat(responses, 1))))
        return logits

    @torch.no_grad()
    def by_words(self, vectors: Tensor) -> Callable[[Tensor], Tensor]:
        """The network in evaluation for sentences that are numbers of words, int [N, L], of vectors [V, E], to logits.

        The same as `forward` of the vectors, to rounding, and far faster over many sentences: what a kernel makes of a word at
        each of its places is multiplied out once for every word, then looked up.
        """
        tables = []
        for layer in self.convolutions:
            assert isinstance(layer, nn.Conv2d)
            kernels = layer.weight[:, 0]
            count, words, width = kernels.shape
            responses = vectors @ kernels.reshape(count * words, width).T
            tables.append((words, responses.view(-1, count, words).transpose(1, 2).flatten(0, 1), layer.bias))

        def largest(ids: Tensor) -> Tensor:
            found = []
            for words, table, bias in tables:
                places = ids.unfold(1, words, 1) * words + torch.arange(words, device=ids.device)
                responses = F.embedding_bag(places.flatten(0, 1), table, mode="sum")
                found.append(responses.view(len(ids), -1, table.shape[1]).amax(1) + bias)  # type: ignore[operator]
            return torch.cat(found, 1)

        @torch.no_grad()
        def logits(ids: Tensor) -> Tensor:
            together = max(1, _CACHED // ids.shape[1]) if ids.device.type == "cpu" else len(ids)
            found: Tensor = self.linear(torch.relu(torch.cat([largest(part) for part in ids.split(together)])))
            return found

        return logits


def _largest(x: Tensor, kernels: Tensor, bias: Tensor) -> Tensor:
    """The largest response over time [N, C] of kernels [C, words, E] with bias [C] to sentences x [N, L, E].

    Only the position that wins passes a gradient on. In a long sentence it is therefore looked for without one, and the
    response there is computed once more: the same value and derivatives of every order, for a fraction of the work.
    """
    words = kernels.shape[1]
    if x.shape[1] < _LONG:
        return F.linear(_windows(x, words), kernels.flatten(1), bias).max(1)[0]
    winners = F.linear(_windows(x.detach(), words), kernels.detach().flatten(1)).max(1)[1]  # [N, C]
    rows = winners + x.shape[1] * torch.arange(len(x), device=x.device)[:, None]
    rows = rows[..., None] + torch.arange(words, device=x.device)
    # A look-up in a table, because the derivative of that adds up in a fixed order on a GPU too.
    won = F.embedding(rows, x.flatten(0, 1)).flatten(2)  # [N, C, words · E]
    return (won * kernels.flatten(1)).sum(2) + bias


def _windows(x: Tensor, words: int) -> Tensor:
    """Every `words` neighbours of x [N, L, E], side by side: [N, L - words + 1, words · E]."""
    return x.unfold(1, words, 1).transpose(2, 3).flatten(2)


class TextConvNet2(nn.Sequential):
    """250 kernels that take the positions for channels and run along the embedding; 138,251 weights for L = 100, binary.

    Args:
        input_shape: (L, E) with E at least 3.
        outputs: number of logits.
        dropout: share of the inputs' values that are dropped in training.

    """

    def __init__(self, input_shape: tuple[int, ...], outputs: int, dropout: float = 0.2) -> None:
        length, _ = sentences_of("TextConvNet2", input_shape, least_width=3)
        super().__init__(
            _dropout(dropout),
            nn.Conv1d(length, 250, 3), nn.AdaptiveMaxPool1d(1), nn.ReLU(), nn.Flatten(),
            nn.Linear(250, 250), nn.ReLU(),
            nn.Linear(250, outputs),
        )  # fmt: skip


class TextRNN1(nn.Sequential):
    """Two layers of tanh RNN in both directions, 100 wide: 101,805 weights for E = 100 and five outputs.

    Args:
        input_shape: (L, E).
        outputs: number of logits.

    """

    def __init__(self, input_shape: tuple[int, ...], outputs: int) -> None:
        _, width = sentences_of("TextRNN1", input_shape)
        super().__init__(RNN(width, 100, 2, bidirectional=True), nn.Linear(200, outputs))


class TextRNN2(nn.Sequential):
    """One tanh RNN, 100 wide, and a sigmoid on the outputs, as the seed has it: 20,705 weights for E = 100 and five outputs.

    What the sigmoid gives is used as logits, in (0, 1). A single one, of a binary network, has no sigmoid here: the loss
    and the threshold at 0 have it, and behind another one class 1 would be named always.

    Args:
        input_shape: (L, E).
        outputs: number of logits.

    """

    def __init__(self, input_shape: tuple[int, ...], outputs: int) -> None:
        _, width = sentences_of("TextRNN2", input_shape)
        super().__init__(RNN(width, 100), nn.Linear(100, outputs), *([nn.Sigmoid()] if outputs > 1 else []))


class TextLSTM1(nn.Sequential):
    """Convolution along the embedding, then an LSTM over its 16 channels: 3,606 weights for L = 20, E = 100, fifty outputs.

    Args:
        input_shape: (L, E) with E at least 8; the LSTM's inputs are E // 4 - 1 wide.
        outputs: number of logits.

    """

    def __init__(self, input_shape: tuple[int, ...], outputs: int) -> None:
        length, width = sentences_of("TextLSTM1", input_shape, least_width=8)
        super().__init__(
            nn.Conv1d(length, 16, 5), nn.MaxPool1d(4), nn.ReLU(),
            LSTM(width // 4 - 1, 10),
            nn.Linear(10, outputs),
        )  # fmt: skip


class TextLSTM2(nn.Sequential):
    """Two layers of LSTM in both directions, 100 wide: 404,406 weights for E = 100 and six outputs.

    Args:
        input_shape: (L, E).
        outputs: number of logits.

    """

    def __init__(self, input_shape: tuple[int, ...], outputs: int) -> None:
        _, width = sentences_of("TextLSTM2", input_shape)
        super().__init__(LSTM(width, 100, 2, bidirectional=True), nn.Linear(200, outputs))


class Transformer(nn.Module):
    """Self-attention as wide as the embedding, then the mean over positions: 244,505 weights for E = 100 and five outputs.

    Sinusoidal position codes are added to the input. The layers, and the order of their weights, are those of
    `torch.nn.TransformerEncoder`, computed in a way that can be differentiated twice.

    Args:
        input_shape: (L, E).
        outputs: number of logits.
        layers: how many, at least one.
        heads: of attention; their number divides E.
        dropout: share that is dropped in training, at the four places of a layer.

    Raises:
        RequestError: inputs of another shape, or heads that do not divide E.

    """

    def __init__(
        self, input_shape: tuple[int, ...], outputs: int, layers: int = 4, heads: int = 4, dropout: float = 0.1
    ) -> None:
        _, width = sentences_of("Transformer", input_shape)
        if type(heads) is not int or heads < 1 or width % heads:
            allowed = f"it takes embeddings whose width {heads!r} heads divide, the data has {width}"
            raise RequestError("arch", "Transformer", allowed)
        if type(layers) is not int or layers < 1:
            raise ValueError(f"layers is a whole number from 1 on, not {layers!r}")
        super().__init__()
        self.layers = nn.Sequential(*(_EncoderLayer(width, heads, dropout) for _ in range(layers)))
        self.linear = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.layers(x + _position_codes(x)).mean(1))
        return logits


class _EncoderLayer(nn.Module):
    """Attention and two linear layers, each with a way around it and a norm after it: [N, L, E] to the same."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.project = nn.Linear(width, 3 * width)  # queries, keys, values
        self.drop_attention = _dropout(dropout)
        self.mix = nn.Sequential(nn.Linear(width, width), _dropout(dropout))
        self.feed = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), _dropout(dropout),
            nn.Linear(width, width), _dropout(dropout),
        )  # fmt: skip
        self.norm_attention = _LayerNorm(width)
        self.norm_feed = _LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        # Each [N, heads, L, E / heads].
        queries, keys, values = self.project(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        scores = queries @ keys.transpose(-1, -2) / queries.shape[-1] ** 0.5
        attended = self.drop_attention(scores.softmax(-1)) @ values
        x = self.norm_attention(x + self.mix(attended.transpose(1, 2).flatten(2)))
        y: Tensor = self.norm_feed(x + self.feed(x))
        return y


class _LayerNorm(nn.LayerNorm):
    """torch's, over the last axis, by plain operations.

    Under `torch.func.vmap` its own kernel has wrong second derivatives, silently (functorch issue 534).
    """

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + self.eps) * self.weight + self.bias


def _position_codes(x: Tensor) -> Tensor:
    """[L, E] for x [N, L, E]: sines and cosines in turn, of wavelengths from 2π to 10,000 · 2π; no buffer, so no weight."""
    _, length, width = x.shape
    places = torch.arange(length, dtype=x.dtype, device=x.device)[:, None]
    powers = torch.arange(0, width, 2, dtype=x.dtype, device=x.device) / width
    angles = places / 10_000**powers
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)[:, :width]


def _dropout(share: float) -> nn.Module:
    # A network that never drops anything has no use for masks, and may be trained beside others.
    return nn.Dropout(share) if share else nn.Identity()


def sentences_of(arch: str, input_shape: tuple[int, ...], least_width: int = 1) -> tuple[int, int]:
    """Positions and width of embedded sentences."""
    if len(input_shape) != 2:
        shape = f"the data has shape {tuple(input_shape)}"
        raise RequestError("arch", arch, f"it takes embedded sentences (length, width), {shape}")
    length, width = input_shape
    if width < least_width:
        raise RequestError("arch", arch, f"it takes embeddings at least {least_width} wide, the data has {width}")
    return length, width
