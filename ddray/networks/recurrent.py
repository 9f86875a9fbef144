"""Recurrent layers that can be differentiated twice: torch's weights, and a loop over time in place of its kernels.

torch runs `nn.RNN` and `nn.LSTM` on a GPU by kernels that have no second derivative, and under `torch.func` they read their
weights from a list of their own, past the tensors put in their place. Here a step in time is a handful of plain operations on
weights that are looked up whenever they are used.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

States = tuple[Tensor, ...]
"""What one step in time hands to the next, each [directions, N, hidden]; the first is the hidden state."""


class _Layers(nn.RNNBase):
    """What both have in common.

    Args:
        width: of a time step's input.
        hidden: width of a direction's state.
        layers: how many are stacked.
        bidirectional: a second pass reads from the end; its state comes last in the output.

    """

    def __init__(self, width: int, hidden: int, layers: int = 1, *, bidirectional: bool = False) -> None:
        # What comes next in line is nn.RNN or nn.LSTM.
        super().__init__(width, hidden, layers, batch_first=True, bidirectional=bidirectional)  # type: ignore[arg-type]

    def flatten_parameters(self) -> None:
        """Nothing: no kernel of cuDNN asks for the weights as one block."""


class RNN(_Layers, nn.RNN):
    """`torch.nn.RNN` with tanh, batch first: [N, L, width] to the last layer's final states [N, directions · hidden]."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return _final_state(self, x, 1, _rnn_step, lambda rows: rows)


class LSTM(_Layers, nn.LSTM):
    """`torch.nn.LSTM`, batch first: [N, L, width] to the last layer's final hidden states [N, directions · hidden]."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return _final_state(self, x, 2, _lstm_step, _sigmoids_first)


def _rnn_step(z: Tensor, _: States) -> States:
    return (torch.tanh(z),)


def _lstm_step(z: Tensor, states: States) -> States:
    width = z.shape[-1] // 4
    sigmoids, candidate = z.split((3 * width, width), -1)
    enter, keep, show = torch.sigmoid(sigmoids).chunk(3, -1)
    cell = keep * states[1] + enter * torch.tanh(candidate)
    return show * torch.tanh(cell), cell


def _sigmoids_first(rows: Tensor) -> Tensor:
    # torch's order is in, forget, candidate, out. With the three gates side by side one sigmoid serves them all.
    enter, keep, candidate, show = rows.chunk(4, 1)
    return torch.cat([enter, keep, show, candidate], 1)


def _final_state(
    layers: nn.RNNBase,
    x: Tensor,
    kept: int,
    step: Callable[[Tensor, States], States],
    order: Callable[[Tensor], Tensor],
) -> Tensor:
    """The final hidden state [N, directions · hidden] of the last of `layers` on x [N, L, width].

    Args:
        layers: whose weights these are.
        x: sentences.
        kept: how many states a step in time hands on.
        step: from a step's pre-activations [directions, N, gates · hidden] and the states before to those after.
        order: puts the rows of weights [directions, gates · hidden, ...] in the order that `step` wants.

    """
    sides = ("", "_reverse") if layers.bidirectional else ("",)

    def weights(name: str) -> Tensor:
        return order(torch.stack([getattr(layers, name + side) for side in sides]))

    sequence = x.transpose(0, 1)  # [L, N, width]
    for layer in range(layers.num_layers):
        into, bias = weights(f"weight_ih_l{layer}"), weights(f"bias_ih_l{layer}") + weights(f"bias_hh_l{layer}")
        back = weights(f"weight_hh_l{layer}").transpose(1, 2)
        # What the inputs add is one product for all times; both directions then take a step together, as one product.
        added = F.linear(sequence, into.flatten(0, 1), bias.flatten()).chunk(len(sides), -1)
        times = _both(added[0], *added[1:]).unbind(0)
        states = (torch.zeros_like(times[0][..., : layers.hidden_size]),) * kept
        hidden = []
        for z in times:
            states = step(torch.baddbmm(z, states[0], back), states)
            hidden.append(states[0])
        if layer + 1 < layers.num_layers:
            forward, *backward = torch.stack(hidden).unbind(1)
            sequence = torch.cat([forward, *(side.flip(0) for side in backward)], -1)
    return torch.cat(states[0].unbind(0), -1)


def _both(forward: Tensor, *backward: Tensor) -> Tensor:
    """Directions side by side [L, directions, N, width], the second in its own order of time."""
    return torch.stack([forward, *(side.flip(0) for side in backward)], 1)
