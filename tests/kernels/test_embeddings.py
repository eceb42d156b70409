"""The kernels of embeddings against PyTorch in float64; on a CPU with TRITON_INTERPRET=1, where Triton is there."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from megabert.model.attention import HAS_TRITON

from .test_residual_norm import DEVICE, TYPES, mask, random, relative_error

pytestmark = pytest.mark.skipif(not HAS_TRITON, reason="the kernels need a GPU, or Triton and TRITON_INTERPRET=1")
VOCABULARY, POSITIONS, SEGMENTS = 50, 20, 3


def ids_of(rows):
    return tuple(torch.randint(size, (rows,), device=DEVICE) for size in (VOCABULARY, POSITIONS, SEGMENTS))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize(("has_segments", "has_total", "drops_norm"), [(1, 1, 0), (0, 0, 0), (1, 0, 1)])
@pytest.mark.parametrize(("dtype", "tolerance"), TYPES)
def test_embeddings_and_gradients_match_the_formula(dtype, tolerance, has_segments, has_total, drops_norm, dropout):
    from megabert.kernels.embeddings import EmbeddingTables, embedding_norm, embedding_norm_backward

    torch.manual_seed(0)
    rows, width = 37, 600
    ids, seed_1 = ids_of(rows), torch.tensor([2**31 - 5], device=DEVICE)
    tables = [random(size, width, dtype=dtype) for size in (VOCABULARY, POSITIONS, SEGMENTS)][: 2 + has_segments]
    weight, shift, d_total, d_normed = (random(*shape, dtype=dtype) for shape in 2 * [(width,)] + 2 * [(rows, width)])
    exact = sum(table.double()[index] for table, index in zip(tables, ids, strict=False)).requires_grad_()
    exact_weight, exact_shift = (item.double().requires_grad_() for item in (weight, shift))
    kept = mask(seed_1, rows, width, dropout) / (1 - dropout)
    expected = exact if drops_norm else exact * kept
    normed = F.layer_norm(expected, (width,), exact_weight, exact_shift, 1e-5)
    normed = normed * kept if drops_norm else normed
    given = EmbeddingTables(*tables, *[None] * (1 - has_segments))
    total, actual, statistics = embedding_norm(
        ids, given, weight, shift, 1e-5, seed_1, dropout, drops_norm=bool(drops_norm)
    )
    assert relative_error(total, expected) < tolerance
    assert relative_error(actual, normed) < tolerance
    outputs, directions = ([expected, normed], [d_total, d_normed]) if has_total else ([normed], [d_normed])
    gradients = torch.autograd.grad(outputs, [exact, exact_weight, exact_shift], [item.double() for item in directions])
    segments = [gradients[0][ids[2] == segment].sum(0) for segment in range(SEGMENTS * has_segments)]
    own = embedding_norm_backward(
        d_total if has_total else None, d_normed, total, statistics, weight, ids[2], len(segments), seed_1, dropout,
        drops_norm=bool(drops_norm),
    )  # fmt: skip
    sums = (own.embedding_TD, *own.norm_2D, *own.segment_SD)
    for mine, theirs in zip(sums, [*gradients, *segments], strict=True):
        assert relative_error(mine, theirs) < 2 * tolerance


@pytest.mark.parametrize(
    ("rows", "num_rows", "width"), [(1, 3, 24), (64, 300, 24), (150, 2, 608), (100, 40_000, 24), (0, 3, 24)]
)
@pytest.mark.parametrize(("dtype", "tolerance"), TYPES)
def test_gradients_of_tables_are_sums_by_id(dtype, tolerance, rows, num_rows, width):
    from megabert.kernels.embedding_gradient import embedding_gradient

    torch.manual_seed(0)
    ids = torch.randint(num_rows, (rows,), device=DEVICE)
    ids[1 : rows // 2] = num_rows - 1  # one row of many tokens
    gradients = random(rows, width, dtype=dtype)
    actual = embedding_gradient(gradients, ids, num_rows)
    expected = torch.zeros(num_rows, width, dtype=torch.float64, device=DEVICE).index_add(0, ids, gradients.double())
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=1e-4)
    assert torch.equal(embedding_gradient(gradients, ids, num_rows), actual)


@pytest.mark.parametrize("longest", [15, 16, 17, 600])
def test_runs_of_equal_ids_end_anywhere_in_a_chunk(longest):
    from megabert.kernels.embedding_gradient import embedding_gradient

    lengths = torch.tensor([longest, 1, 0, longest, 16, 2, 31])
    ids = torch.arange(7).repeat_interleave(lengths).to(DEVICE)
    # Counts are exact in float32, so every token counts once, whatever the order.
    gradients = torch.ones(len(ids), 16, device=DEVICE)
    order = torch.randperm(len(ids), device=DEVICE)
    assert torch.equal(embedding_gradient(gradients, ids[order], 7)[:, 3], lengths.float().to(DEVICE))


OUTSIDE = """
import torch
from megabert.kernels.embeddings import EmbeddingTables, embedding_norm
tables = EmbeddingTables(*(torch.zeros(size, 16, device="cuda") for size in (50, 20)), None)
ids, rest, norm = torch.tensor([3, 50], device="cuda"), torch.zeros(2, dtype=int, device="cuda"), torch.ones(16).cuda()
embedding_norm((ids, rest, rest), tables, norm, norm, 1e-5, ids[:1], 0.0, drops_norm=False)
torch.cuda.synchronize()
"""


@pytest.mark.skipif(not torch.cuda.is_available(), reason="assertions on the device need a GPU")
def test_an_id_outside_of_its_table_raises():
    # In a process of its own, since the GPU is of no use to it afterwards.
    done = subprocess.run([sys.executable, "-c", OUTSIDE], capture_output=True, text=True)
    assert done.returncode != 0
    assert "outside of its embedding table" in done.stderr
    assert "device-side assert" in done.stderr
