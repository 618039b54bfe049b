"""Alternating least squares for implicit feedback, by the `implicit` library."""

from __future__ import annotations

import numpy as np
from pydantic import Field
from scipy.sparse import csr_matrix

from raysys.errors import UserError
from raysys.graph.bipartite import distinct_pairs
from raysys.settings import Settings


class AlsSettings(Settings):
    """Weighted matrix factorisation."""

    width: int = Field(default=64, ge=1)
    """Factors of a user or item."""
    reg: float = Field(default=0.1, ge=0)
    """λ, weight of the squared norms."""
    confidence: float = Field(default=10.0, gt=0)
    """An interaction weighs so much more than a pair without one, which weighs 1."""
    iterations: int = Field(default=15, ge=1)
    """Passes over users and items."""
    seed: int = Field(default=2023, ge=0)
    """Draws the start."""


def als(train: csr_matrix, settings: AlsSettings) -> tuple[np.ndarray, np.ndarray]:
    """Factors that minimise Σ c_ui (p_ui − x_u·y_i)² + λ(Σ‖x‖² + Σ‖y‖²), c = 1 + confidence·p.

    Source: Hu, Koren and Volinsky 2008, equation 3.

    Args:
        train: (U, I); every stored non-zero entry is one interaction.
        settings: see `AlsSettings`.

    Returns:
        x (U, d) and y (I, d), float32.

    Raises:
        UserError: the library is not installed.
    """
    try:
        from implicit.cpu.als import AlternatingLeastSquares
        from threadpoolctl import threadpool_limits
    except ImportError:
        raise UserError("backbone 'als' needs a library: pip install 'raysys[als]'.") from None
    pattern = distinct_pairs(train).astype(np.float32)
    pattern.data[:] = 1 + settings.confidence
    # Threads of the library and of BLAS would fight for the same cores.
    with threadpool_limits(1, "blas"):
        model = AlternatingLeastSquares(
            factors=settings.width,
            regularization=settings.reg,
            iterations=settings.iterations,
            random_state=settings.seed,
            num_threads=1,
        )
        model.fit(pattern, show_progress=False)
    return np.asarray(model.user_factors), np.asarray(model.item_factors)
