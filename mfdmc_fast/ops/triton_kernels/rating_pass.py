"""Rating pass: predictions, errors, and the gradient at the embeddings of one side. Run once for each side."""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from mfdmc_fast.ops.triton_kernels import launch
from mfdmc_fast.ops.triton_kernels.device_code import GLOBAL_MEAN
from mfdmc_fast.ops.triton_kernels.entity_forward import Embedded
from mfdmc_fast.ops.triton_kernels.grouping import CHUNK, Groups


@triton.jit(do_not_specialize=["n_ranks", "n_chunks"])
def _rating_pass_kernel(
    p_z,  # [n_ranks, STRIDE] of this side
    p_bias,  # [n_ranks] or None
    p_partner_z,  # [partners, STRIDE]
    p_partner_bias,  # [partners] or None
    p_offsets,  # [n_ranks + 1]
    p_chunk_offsets,  # [n_ranks + 1]
    p_chunk_ranks,  # [n_chunks]
    p_partners,  # [B]
    p_ratings,  # [B]
    p_loss,  # loss constants
    p_grad_z,  # [n_chunks, STRIDE] out
    p_grad_bias,  # [n_chunks] out, or None
    p_squares,  # [programs] out, or None
    n_ranks,
    n_chunks,
    D: tl.constexpr,
    STRIDE: tl.constexpr,
    LENGTH: tl.constexpr,
    CHUNKS: tl.constexpr,
    STEP: tl.constexpr,
    DP: tl.constexpr,
    ACC: tl.constexpr,
):
    """e = 2 (prediction - rating) / B for the ratings of a chunk, and its parts sum e z_partner and sum e of gradients.

    Grid: a program takes CHUNKS chunks, STEP ratings of each at a time. The embedding of its rank and the sum stay in
    registers; a partner's embedding has to be read for the gradient anyway, so the errors are computed anew for each
    side instead of being carried from one order to the other. No atomics: the chunks of a rank are added in order.
    """
    i_program = tl.program_id(0)
    b_chunk = i_program * CHUNKS + tl.arange(0, CHUNKS)
    b_rank = tl.load(p_chunk_ranks + b_chunk, mask=b_chunk < n_chunks, other=n_ranks)
    m_chunk = b_rank < n_ranks
    b_place = b_chunk - tl.load(p_chunk_offsets + b_rank, mask=m_chunk, other=0)
    b_first = tl.load(p_offsets + b_rank, mask=m_chunk, other=0) + b_place * LENGTH
    b_last = tl.minimum(b_first + LENGTH, tl.load(p_offsets + b_rank + 1, mask=m_chunk, other=0))
    b_first = tl.where(m_chunk, b_first, 0)

    b_c = tl.arange(0, DP)
    m_c = b_c < D
    m_z = m_chunk[:, None] & m_c[None, :]
    b_z = tl.load(p_z + b_rank.to(tl.int64)[:, None] * STRIDE + b_c[None, :], mask=m_z, other=0.0)
    b_known = tl.zeros((CHUNKS,), dtype=ACC) + tl.load(p_loss + GLOBAL_MEAN)
    if p_bias is not None:
        b_known += tl.load(p_bias + b_rank, mask=m_chunk, other=0.0)
    b_sum = tl.zeros((CHUNKS, DP), dtype=ACC)
    b_bias_sum = tl.zeros((CHUNKS,), dtype=ACC)
    b_square = tl.zeros((CHUNKS,), dtype=ACC)
    for start in range(0, tl.max(b_last - b_first, 0), STEP):
        b_q = b_first[:, None] + start + tl.arange(0, STEP)[None, :]  # [CHUNKS, STEP]
        m_q = b_q < b_last[:, None]
        b_partner = tl.load(p_partners + b_q, mask=m_q, other=0)
        b_rating = tl.load(p_ratings + b_q, mask=m_q, other=0.0).to(ACC)
        b_partner_z = tl.load(
            p_partner_z + b_partner.to(tl.int64)[:, :, None] * STRIDE + b_c[None, None, :],
            mask=m_q[:, :, None] & m_c[None, None, :],
            other=0.0,
        )  # [CHUNKS, STEP, DP]
        b_error = tl.sum(b_z[:, None, :] * b_partner_z, 2) + b_known[:, None] - b_rating
        if p_partner_bias is not None:
            b_error += tl.load(p_partner_bias + b_partner, mask=m_q, other=0.0)
        b_error = tl.where(m_q, b_error, 0.0)
        b_sum += tl.sum(b_error[:, :, None] * b_partner_z, 1)
        b_bias_sum += tl.sum(b_error, 1)
        b_square += tl.sum(b_error * b_error, 1)

    scale = 2.0 / tl.load(p_offsets + n_ranks).to(ACC)
    tl.store(p_grad_z + b_chunk.to(tl.int64)[:, None] * STRIDE + b_c[None, :], b_sum * scale, mask=m_z)
    if p_grad_bias is not None:
        tl.store(p_grad_bias + b_chunk, b_bias_sum * scale, mask=m_chunk)
    if p_squares is not None:
        tl.store(p_squares + i_program, tl.sum(b_square, 0))


@dataclass(frozen=True)
class RatingGradients:
    """Parts of a side's gradients, one row a chunk, unwritten beyond the last chunk.

    Attributes:
        z: [C, padded(D)].
        bias: [C] or None.
        squares: [programs] squared errors of ratings, all written, or None where they were not wanted.
    """

    z: Tensor
    bias: Tensor | None
    squares: Tensor | None


def rating_pass(own: Embedded, other: Embedded, groups: Groups, loss: Tensor, *, squares: bool) -> RatingGradients:
    """Gradients at the embeddings and biases of one side from B >= 1 ratings.

    Args:
        own, other: of this side and its partners, with biases on both or on neither.
        groups: ratings by the ranks of this side.
        loss: constants as from `loss_constants`.
        squares: also sum the squared errors; once per batch is enough.

    Returns:
        New tensors in the accumulator dtype. Deterministic.
    """
    n_chunks = len(groups.chunk_ranks)
    tile = launch.rating_tile(own.dim)
    n_programs = triton.cdiv(n_chunks, tile.chunks)
    z = own.z.new_empty(n_chunks, own.z.shape[1])
    bias = None if own.bias is None else z.new_empty(n_chunks)
    squared = z.new_empty(n_programs) if squares else None
    _rating_pass_kernel[(n_programs,)](
        own.z,
        own.bias,
        other.z,
        other.bias,
        groups.offsets,
        groups.chunk_offsets,
        groups.chunk_ranks,
        groups.partners,
        groups.ratings,
        loss,
        z,
        bias,
        squared,
        groups.n_ranks,
        n_chunks,
        D=own.dim,
        STRIDE=own.z.shape[1],
        LENGTH=CHUNK,
        CHUNKS=tile.chunks,
        STEP=tile.step,
        DP=tile.dim,
        ACC=launch.language_dtype(z.dtype),
        **launch.options(tile.warps),
    )
    return RatingGradients(z, bias, squared)
