"""Bounds instead of products: a narrow bfloat16 product proves most pairs of rows to be below the floor.

For orthonormal columns R (D, m), a row x of unit length is R a + R e + o: `a` its leading coordinates rounded to
bfloat16, `e` what the rounding took, `o` the rest, orthogonal to R. So

    x.y <= a.b + |e||b| + |a||f| + |e||f| + |o||p|        for y = R b + R f + p

and with |o| as one more coordinate, rounded up, the first and the last term are a single product. Without R all D
coordinates are taken, and only their rounding is left to bound. What is left over is computed exactly.
No mean is removed: the bound holds for a rotation, and a centred transform would break it.

One torch code for every device. Torch is imported where it is used, so that deciding never does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from curator.machine import good_at_bf16
from curator.stage import Array

WIDTHS = (64, 96, 128, 192, 256)
"""Columns of a narrow product: leading coordinates and one for the rest. Multiples of what tensor cores take."""

STRIP = 1 << 22  # products looked at one by one at once: bounds what `candidates` holds beside its product
FULL_SHARE = 1 / 256  # candidates of all pairs from which on the full product is cheaper than a check of each
LONGEST = 1.0001  # of a unit vector's leading coordinates, rounded


@dataclass(frozen=True)
class Leads:
    """N rows as a narrow product takes them: (N, width) bfloat16 as uint16, and the most that rounding took of one."""

    coordinates: Array
    lost: float


def directions_of(sample_ND: Array) -> Array:
    """(D, D) float64 orthonormal columns: the directions of a sample of unit rows, most first; no mean removed."""
    rows = sample_ND.astype(np.float32)
    moments = (rows.T @ rows).astype(np.float64)
    _, vectors = np.linalg.eigh((moments + moments.T) / 2)
    columns, _ = np.linalg.qr(vectors[:, ::-1])
    return np.ascontiguousarray(columns)


def tensor(array: Array) -> Any:
    """An array as torch takes it: what is mapped to be read only is copied."""
    import torch

    whole = np.ascontiguousarray(array)
    return torch.from_numpy(whole if whole.flags.writeable else whole.copy())


def leads_of(rows_ND: Array, rotation: Array | None, device: str = "cpu") -> Leads:
    """Leading coordinates of rows scaled to unit length, and the norm of the rest, never rounded down."""
    import torch

    with torch.inference_mode():
        x = tensor(rows_ND).to(device).double()
        x /= x.norm(dim=1, keepdim=True)
        z = x if rotation is None else x @ tensor(rotation).to(device)
        a = z.bfloat16()
        lost = float((z - a.double()).norm(dim=1).max()) if len(x) else 0.0
        if rotation is not None:
            rest = (1 - (z * z).sum(1)).clamp(min=0).sqrt() + 1e-7  # what float64 sums may be off
            a = torch.cat([a, _up(rest)[:, None]], dim=1)
        return Leads(a.cpu().contiguous().view(torch.int16).numpy().view(np.uint16), lost)


def rounded(rows_ND: Array, device: str = "cpu") -> tuple[Any, float]:
    """(N, D) rows scaled to unit length as bfloat16, and the most that rounding took of one (its norm)."""

    x = tensor(rows_ND).to(device).float()
    x /= x.norm(dim=1, keepdim=True)
    near = x.bfloat16()
    return near, float((x - near.float()).norm(dim=1).max()) + 1e-6 if len(x) else 0.0


def _up(values: Any) -> Any:
    """Positive float64 numbers as bfloat16, rounded up."""
    import torch

    near = values.bfloat16()
    above = (near.view(torch.int16) + 1).view(torch.bfloat16)
    return torch.where(near.double() < values, above, near)


def least_product(floor: float, lost: float, width: int) -> float:
    """What the product of two rows' coordinates is at least, as bfloat16, where their cosine is at least `floor`.

    Rounding: `lost` per row; a sum of `width` products in float32 is off by at most width 2^-23 (twice Higham's
    gamma); the result in bfloat16 is rounded monotonically, so the threshold is rounded down and compared as such.
    """
    import torch

    bound = floor - (2 * lost * LONGEST + lost * lost) - (width + 2) * 2.0**-23 - 1e-9
    near = torch.tensor(bound, dtype=torch.float64).bfloat16()
    if float(near) > bound:
        near = torch.nextafter(near, torch.tensor(-2.0, dtype=torch.bfloat16))
    return float(near)


def as_tensor(coordinates: Array, device: str = "cpu") -> Any:
    """Stored coordinates as a tensor: the same numbers in float32 where bfloat16 would be slow."""
    import torch

    there = tensor(coordinates.view(np.int16)).to(device).view(torch.bfloat16)
    return there if good_at_bf16(device) else there.float()


@dataclass(frozen=True)
class Proposed:
    """Candidates (i of a, j of b), and rows of each side that have more than the limit: `crowded`."""

    i: Array
    j: Array
    crowded_a: Array
    crowded_b: Array


def candidates(a: Any, b: Any, least: float, full: Any, most_per_row: int, triangle: bool = False) -> Proposed:
    """Pairs of rows of two tensors of coordinates (N, w), (M, w) whose product does not rule the floor out.

    `full(rows)` gives (len(rows), M) True where the whole vectors' product does not either: asked where the narrow
    one proves too little. Rows with more than `most_per_row` candidates on both sides of a pair are crowded: the
    pairs among them are left out, and the rows named. `triangle`: a and b are the same rows; each pair once.
    """
    import torch

    product = a @ b.T
    hit = (product.amax(1) >= least).nonzero()[:, 0] if len(b) else product.new_zeros(0, dtype=torch.int64)
    found: list[tuple[Any, Any]] = []
    crowded_a: list[Any] = []
    crowded_b = torch.zeros(len(b), dtype=torch.bool, device=product.device)
    for rows in hit.split(max(1, STRIP // max(1, len(b)))):
        mask = product[rows] >= least
        if triangle:
            mask &= torch.arange(len(b), device=rows.device)[None, :] > rows[:, None]
        per_row = mask.sum(1)
        if int(per_row.sum()) > mask.numel() * FULL_SHARE and full is not None:
            some = (per_row > 0).nonzero()[:, 0]
            mask[some] &= full(rows[some])
            per_row = mask.sum(1)
        many_a, many_b = per_row > most_per_row, mask.sum(0) > most_per_row
        if bool(many_a.any()) and bool(many_b.any()):
            mask &= ~(many_a[:, None] & many_b[None, :])
            crowded_a.append(rows[many_a])
            crowded_b |= many_b
        at = mask.nonzero()
        found.append((rows[at[:, 0]], at[:, 1]))
    i, j = (torch.cat([f[n] for f in found]) if found else hit[:0] for n in (0, 1))
    named = torch.cat(crowded_a) if crowded_a else hit[:0]
    return Proposed(*(t.cpu().numpy() for t in (i, j, named, crowded_b.nonzero()[:, 0])))


def full_product(a_ND: Any, b_MD: Array, floor: float, device: str = "cpu") -> Any:
    """`full` of `candidates`: float32 products of the whole rows (float16), with a margin that cannot miss.

    A float32 dot product of D terms is off by at most D u |x||y| / (1 - D u), u = 2^-24, in any order (Higham,
    Accuracy and Stability, 3.1); rows scaled to unit length in float32 add at most 4 u; twice the sum leaves room.
    """

    margin = 2 * (b_MD.shape[1] + 4) * 2.0**-24
    unit_b: list[Any] = []

    def unit(rows: Array) -> Any:
        x = tensor(rows).to(device).float()
        return x / x.norm(dim=1, keepdim=True)

    def full(rows: Any) -> Any:
        if not unit_b:
            unit_b.append(unit(b_MD))
        return unit(a_ND[rows.cpu().numpy()]) @ unit_b[0].T >= floor - margin

    return full
