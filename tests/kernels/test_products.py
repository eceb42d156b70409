"""Products by measured kernels of cuBLASLt against PyTorch's."""

import pytest
import torch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="the products need a GPU")


@pytest.mark.parametrize("is_second_transposed", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_are_those_of_pytorch(dtype, has_bias, is_second_transposed):
    from megabert.kernels import products

    torch.manual_seed(0)
    first = torch.randn(2059, 1024, device="cuda").to(dtype)
    second = torch.randn(1024, 4096, device="cuda").to(dtype)
    second = second.t().contiguous().t() if is_second_transposed else second
    bias = torch.randn(4096, device="cuda").to(dtype) if has_bias else None
    expected = first.double() @ second.double() + (0 if bias is None else bias.double())
    for _ in range(2):  # measured, and chosen
        actual = products.product(first, second, bias).double()
        assert float((actual - expected).norm() / expected.norm()) < 4e-3


def test_every_suggested_kernel_computes_the_product_with_any_bias():
    from megabert.kernels import products

    if not products.is_hopper(torch.device("cuda")):
        pytest.skip("kernels are chosen on Hopper only")
    opened = products._open()
    first, second = (torch.randn(2048, 2048, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    out, bias = torch.empty_like(first), torch.zeros(2048, device="cuda", dtype=torch.bfloat16)
    product = products._Product(opened._library, opened._handle, opened._workspace)
    suggestions = product.suggest(first, second, bias, out)
    assert suggestions
    for number, suggestion in enumerate(suggestions):
        bias = torch.full_like(bias, number)
        product.run(suggestion, first, second, bias, out.fill_(torch.nan))
        assert torch.equal(out, torch.addmm(bias, first, second))
