"""Convolutions by other kernels give the same numbers."""

import pytest
import torch
import torch.nn.functional as F

from ddray.distillation.layout import LAYOUTS, convolutions


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": 2},
        {"stride": (2, 1), "padding": (1, 0)},
        {"dilation": 2},
        {"bias": None},
        {"groups": 2},
        {"padding": "same"},
    ],
    ids=str,
)
def test_every_layout_is_the_same_convolution(layout: str, options: dict[str, object]) -> None:
    g = torch.Generator().manual_seed(0)
    draw = {"generator": g, "dtype": torch.float64}
    x, weight = torch.randn(3, 4, 9, 8, **draw), torch.randn(6, 4 // options.get("groups", 1), 3, 1, **draw)  # type: ignore[operator]
    given = {"bias": torch.randn(6, **draw)} | options
    with convolutions(layout):
        found = F.conv2d(x, weight, **given)
    torch.testing.assert_close(found, F.conv2d(x, weight, **given))


def test_torchs_own_setting_is_given_back() -> None:
    before = torch.backends.mkldnn.enabled
    with convolutions("plain"):
        assert not torch.backends.mkldnn.enabled
        with convolutions("blocked"):
            assert not torch.backends.mkldnn.enabled
    assert torch.backends.mkldnn.enabled == before
