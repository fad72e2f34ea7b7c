"""What the bounds of near pairs take torch's products for."""

from __future__ import annotations

import pytest
import torch

from curator.pairs.bounds import settle
from curator.stage import Worker

MATMUL = torch.backends.cuda.matmul


def for_all():
    torch.set_float32_matmul_precision("medium")


def for_gpus():
    MATMUL.allow_tf32 = True


def for_gpus_by_name():
    MATMUL.fp32_precision = "tf32"


def for_processors_by_name():
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"


@pytest.mark.parametrize("asked", [for_all, for_gpus, for_gpus_by_name, for_processors_by_name])
def test_products_are_of_whole_factors_and_summed_in_float32_whatever_was_asked_for_before(asked):
    """A stage of the user's may have run in this worker: rounded factors would lose pairs, and nobody would see it."""
    MATMUL.allow_bf16_reduced_precision_reduction = True
    asked()
    settle(Worker("cpu", torch.get_num_threads()))
    assert torch.get_float32_matmul_precision() == "highest"
    assert not MATMUL.allow_tf32
    assert not MATMUL.allow_bf16_reduced_precision_reduction
    assert {MATMUL.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision} <= {"ieee", "none"}
