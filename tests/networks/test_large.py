import pytest
import torch
import torchvision
from torch import Tensor, nn

from ddray.errors import RequestError
from ddray.networks import build
from ddray.networks.network import Network


def on_meta(arch: str, shape: tuple[int, ...], classes: int, arguments: dict[str, bool] | None = None) -> Network:
    """Shapes without memory: a quarter of a gigabyte of weights would be drawn only to be counted."""
    with torch.device("meta"):
        return build(arch, shape, classes, arguments)


def random_weights(network: Network, spread: float) -> Tensor:
    return spread * torch.randn(network.size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("arch", "shape", "classes", "size"),
    [
        ("AlexNet", (3, 224, 224), 20, 57_085_780),
        ("AlexNet", (3, 224, 224), 200, 57_823_240),
        ("AlexNet", (1, 224, 224), 20, 57_085_780 - 2 * 64 * 121),
        ("ResNet18", (3, 32, 32), 10, 11_173_962),
        ("ResNet18", (1, 28, 28), 10, 11_173_962 - 2 * 64 * 9),
        ("ResNet18", (3, 64, 64), 2, 11_173_962 - 9 * 513),
    ],
)
def test_sizes(arch: str, shape: tuple[int, ...], classes: int, size: int) -> None:
    assert on_meta(arch, shape, classes).size == size


@pytest.mark.parametrize(
    ("arch", "shape", "arguments", "part"),
    [
        ("AlexNet", (3, 32, 32), {}, "takes images of 224×224, the data has 32×32"),
        ("AlexNet", (2, 224, 224), {}, "takes 1 or 3 channels, the data has 2"),
        ("AlexNet", (224,), {}, "it takes images"),
        ("AlexNet", (3, 224, 224), {"dropout": 0.2}, "dropout is true or false, not 0.2"),
        ("AlexNet", (3, 224, 224), {"width": 3}, "does not take these"),
        ("ResNet18", (3, 27, 27), {}, "sides of 28 to 64, the data has 27×27"),
        ("ResNet18", (3, 65, 65), {}, "sides of 28 to 64, the data has 65×65"),
        ("ResNet18", (3, 32, 28), {}, "takes square images with sides of 28 to 64, the data has 32×28"),
        ("ResNet18", (4, 32, 32), {}, "takes 1 or 3 channels, the data has 4"),
        ("ResNet18", (32,), {}, "it takes images"),
        ("ResNet18", (3, 32, 32), {"dropout": True}, "does not take these"),
    ],
)
def test_refusals(arch: str, shape: tuple[int, ...], arguments: dict[str, float], part: str) -> None:
    with pytest.raises(RequestError) as refusal:
        build(arch, shape, 10, arguments)
    assert part in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_alexnet_is_torchvisions() -> None:
    network = on_meta("AlexNet", (3, 224, 224), 20)
    with torch.device("meta"):
        theirs = Network(torchvision.models.alexnet(num_classes=20))
    assert list(network.shapes.values()) == list(theirs.shapes.values())
    weights, x = random_weights(network, 0.02), torch.randn(1, 3, 224, 224)
    logits = network(weights, x)
    assert logits.std() > 0.01
    torch.testing.assert_close(logits, theirs(weights, x))


def test_alexnets_dropout_is_two_layers_and_moves_no_weight() -> None:
    without, with_dropout = (on_meta("AlexNet", (3, 224, 224), 20, {"dropout": on}) for on in (False, True))
    assert without.shapes == with_dropout.shapes
    assert [m.p for m in with_dropout.module.modules() if isinstance(m, nn.Dropout)] == [0.5, 0.5]
    assert not any(isinstance(m, nn.Dropout) for m in without.module.modules())
    drops = [i for i, m in enumerate(with_dropout.module.children()) if isinstance(m, nn.Dropout)]
    assert all(isinstance(with_dropout.module[i + 1], nn.Linear) for i in drops)


def torchvisions_resnet18(channels: int) -> nn.Module:
    module = torchvision.models.resnet18(num_classes=10)
    module.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
    module.maxpool = nn.Identity()
    return module.train()


@pytest.fixture(scope="module")
def resnet18() -> Network:
    return build("ResNet18", (3, 32, 32), 10)


@pytest.mark.parametrize(("channels", "size"), [(3, 32), (1, 28), (3, 45)])
def test_resnet18_is_torchvisions_in_training(channels: int, size: int) -> None:
    network, theirs = build("ResNet18", (channels, size, size), 10), torchvisions_resnet18(channels)
    assert list(network.shapes.values()) == [tuple(p.shape) for p in theirs.parameters()]
    # Norms too get weights of their own, so that none can stand for another.
    weights = network.draw("default", 1.0, torch.Generator().manual_seed(0)) + random_weights(network, 0.01)
    nn.utils.vector_to_parameters(weights, theirs.parameters())
    x = torch.randn(3, channels, size, size)
    logits = theirs(x)
    torch.testing.assert_close(network(weights, x), logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(network(weights, x, seed=1), logits, rtol=1e-4, atol=1e-4)


def test_resnet18_keeps_no_statistics(resnet18: Network) -> None:
    assert not list(resnet18.module.buffers())
    assert sum(isinstance(m, nn.BatchNorm2d) for m in resnet18.module.modules()) == 20
    weights = resnet18.draw("kaiming", 1.0, torch.Generator().manual_seed(0))
    x, others = torch.randn(2, 3, 32, 32), torch.randn(2, 3, 32, 32)
    logits = resnet18(weights, x)
    resnet18(weights, others + 5, seed=1)
    torch.testing.assert_close(resnet18(weights, x), logits)
    torch.testing.assert_close(resnet18.install(weights)(x), logits)
    # An example's logits depend on its company.
    assert not torch.allclose(resnet18(weights, torch.cat([x[:1], others[:1]]))[0], logits[0], atol=1e-2)


# torch's own: the first use of its forward mode in a process scripts a few functions.
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")
def test_second_derivatives_go_through_resnet18() -> None:
    """H·v backward and forward through the gradient; backward through a `jvp`, torch's batch norm is wrong (2.15)."""
    network = build("ResNet18", (1, 28, 28), 3).to(dtype=torch.float64)
    g = torch.Generator().manual_seed(0)
    weights = network.draw("kaiming", 1.0, g)
    x = torch.randn(2, 1, 28, 28, generator=g, dtype=torch.float64)
    v = torch.randn(network.size, generator=g, dtype=torch.float64)

    def loss(weights: Tensor) -> Tensor:
        return nn.functional.cross_entropy(network(weights, x), torch.tensor([0, 2]))

    gradient, product = torch.func.vjp(torch.func.grad(loss), weights)
    torch.testing.assert_close(torch.func.jvp(loss, (weights,), (v,))[1], gradient @ v)
    backward, forward = product(v)[0], torch.func.jvp(torch.func.grad(loss), (weights,), (v,))[1]
    assert bool(backward.isfinite().all())
    assert backward.norm() > 1
    assert (backward - forward).norm() < 1e-9 * backward.norm()
