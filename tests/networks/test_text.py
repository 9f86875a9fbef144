"""Networks for sentences: against torch's own layers, against finite differences, and traced."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ddray.distillation.config import EngineConfig
from ddray.distillation.engine import make_engine
from ddray.distillation.inner import InnerStep
from ddray.distillation.outer import OuterLoss, RealBatch
from ddray.distillation.reference import differentiate
from ddray.distillation.traced import TracedStep
from ddray.distillation.unroll import Synthetic, train_as_distilled
from ddray.errors import RequestError
from ddray.networks import build
from ddray.networks.network import Network
from ddray.networks.recurrent import LSTM, RNN
from ddray.networks.text import TakesWords, TextConvNet, Transformer, _position_codes
from tests.distillation.unrolls import PARTS, check_equal, moved

# Each on short sentences; TextConvNet also on some that are long enough for its other form.
PROBLEMS: dict[str, tuple[str, tuple[int, int]]] = {
    "TextConvNet": ("TextConvNet", (6, 8)),
    "TextConvNet, long": ("TextConvNet", (50, 8)),
    "TextConvNet2": ("TextConvNet2", (6, 8)),
    "TextRNN1": ("TextRNN1", (4, 8)),
    "TextRNN2": ("TextRNN2", (4, 8)),
    "TextLSTM1": ("TextLSTM1", (6, 12)),
    "TextLSTM2": ("TextLSTM2", (4, 8)),
    "Transformer": ("Transformer", (6, 8)),
}
DROPS = ("TextConvNet", "TextConvNet2", "Transformer")
ORDER = [0, 1]


def problem(name: str, classes: int = 3, samples: int = 3) -> tuple[Network, Tensor, Synthetic, RealBatch]:
    arch, shape = PROBLEMS[name]
    network, g = build(arch, shape, classes).to(dtype=torch.float64), torch.Generator().manual_seed(0)
    width = 1 if classes == 2 else classes

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=g, dtype=torch.float64)

    rates = 0.1 + 0.1 * torch.rand(len(ORDER), generator=g, dtype=torch.float64)
    synthetic = Synthetic(normal(2, samples, *shape), normal(2, samples, width), rates)
    batch = RealBatch(normal(4, *shape), torch.tensor([0, 1, 1, 0]))
    return network, network.draw("xavier", 1.0, g), synthetic, batch


@pytest.mark.parametrize(
    ("arch", "shape", "classes", "size"),
    [
        ("TextConvNet", (400, 100), 2, 120_601),
        ("TextConvNet", (30, 100), 5, 121_805),
        ("TextConvNet", (30, 100), 6, 122_106),
        ("TextConvNet", (20, 100), 50, 135_350),
        ("TextConvNet2", (100, 100), 2, 138_251),
        ("TextRNN1", (30, 100), 5, 101_805),
        ("TextRNN2", (30, 100), 5, 20_705),
        ("TextLSTM1", (20, 100), 50, 3_606),
        ("TextLSTM2", (30, 100), 6, 404_406),
        ("Transformer", (30, 100), 5, 4 * (6 * 100 * 101 + 2 * 200) + 505),
    ],
)
def test_sizes(arch: str, shape: tuple[int, ...], classes: int, size: int) -> None:
    with torch.device("meta"):
        assert build(arch, shape, classes).size == size


@pytest.mark.parametrize(
    ("arch", "shape", "arguments", "part"),
    [
        *(
            (arch, (3, 32, 32), {}, "takes embedded sentences (length, width), the data has")
            for arch, _ in PROBLEMS.values()
        ),
        ("TextConvNet", (8,), {}, "takes embedded sentences"),
        ("TextConvNet", (4, 8), {}, "data.max_length: 4 is refused: at least 5 for TextConvNet, whose largest kernel"),
        ("TextConvNet", (8, 8), {"dropout": 2}, "dropout probability has to be between 0 and 1"),
        ("TextConvNet", (8, 8), {"width": 2}, "does not take these"),
        ("TextConvNet2", (8, 2), {}, "embeddings at least 3 wide, the data has 2"),
        ("TextLSTM1", (8, 7), {}, "embeddings at least 8 wide, the data has 7"),
        ("TextRNN1", (8, 8), {"dropout": 0.5}, "does not take these"),
        ("Transformer", (8, 6), {}, "embeddings whose width 4 heads divide, the data has 6"),
        ("Transformer", (8, 8), {"heads": 0}, "embeddings whose width 0 heads divide, the data has 8"),
        ("Transformer", (8, 8), {"heads": 2.0}, "embeddings whose width 2.0 heads divide, the data has 8"),
        ("Transformer", (8, 8), {"layers": 0}, "layers is a whole number from 1 on, not 0"),
    ],
)
def test_refusals(arch: str, shape: tuple[int, ...], arguments: dict[str, Any], part: str) -> None:
    with pytest.raises(RequestError) as refusal:
        build(arch, shape, 3, arguments)
    assert part in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_too_short_a_sentence_is_a_matter_of_the_datas_length() -> None:
    with pytest.raises(RequestError) as refusal:
        TextConvNet((4, 8), 1)
    assert refusal.value.key == "data.max_length"


class PlainTextConvNet(TextConvNet):
    """As Kim wrote it: all responses, ReLU, their maximum over time."""

    def forward(self, x: Tensor) -> Tensor:
        responses = [torch.relu(layer(x[:, None])).squeeze(3).max(2)[0] for layer in self.convolutions]
        logits: Tensor = self.linear(self.dropout(torch.cat(responses, 1)))
        return logits


# torch's own: the first use of its forward mode in a process scripts a few functions.
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")
@pytest.mark.parametrize("length", [5, 12, 47, 48, 70])
def test_textconvnet_is_the_plain_form_in_all_derivatives(length: int) -> None:
    g = torch.Generator().manual_seed(0)
    network, plain = (Network(form((length, 8), 2)).to(dtype=torch.float64) for form in (TextConvNet, PlainTextConvNet))
    assert network.shapes == plain.shapes
    weights = network.draw("xavier", 1.0, g) + 0.1 * torch.randn(network.size, generator=g, dtype=torch.float64)
    x, v = (torch.randn(4, length, 8, generator=g, dtype=torch.float64) for _ in range(2))
    torch.testing.assert_close(network(weights, x, seed=1), plain(weights, x, seed=1))

    def first(net: Network) -> tuple[Tensor, ...]:
        return torch.func.grad(lambda w, x: net(w, x, seed=1).square().sum(), (0, 1))(weights, x)  # type: ignore[no-any-return]

    torch.testing.assert_close(first(network), first(plain))
    y, rate = torch.randn(4, 2, generator=g, dtype=torch.float64), torch.tensor(0.2, dtype=torch.float64)
    slope = torch.randn(network.size, generator=g, dtype=torch.float64)
    (after, back), (after_plain, back_plain) = (
        InnerStep(net).record((weights,), x, y, rate, 3) for net in (network, plain)
    )
    torch.testing.assert_close(after, after_plain)
    torch.testing.assert_close(back((slope,)), back_plain((slope,)))
    # Forward over backward: the Hessian by the inputs, along v.
    hessians = [
        torch.func.jvp(torch.func.grad(lambda x, net=net: net(weights, x).square().sum()), (x,), (v,))[1]
        for net in (network, plain)
    ]
    torch.testing.assert_close(*hessians)


def test_sentences_of_nothing_but_padding_have_a_winner() -> None:
    network, weights, synthetic, _ = problem("TextConvNet, long")
    step, zeros = InnerStep(network), torch.zeros_like(synthetic.inputs[0])
    (after,), back = step.record(step.begin(weights), zeros, synthetic.labels[0], synthetic.rates[0], 0)
    slopes = back((torch.ones_like(after),))
    assert all(bool(t.isfinite().all()) for t in (after, slopes[0][0], *slopes[1:]))


@pytest.mark.parametrize(("ours", "theirs"), [(RNN, nn.RNN), (LSTM, nn.LSTM)])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_recurrent_layers_are_torchs(
    ours: type[RNN | LSTM], theirs: Callable[..., nn.RNN | nn.LSTM], layers: int, bidirectional: bool
) -> None:
    layer = ours(5, 7, layers, bidirectional=bidirectional).double()
    other = theirs(5, 7, layers, batch_first=True, bidirectional=bidirectional).double()
    other.load_state_dict(layer.state_dict())
    x = torch.randn(3, 6, 5, dtype=torch.float64, requires_grad=True)
    found, final = layer(x), other(x)[1]
    if isinstance(final, tuple):
        final = final[0]
    expected = torch.cat(final[-2 if bidirectional else -1 :].unbind(0), -1)
    torch.testing.assert_close(found, expected)
    mark = torch.randn_like(found)
    gradients = [
        torch.autograd.grad((out * mark).sum(), [x, *module.parameters()])
        for out, module in ((found, layer), (expected, other))
    ]
    torch.testing.assert_close(*gradients)


def test_recurrent_networks_read_the_weights_they_are_given() -> None:
    network = build("TextLSTM2", (6, 8), 3)
    x, zeros = torch.randn(2, 6, 8), torch.zeros(network.size)
    assert torch.equal(network(zeros, x), torch.zeros(2, 3))
    weights = network.draw("xavier", 1.0, torch.Generator().manual_seed(0))
    torch.testing.assert_close(network.install(weights)(x), network(weights, x))
    assert network(weights, x).abs().min() > 0


def test_transformer_is_torchs_encoder() -> None:
    module = Transformer((6, 8), 3, layers=2, heads=2, dropout=0.0).double()
    layer = nn.TransformerEncoderLayer(8, 2, 8, dropout=0.0, batch_first=True)
    theirs = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).double()
    weights = nn.utils.parameters_to_vector(module.layers.parameters())
    assert [p.shape for p in module.layers.parameters()] == [p.shape for p in theirs.parameters()]
    weights = weights + 0.1 * torch.randn_like(weights)
    nn.utils.vector_to_parameters(weights.detach(), module.layers.parameters())
    nn.utils.vector_to_parameters(weights.detach(), theirs.parameters())
    x = torch.randn(3, 6, 8, dtype=torch.float64)
    torch.testing.assert_close(module(x), module.linear(theirs(x + _position_codes(x)).mean(1)))


def test_position_codes_are_sines_and_cosines_in_turn() -> None:
    codes = _position_codes(torch.empty(1, 7, 5, dtype=torch.float64))
    assert codes.shape == (7, 5)
    for position in range(7):
        for i in range(5):
            angle = torch.tensor(position / 10_000 ** (i // 2 * 2 / 5), dtype=torch.float64)
            torch.testing.assert_close(codes[position, i], angle.cos() if i % 2 else angle.sin())


@pytest.mark.parametrize("name", PROBLEMS)
def test_gradient_through_two_steps_equals_finite_differences(name: str) -> None:
    network, weights, synthetic, batch = problem(name)
    step = InnerStep(network)
    gradient = differentiate(step, weights, synthetic, ORDER, batch, 7)[1]

    def loss(moved: Synthetic) -> float:
        return OuterLoss(network)(train_as_distilled(step, weights, moved, ORDER, 7), batch)[0].item()

    for part in PARTS:
        analytic, values = getattr(gradient, part), getattr(synthetic, part)
        entry = int(analytic.abs().argmax())
        eps, losses = 1e-6 * values.abs().mean().item(), []
        for sign in (1, -1):
            moved = values.clone()
            moved.view(-1)[entry] += sign * eps
            losses.append(loss(replace(synthetic, **{part: moved})))
        difference = (losses[0] - losses[1]) / (2 * eps)
        assert abs(difference) > 1e-7
        assert difference == pytest.approx(analytic.flatten()[entry].item(), rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("name", PROBLEMS)
def test_one_binary_sentence_is_traced_as_it_is_written(name: str) -> None:
    network, weights, synthetic, batch = problem(name, classes=2, samples=1)
    assert network(weights, synthetic.inputs[0]).shape == (1, 1)
    expected = differentiate(InnerStep(network), weights, synthetic, ORDER, batch, 7)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it would say that it runs as written
        found = differentiate(TracedStep(network), weights, synthetic, ORDER, batch, 7)
    check_equal(found, expected, 1e-10)


@pytest.mark.parametrize("name", PROBLEMS)
def test_several_networks_are_trained_side_by_side(name: str) -> None:
    arch, shape = PROBLEMS[name]
    _, _, synthetic, batch = problem(name)
    network = build(arch, shape, 3, {"dropout": 0.0} if arch in DROPS else None).to(dtype=torch.float64)
    assert not network.stochastic
    g = torch.Generator().manual_seed(3)
    starts = torch.stack([network.draw("xavier", 1.0, g) for _ in range(2)])
    alone = [differentiate(InnerStep(network), start, synthetic, ORDER, batch) for start in starts]
    total = Synthetic(*(sum(getattr(slope, part) for _, slope in alone) for part in PARTS))
    found = differentiate(InnerStep(network, batched=True), starts, synthetic, ORDER, batch)
    check_equal(found, (torch.stack([loss for loss, _ in alone]), total))


@pytest.mark.needs_gpu
@pytest.mark.parametrize("name", PROBLEMS)
def test_on_a_gpu_texts_are_differentiated_twice_as_on_a_cpu(name: str) -> None:
    arch, shape = PROBLEMS[name]
    _, _, synthetic, batch = problem(name)
    network = build(arch, shape, 3, {"dropout": 0.0} if arch in DROPS else None).to(dtype=torch.float64)
    start = network.draw("xavier", 1.0, torch.Generator().manual_seed(3))
    loss, slope = differentiate(InnerStep(network), start, synthetic, ORDER, batch)
    network.to("cuda")
    seen, examples = moved(synthetic, batch, "cuda")
    for compiled in ("off", "trace"):
        engine = make_engine(network, config=EngineConfig(device="cuda", compile=compiled, adjoint="full"))
        _, *found = engine.outer_gradient(engine.step, start.cuda(), seen, ORDER, examples, 0, range(len(ORDER)))
        on_cpu = Synthetic(*(part.cpu() for part in (found[1].inputs, found[1].labels, found[1].rates)))
        check_equal((found[0].cpu(), on_cpu), (loss, slope), 1e-8)
    assert torch.backends.cudnn.enabled


@pytest.mark.parametrize("name", PROBLEMS)
def test_evaluation_drops_nothing(name: str) -> None:
    network, weights, synthetic, _ = problem(name)
    x = synthetic.inputs[0]
    logits = network(weights, x)
    assert torch.equal(logits, network(weights, x))
    assert network.stochastic == (PROBLEMS[name][0] in DROPS)
    assert torch.equal(network(weights, x, seed=1), logits) != network.stochastic
    # No sentence depends on its company.
    torch.testing.assert_close(network(weights, x[1:2]), logits[1:2])


@pytest.mark.parametrize("name", PROBLEMS)
def test_mixed_precision_is_near_full(name: str) -> None:
    network, weights, _, batch = problem(name)
    network, weights, batch = network.to(dtype=torch.float32), weights.float(), replace(batch, x=batch.x.float())
    loss, gradient = OuterLoss(network)(weights, batch)
    near, slope = OuterLoss(network, bfloat16=True)(weights, batch)
    torch.testing.assert_close(near, loss, rtol=0.05, atol=0.05)
    assert torch.cosine_similarity(gradient, slope, dim=0) > 0.95


@pytest.mark.parametrize("law", ["xavier", "orthogonal", "default"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_every_weight_is_drawn(name: str, law: Any) -> None:
    network = problem(name)[0]
    one, same, other = (network.draw(law, 1.0, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    for key, value in network.unflatten(one).items():
        if value.dim() > 1:
            assert value.std() > 0
            assert not torch.equal(value, network.unflatten(other)[key])
        elif law != "default":
            assert value.eq(0 if "bias" in key else 1).all()


def test_the_seeds_sigmoid_is_kept() -> None:
    network, weights, synthetic, _ = problem("TextRNN2")
    logits = network(100 * weights, synthetic.inputs[0])
    assert 0 <= logits.min() < 0.5 < logits.max() <= 1


def test_a_binary_network_of_the_seeds_can_name_both_classes() -> None:
    network, weights, synthetic, _ = problem("TextRNN2", classes=2, samples=9)
    logits = network(weights, synthetic.inputs[0])
    assert logits.shape == (9, 1) and logits.min() < 0 < logits.max()


@pytest.mark.parametrize(("length", "dtype", "tolerance"), [(6, torch.float64, 1e-12), (50, torch.float32, 1e-4)])
def test_textconvnet_by_words_is_the_network_of_their_vectors(
    length: int, dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ddray.networks.text._CACHED", 3 * length)  # seven sentences in three parts
    g = torch.Generator().manual_seed(0)
    vectors = torch.randn(20, 8, generator=g, dtype=dtype)
    ids = torch.randint(20, (7, length), generator=g, dtype=torch.int32)
    network = Network(TextConvNet((length, 8), 3)).to(dtype=dtype)
    weights = torch.randn(network.size, generator=g, dtype=dtype)
    module = network.install(weights)
    assert isinstance(module, TakesWords)
    expected = network(weights, vectors[ids.long()])
    torch.testing.assert_close(module.by_words(vectors)(ids), expected, rtol=tolerance, atol=tolerance)
