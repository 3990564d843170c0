"""Evidence that may be looked at after every block: e-processes, which bet against a null hypothesis.

**Hypothesis.** Block after block comes a number D. Given the past, D lies symmetrically around some m <= c, the
floor; m may drift. If production and shadow are alike (exchangeable within a block) and D changes its sign when they
are swapped, then this holds with m = 0, whatever the distribution of latencies and however requests hang together
within the block.

**Bets.** X = clip((D - c) / s), with s from past blocks only. For f odd, not decreasing and |f| < 1, the factor
1 + f(X) is a fair or losing bet: let D = m + Y, Y symmetric, a = c - m >= 0. The values y and -y are equally likely;
they give u = X(y - a) and w = X(-y - a) = -X(y + a) <= -u. So f(u) + f(w) <= f(u) + f(-u) = 0, and E[1 + f(X)] <= 1.
Products over blocks are non-negative supermartingales, and so is any average of them with weights fixed beforehand.
By Ville's inequality an average E that starts at 1 ever reaches 1 / alpha with probability at most alpha.

Two families are averaged:

* *sign*: f(X) = b sign(X), b uniform on (0, 1). With p = (1 + b) / 2 this is the beta mixture of the sign test,
  integral over p in (1/2, 1) of (2p)^K (2(1-p))^(n-K) 2 dp. The integral is taken by Gauss and Legendre's rule: for
  n < 2 NODES it is exact (the integrand is a polynomial of degree n), and beyond it is still an average with positive
  weights that add up to 1, so still an exact e-process. No special function is needed.
* *size*: f(X) = tanh(l X), l on a grid. Since exp(lx) / cosh(lx) = 1 + tanh(lx) and cosh(y) <= exp(y^2 / 2), it is
  never less than exp(lX - l^2 X^2 / 2), the factor of the self-normalised process of de la Pena (1999), and it
  rises with X everywhere, so that a higher floor never means more evidence.

**Late starts.** A regression may come after hours of good blocks, whose lost bets would weigh on it. So only a part of
the capital is bet from the first block on; the rest is put in at every RESTART_BLOCKS-th block, in shares that add up
to 1. For each bet the sum over all starts obeys W <- (W + share) * factor: one number a bet, however many starts.

Everything is in logs, and works on arrays with any leading axes, e.g. many simulated runs at once.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

CLIP = 3.0  # in scales; also what a difference counts when there is no scale yet
NODES = 16
SIZES = (0.3, 0.7, 1.5, 3.2)  # l of the size bets, per scale
SIZE_SHARE = 0.7  # of the capital, for the size bets; the rest is for the sign bets
STAKES = (0.05, 0.15, 0.3, 0.5, 0.7, 0.9)  # shares of the capital bet on a mean
FIRST_SHARE = 0.5  # of the capital, bet from the first block on
RESTART_BLOCKS = 4


def _sign_bets() -> tuple[Floats, Floats]:
    at, weight = np.polynomial.legendre.leggauss(NODES)
    return (1 + at) / 2, weight / 2


_EDGES, _EDGE_WEIGHTS = _sign_bets()
_SIZES = np.array(SIZES)
_STAKES = np.array(STAKES)
_LOG_WIN, _LOG_LOSS = np.log1p(_EDGES), np.log1p(-_EDGES)

SYMMETRIC_WEIGHTS: Floats = np.concatenate(
    [_EDGE_WEIGHTS * (1 - SIZE_SHARE), np.full(len(SIZES), SIZE_SHARE / len(SIZES))]
)
MEAN_WEIGHTS: Floats = np.full(len(STAKES), 1 / len(STAKES))


def standardise(value: Floats, floor: float, scale: Floats) -> Floats:
    """X = clip((value - floor) / scale); where the scale is 0, the sign of the difference times the limit."""
    over = value - floor
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        scaled = np.where(scale > 0, over / np.where(scale > 0, scale, 1.0), np.sign(over) * CLIP)
    return np.clip(scaled, -CLIP, CLIP)


def symmetric_factors(x: Floats) -> Floats:
    """Log of 1 + f(x) for each bet: shape of x, and a last axis as long as SYMMETRIC_WEIGHTS."""
    each = x[..., None]
    sign = np.where(each > 0, _LOG_WIN, np.where(each < 0, _LOG_LOSS, 0.0))
    # log(1 + tanh y) = log 2 - log(1 + exp(-2y)), which neither overflows nor loses digits
    size = np.log(2.0) - np.logaddexp(0.0, -2.0 * _SIZES * each)
    return np.concatenate([sign, size], axis=-1)


def mean_factors(value: Floats, floor: float, most: float | Floats) -> Floats:
    """Log factors of bets that the mean of a value, given the past, is below the floor. A value counts as at most
    `most` either way, and that must exceed the floor.

    1 + b (floor - value) / (most - floor) is at least 1 - b, and at most 1 in the mean if the mean is the floor or
    more. Nothing is asked of the distribution: counts of rare events are not symmetric around their mean.
    """
    most = np.asarray(most, dtype=np.float64)
    gain = (floor - np.clip(value, -most, most)) / (most - floor)
    return np.log1p(_STAKES * gain[..., None])


def log_sum(logs: Floats, axis: int = -1) -> Floats:
    """Log of the sum of exponentials; the largest must be finite."""
    top = np.max(logs, axis=axis, keepdims=True)
    total: Floats = np.log(np.sum(np.exp(logs - top), axis=axis)) + np.squeeze(top, axis=axis)
    return total


def share_of_start(start: int) -> float:
    """Share of the capital that is put in at start 1, 2, 3, ...; with FIRST_SHARE for start 0 they add up to 1."""
    return capital_left(start - 1) - capital_left(start)


def capital_left(starts: int) -> float:
    """What is left after so many starts besides the first: the sum of all later shares.

    It falls as slowly as one over a logarithm, so that after a day something is left to bet.
    """
    return (1 - FIRST_SHARE) / math.log2(starts + 2)


class Process:
    """One e-process over a set of bets, or many side by side. `add` takes the log factors of one block.

    `ceiling` is the most that log E can be. Each bet has its part of it by weight; what is above is given away, which
    only lowers E, and evidence that turns is soon gone.
    """

    __slots__ = ("_capital", "_weights", "blocks", "ceiling")

    def __init__(self, weights: Floats, ceiling: float, shape: tuple[int, ...] = ()) -> None:
        self._weights = np.log(weights)
        self._capital: Floats = np.broadcast_to(self._weights + np.log(FIRST_SHARE), (*shape, len(weights))).copy()
        self.ceiling = ceiling
        self.blocks = 0

    def add(self, log_factors: Floats) -> None:
        """Let all bets win or lose, then put in the share that is due. Shape: that of the process, then bets."""
        self._capital = np.minimum(self._capital + log_factors, self._weights + self.ceiling)
        self.blocks += 1
        if self.blocks % RESTART_BLOCKS == 0:
            share = share_of_start(self.blocks // RESTART_BLOCKS)
            self._capital = np.logaddexp(self._capital, self._weights + np.log(share))

    @property
    def log_e(self) -> Floats:
        """Log of the evidence against the hypothesis; 0 at the beginning. Shape: that of the process."""
        left = np.log(capital_left(self.blocks // RESTART_BLOCKS))
        return np.logaddexp(log_sum(self._capital), left)

    def as_json(self) -> dict[str, Any]:
        """The state of a single process."""
        return {"blocks": self.blocks, "capital": self._capital.tolist()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state; ValueError or KeyError when it is not one of such a process."""
        capital = np.array(state["capital"], dtype=np.float64)
        if capital.shape != self._capital.shape or not np.isfinite(capital).all() or int(state["blocks"]) < 0:
            raise ValueError("not the state of such a process")
        self._capital, self.blocks = capital, int(state["blocks"])
