"""What decides: the cosine of stored float16 vectors in float64, where sums of products are exact in any order.

So it is the same bits on every device, for any blocks; float32 and bfloat16 only propose.
"""

from __future__ import annotations

import numpy as np

from curator.stage import Array


def cosines(a_ND: Array, i: Array, b_MD: Array, j: Array, at_once: int = 4096) -> Array:
    """(P,) float64 cosine of rows i of a with rows j of b: dot / sqrt(|x|^2 |y|^2)."""
    result = np.empty(len(i), np.float64)
    for start in range(0, len(i), at_once):
        part = slice(start, start + at_once)
        x, y = a_ND[i[part]].astype(np.float64), b_MD[j[part]].astype(np.float64)
        dot, xx, yy = (np.einsum("pd,pd->p", *two) for two in ((x, y), (x, x), (y, y)))
        result[part] = dot / np.sqrt(xx * yy)
    return result
