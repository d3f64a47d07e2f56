"""Functions that several kernels call: rows of a tile, softmax of a view, small matrix products, optimizer steps.

b_ is a block of values, p_ a pointer, m_ a mask; `share` is a row's part of the batch's ratings.
"""

import triton
import triton.language as tl

# positions in the vector of loss constants; `batch_loss.loss_constants` writes it
SPREAD = tl.constexpr(0)
PROXIMITY = tl.constexpr(1)
ENTROPY = tl.constexpr(2)
L2 = tl.constexpr(3)
BIAS_L2 = tl.constexpr(4)
GLOBAL_MEAN = tl.constexpr(5)
MARGIN = tl.constexpr(6)

# positions in the vector of a step's constants; `batch_loss.adam_steps` and `adagrad_steps` write it
TABLE_STEP = tl.constexpr(0)
BIAS_STEP = tl.constexpr(1)
CENTER_STEP = tl.constexpr(2)
INVERSE_ROOT = tl.constexpr(3)
BETA1 = tl.constexpr(4)
BETA2 = tl.constexpr(5)
REST1 = tl.constexpr(6)
REST2 = tl.constexpr(7)
EPSILON = tl.constexpr(8)

NONE = tl.constexpr(0)
ADAM = tl.constexpr(1)
ADAGRAD = tl.constexpr(2)


@triton.jit
def rows_of_tile(p_rows, p_offsets, i_tile, n_rows, ROWS: tl.constexpr, ACC: tl.constexpr):
    """Ranks [ROWS], rows of the table as int64, whether there is such a rank, whether it has ratings, and its share.

    Without a list of rows a rank is a row; without offsets every rank counts, with share 0.
    """
    b_rank = i_tile * ROWS + tl.arange(0, ROWS)
    m_exists = b_rank < n_rows
    m_active = m_exists
    b_share = tl.zeros((ROWS,), dtype=ACC)
    if p_offsets is not None:
        b_count = tl.load(p_offsets + b_rank + 1, mask=m_exists, other=0)
        b_count -= tl.load(p_offsets + b_rank, mask=m_exists, other=0)
        m_active = b_count > 0
        # an empty batch has no active rank
        b_share = b_count.to(ACC) / tl.maximum(tl.load(p_offsets + n_rows), 1).to(ACC)
    # int64 before it is multiplied by the number of columns
    b_row = b_rank.to(tl.int64)
    if p_rows is not None:
        b_row = tl.load(p_rows + b_rank, mask=m_active, other=0)
    return b_rank, b_row, m_exists, m_active, b_share


@triton.jit
def softmax_of_view(p_logits, b_start, m_rows, first, n_clusters, KP: tl.constexpr, ACC: tl.constexpr):
    """Logits, assignment weights and their logarithms [ROWS, KP] of one view; b_start [ROWS] is where a row begins.

    Columns beyond the view have weight 0 and, so that w ln w is 0 there too, the logarithm 0.
    """
    b_k = tl.arange(0, KP)
    m_k = (b_k < n_clusters)[None, :]
    b_logits = tl.load(p_logits + b_start[:, None] + (first + b_k)[None, :], mask=m_rows[:, None] & m_k, other=0.0).to(
        ACC
    )
    b_x = tl.where(m_k, b_logits, -float("inf"))
    # two differences: the sum of the largest logit and the logarithm would round where logits are large
    b_x = b_x - tl.max(b_x, 1)[:, None]
    b_exp = tl.exp(b_x)
    b_total = tl.sum(b_exp, 1)[:, None]
    return b_logits, b_exp / b_total, tl.where(m_k, b_x - tl.log(b_total), 0.0)


@triton.jit
def centers_of_view(
    p_centers, first, n_clusters, D: tl.constexpr, KP: tl.constexpr, DP: tl.constexpr, ACC: tl.constexpr
):
    """Centers [KP, DP] of one view, 0 beyond it."""
    b_k, b_c = tl.arange(0, KP), tl.arange(0, DP)
    mask = (b_k < n_clusters)[:, None] & (b_c < D)[None, :]
    return tl.load(p_centers + (first + b_k)[:, None] * D + b_c[None, :], mask=mask, other=0.0).to(ACC)


@triton.jit
def entropy_scale(n_clusters, n_views, ACC: tl.constexpr):
    """1 / (V ln K), and 0 where K = 1: what turns the entropy of a view into its part of the entropy term."""
    clusters = tl.maximum(n_clusters, 2).to(ACC)
    return tl.where(n_clusters > 1, 1.0 / (tl.log(clusters) * n_views), 0.0)


@triton.jit
def rows_by_centers(b_w, b_centers, USE_DOT: tl.constexpr):
    """[ROWS, KP] times [KP, DP]."""
    if USE_DOT:
        b_product = tl.dot(b_w, b_centers, input_precision="ieee")
    else:
        b_product = tl.sum(b_w[:, :, None] * b_centers[None, :, :], 1)
    return b_product


@triton.jit
def rows_by_transposed_centers(b_h, b_centers, USE_DOT: tl.constexpr):
    """[ROWS, DP] times the transposed of [KP, DP]."""
    if USE_DOT:
        b_product = tl.dot(b_h, tl.trans(b_centers), input_precision="ieee")
    else:
        b_product = tl.sum(b_h[:, None, :] * b_centers[None, :, :], 2)
    return b_product


@triton.jit
def sum_over_rows(b_w, b_h, USE_DOT: tl.constexpr):
    """The transposed of [ROWS, KP] times [ROWS, DP]."""
    if USE_DOT:
        b_product = tl.dot(tl.trans(b_w), b_h, input_precision="ieee")
    else:
        b_product = tl.sum(b_w[:, :, None] * b_h[:, None, :], 0)
    return b_product


@triton.jit
def adam_quotient(b_m, b_v, p_step):
    """What Adam moves a number by, in units of the step size: m / (sqrt(v) / sqrt(1 - beta2^t) + epsilon)."""
    return b_m / (tl.sqrt(b_v) * tl.load(p_step + INVERSE_ROOT) + tl.load(p_step + EPSILON))


@triton.jit
def adam_moments(p_m, p_v, mask, b_grad, p_step):
    """Both moments after a gradient, written in place."""
    b_m = tl.load(p_m, mask=mask, other=0.0)
    b_v = tl.load(p_v, mask=mask, other=0.0)
    b_m += tl.load(p_step + REST1) * (b_grad - b_m)
    b_v = tl.load(p_step + BETA2) * b_v + tl.load(p_step + REST2) * b_grad * b_grad
    tl.store(p_m, b_m, mask=mask)
    tl.store(p_v, b_v, mask=mask)
    return b_m, b_v


@triton.jit
def store_rounded(p_to, b_x, mask, p_seed, b_index):
    """Store float32 numbers in the table's dtype; in 16 bits up or down by chance, so that the mean of many is exact.

    A step is often smaller than half a unit in the last place, and rounding to the nearest would lose it every time.
    The random numbers depend on the seed and b_index alone: where a number lies in its table.
    """
    TO: tl.constexpr = p_to.dtype.element_ty
    if TO.primitive_bitwidth == 16:
        b_near = b_x.to(TO)
        b_rest = b_x - b_near.to(tl.float32)
        # the neighbour on the other side of x: one more or less in the bits, which have sign and magnitude
        b_bits = b_near.to(tl.int16, bitcast=True)
        m_outwards = tl.abs(b_x) > tl.abs(b_near.to(tl.float32))
        b_other = tl.where(m_outwards, b_bits + 1, b_bits - 1).to(tl.int16).to(TO, bitcast=True)
        b_gap = tl.abs(b_other.to(tl.float32) - b_near.to(tl.float32))
        b_chance = tl.rand(tl.load(p_seed), b_index)
        m_other = b_chance * b_gap < tl.abs(b_rest)
        tl.store(p_to, tl.where(m_other, b_other, b_near), mask=mask)
    else:
        tl.store(p_to, b_x.to(TO), mask=mask)
