"""Matrix products in other forms, and which convolutions are written as products."""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ddray.distillation import products


def test_products_in_parts_and_term_by_term_are_products() -> None:
    g = torch.Generator().manual_seed(0)
    assert [products.number_of_parts(n) for n in (7, 16, 84, 97, 400, 7840)] == [1, 2, 7, 1, 25, 32]
    for shape in ((10, 400, 120), (1, 64, 1), (3, 97, 5)):
        a, b = torch.randn(shape[:2], generator=g).double(), torch.randn(shape[1:], generator=g).double()
        bias = torch.randn(shape[2], generator=g).double()
        for form in (products.in_parts, products.term_by_term):
            torch.testing.assert_close(form(a, b), a @ b, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(form(b.T, a.T), b.T @ a.T, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(products.plus(form)(bias, a, b), a @ b + bias, rtol=1e-12, atol=1e-12)


def test_large_patches_are_not_tried() -> None:
    with FakeTensorMode():
        x, w = torch.empty(1024, 128, 32, 32), torch.empty(128, 128, 3, 3)
    assert products.takes(x[:10], w, [1, 1], [1, 1]) and not products.takes(x, w, [1, 1], [1, 1])
    assert products.takes(x[:10], w, [2, 2], [1, 1]) and not products.takes(x[:10], w, [2, 2], [1, 1], turned=True)
