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

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from curator.machine import good_at_bf16
from curator.stage import Array, Worker

WIDTHS = (64, 96, 128, 192, 256)
"""Columns of a narrow product: leading coordinates and one for the rest. Multiples of what tensor cores take."""

STRIP = 1 << 22  # products looked at one by one at once: bounds what `candidates` holds beside its product
FULL_SHARE = 1 / 256  # candidates of all pairs from which on the full product is cheaper than a check of each
LONGEST = 1.0001  # of a unit vector's leading coordinates, rounded


def settle(worker: Worker) -> None:
    """Make torch's products what the bounds take them for: summed in float32, of factors that nobody rounds.

    cuBLAS may else add parts of a bfloat16 product in bfloat16, and round the factors of a float32 one to TF32; where
    a stage of the user's asked for `medium`, processors round those to bfloat16 too. `highest` takes all of it back.
    """
    import torch

    torch.set_num_threads(worker.threads)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


@dataclass(frozen=True)
class Leads:
    """N rows as a narrow product takes them: (N, width) bfloat16 as uint16, and the most that rounding took of one.

    `whole`: the most that is lost of a whole row when its stored numbers are taken as a unit row in bfloat16.
    """

    coordinates: Array
    lost: float
    whole: float = 0.0


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
    """Leading coordinates of rows scaled to unit length, and the norm of the rest, never rounded down.

    Coordinates are float32 sums of D products of unit vectors: each off by at most D 2^-24 / (1 - D 2^-24) (Higham,
    Accuracy and Stability, 3.1), a row of them by sqrt(width) times that; twice as much covers the rounding of the
    rotation and of the scaling. It is counted as lost, and as belonging to the rest.
    """
    import torch

    with torch.inference_mode():
        stored = tensor(rows_ND).to(device).float()
        x = stored / stored.norm(dim=1, keepdim=True)
        whole = float((x - stored.bfloat16().float()).norm(dim=1).max()) + 1e-6 if len(x) else 0.0
        if rotation is None:
            a = x.bfloat16()
            lost = float((x - a.float()).norm(dim=1).max()) + 1e-6 if len(x) else 0.0
            return Leads(_as_uint16(a), lost, whole)
        z = x @ tensor(rotation).to(device, torch.float32)
        off = 2 * rotation.shape[0] * 2.0**-24 * rotation.shape[1] ** 0.5
        a = z.bfloat16()
        lost = float((z - a.float()).norm(dim=1).max()) + off if len(x) else 0.0
        inside = (z.norm(dim=1) - off).clamp(min=0)
        rest = (1 + 1e-5 - inside * inside).clamp(min=0).sqrt()
        return Leads(_as_uint16(torch.cat([a, _up(rest)[:, None]], dim=1)), lost, whole)


def _as_uint16(coordinates: Any) -> Array:
    import torch

    array: Array = coordinates.cpu().contiguous().view(torch.int16).numpy().view(np.uint16)
    return array


def _up(values: Any) -> Any:
    """Positive float32 numbers as bfloat16, rounded up."""
    import torch

    near = values.bfloat16()
    above = (near.view(torch.int16) + 1).view(torch.bfloat16)
    return torch.where(near.float() < values, above, near)


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


def candidates(
    a: Any, b: Any, least: float, full: Any, most_per_row: int, triangle: bool = False, room: Any = None
) -> Proposed:
    """Pairs of rows of two tensors of coordinates (N, w), (M, w) whose product does not rule the floor out.

    `full(rows)` gives (len(rows), M) True where the whole vectors' product does not either: asked where the narrow
    one proves too little. Rows with more than `most_per_row` candidates on both sides of a pair are crowded: the
    pairs among them are left out, and the rows named. `triangle`: a and b are the same rows; each pair once. `room`:
    a flat tensor of their type that takes the product.
    """
    import torch

    # a fresh product for each call would cost more in page faults than in looking at it
    product = a @ b.T if room is None else torch.mm(a, b.T, out=room[: len(a) * len(b)].view(len(a), len(b)))
    hit = (product.amax(1) >= least).nonzero()[:, 0] if len(b) else product.new_zeros(0, dtype=torch.int64)
    found: list[tuple[Any, Any]] = []
    crowded_a, crowded_b = [hit[:0]], [hit[:0]]
    for rows in hit.split(max(1, STRIP // max(1, len(b)))):
        mask = product[rows] >= least
        at = mask.nonzero()
        if len(at) > mask.numel() * FULL_SHARE:
            some = at[:, 0].unique()
            mask[some] &= full(rows[some])
            at = mask.nonzero()
        i, j = rows[at[:, 0]], at[:, 1]
        if triangle:
            i, j = i[i < j], j[i < j]
        many_a = i.bincount(minlength=len(a)) > most_per_row
        many_b = j.bincount(minlength=len(b)) > most_per_row
        crowd = many_a[i] & many_b[j]
        if bool(crowd.any()):
            crowded_a.append(i[crowd].unique())
            crowded_b.append(j[crowd].unique())
            i, j = i[~crowd], j[~crowd]
        found.append((i, j))
    both = [torch.cat([f[n] for f in found]) if found else hit[:0] for n in (0, 1)]
    return Proposed(*(t.cpu().numpy() for t in (*both, torch.cat(crowded_a), torch.cat(crowded_b))))


class FullProducts:
    """`full` of `candidates`: float32 products of whole rows (float16), with a margin that cannot miss.

    A float32 dot product of D terms is off by at most D u |x||y| / (1 - D u), u = 2^-24, in any order (Higham,
    Accuracy and Stability, 3.1); rows scaled to unit length in float32 add at most 4 u; twice the sum leaves room.
    """

    def __init__(self, rows_ND: Array, first: int, last: int, floor: float, device: str) -> None:
        self.rows_ND, self.first, self.last, self.device = rows_ND, first, last, device
        self.least = floor - 2 * (rows_ND.shape[1] + 4) * 2.0**-24
        self._home: Any = None

    def of(self, who: Array) -> Callable[[Any], Any]:
        """`full` where the rows of a are those at the positions `who`."""
        return self.of_rows(self.rows_ND, who)

    def of_rows(self, rows_ND: Array, who: Array) -> Callable[[Any], Any]:
        """The same where they are rows of another array."""
        return lambda rows: self._unit(rows_ND[who[rows.cpu().numpy()]]) @ self._homes().T >= self.least

    def _homes(self) -> Any:
        if self._home is None:
            self._home = self._unit(self.rows_ND[self.first : self.last])
        return self._home

    def _unit(self, rows: Array) -> Any:
        x = tensor(rows).to(self.device).float()
        return x / x.norm(dim=1, keepdim=True)
