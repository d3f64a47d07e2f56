"""Each kernel once on small tensors, for a checker to watch: `python -m benchmarks.gpu.small_case triton`."""

from __future__ import annotations

import sys

import torch

from mfdmc_fast.config import MFDMCConfig
from mfdmc_fast.data import BatchIterator, RatingsDataset, make_planted_ratings
from mfdmc_fast.epochs import make_epochs
from mfdmc_fast.model import MFDMCModel
from mfdmc_fast.ops import functional
from mfdmc_fast.testing import ALL_WEIGHTS, both_combines, make_case


def run(backend: str, device: torch.device) -> None:
    """Every op of a backend, and with `triton` an epoch with either optimizer. Sizes are no powers of 2."""
    for combine in both_combines():
        for sizes in ({"n_users": 11}, {"n_users": 401, "l2_scales": True, "view_dim": 17}):
            case = make_case(batch_size=333, dtype=torch.float32, **sizes).to(torch.float32, str(device))
            functional.batch_loss(
                *case, combine=combine, weights=ALL_WEIGHTS, spread_margin=2.0, backend=backend
            ).total.backward()
            functional.score_pairs(*case[:5], combine=combine, backend=backend)
    among = torch.ones(len(case.user.assignment_logits), dtype=torch.bool, device=device)
    functional.cluster_usage(case.user, among, backend=backend)
    z = torch.randn(37, 7, device=device)
    functional.top_items(z, z, z[:, 0].contiguous(), 5, backend=backend)
    if backend == "triton":
        ratings = RatingsDataset.from_ratings(make_planted_ratings(60, 45, 1300, seed=5)).sorted()
        for optimizer in ("adam", "adagrad"):
            config = MFDMCConfig(n_views=2, n_clusters=3, view_dim=3, optimizer=optimizer, backend=backend)
            model = MFDMCModel(60, 45, config, 3.5).to(device)
            make_epochs(model, BatchIterator(ratings, 700, 0), backend).run(1, [])
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    run(sys.argv[1], torch.device("cuda"))
