"""How varied the pictures of a prompt are, and how far one set of pictures is from another, in a feature space.

All take feature vectors [N, D], one per picture, as `features.py` makes them.
"""

from __future__ import annotations

import numpy as np


def pairwise_similarity(features: np.ndarray) -> float:
    """Mean cosine over all pairs of different pictures; 1 if all are alike. Needs two pictures."""
    cosines = _cosines(features)
    count = len(features)
    return float((cosines.sum() - np.trace(cosines)) / (count * (count - 1)))


def vendi(features: np.ndarray) -> float:
    """The Vendi score (Friedman & Dieng 2022, arXiv 2210.02410): how many different pictures these amount to.

    exp of the entropy of the eigenvalues of the cosine kernel over N; from 1 (all alike) to N (all orthogonal).
    """
    values = np.linalg.eigvalsh(_cosines(features) / len(features))
    values = values[values > 1e-12]
    return float(np.exp(-(values * np.log(values)).sum()))


def frechet(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The Fréchet distance between Gaussians fitted to two sets: |μ−μ′|² + tr(C + C′ − 2(C C′)^½).

    In Inception's features this is FID (Heusel et al. 2017, arXiv 1706.08500). Biased upwards for small sets:
    compare sets of one size only.
    """
    mean = ours.mean(0) - theirs.mean(0)
    one, other = _factor(ours), _factor(theirs)
    # with C = R'R and C′ = S'S, the eigenvalues of C C′ are the squared singular values of R S'
    crossed = np.linalg.svd(one @ other.T, compute_uv=False).sum()
    return float(mean @ mean + np.square(one).sum() + np.square(other).sum() - 2 * crossed)


def _factor(features: np.ndarray) -> np.ndarray:
    """R [min(N, D), D] whose R'R is the covariance."""
    return np.asarray(np.linalg.qr((features - features.mean(0)) / np.sqrt(len(features) - 1), mode="r"))


def kernel_distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The squared MMD with the kernel (x·y / D + 1)³, unbiased: about 0 for sets from one distribution.

    In Inception's features this is KID (Bińkowski et al. 2018, arXiv 1801.01401), there averaged over subsets.
    """
    n, m = len(ours), len(theirs)
    within = sum(
        (k.sum() - np.trace(k)) / (count * (count - 1))
        for k, count in ((_cubic(ours, ours), n), (_cubic(theirs, theirs), m))
    )
    return float(within - 2 * _cubic(ours, theirs).mean())


def _cubic(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _cosines(features: np.ndarray) -> np.ndarray:
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    return unit @ unit.T
