"""Whether vectors look like those of a known model: its image vectors all lean the same way, others' do not.

Means and standard deviations of 24 columns of CLIP ViT-L/14's image vectors over LAION's training set, from the
normalisation layer of LAION-AI/CLIP-based-NSFW-Detector (MIT). The weighted sum below is 1 on average for vectors of
that model, and 0 for those of another model or of a text tower (tests hold it against vectors of each kind).
"""

from __future__ import annotations

import numpy as np

from curator.models.heads import VIT_L_14
from curator.stage import Array

SPACE = VIT_L_14[0]

LEANING = {
    0: (0.033, 0.031), 33: (-0.025, 0.025), 39: (-0.032, 0.026), 85: (-0.025, 0.024), 120: (-0.028, 0.024),
    177: (-0.082, 0.047), 220: (-0.024, 0.023), 245: (0.036, 0.033), 253: (-0.028, 0.028), 281: (-0.071, 0.045),
    338: (-0.027, 0.027), 344: (-0.026, 0.026), 463: (0.076, 0.065), 508: (-0.038, 0.035), 528: (-0.046, 0.04),
    531: (-0.026, 0.026), 560: (0.052, 0.04), 566: (0.03, 0.025), 580: (0.025, 0.023), 590: (-0.038, 0.03),
    605: (-0.037, 0.036), 633: (0.03, 0.03), 718: (0.028, 0.028), 755: (-0.052, 0.042),
}  # fmt: skip
COLUMNS = 768
LEAST = 0.4  # a collection of one subject may lean less than the average of all


def likeness(unit_ND: Array) -> float:
    """How far (N, 768) unit rows lean as ViT-L/14's image vectors do: about 1 for those, 0 for others."""
    mean, deviation = (np.array([pair[n] for pair in LEANING.values()]) for n in (0, 1))
    weights = mean / deviation**2
    return float((unit_ND[:, list(LEANING)] @ weights).mean() / (weights @ mean))
