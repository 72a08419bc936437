"""Two ranks on the CPU (gloo), as torchrun starts them, equal one process with twice the batch: DDP and FSDP2."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import torch

from tests.training import two_ranks

SINGLE = {"accelerator": "cpu", "devices": 1}
# fp32: gradients are summed in another order, over two ranks and over twice as many rows in one product.
CLOSE = {"rtol": 1e-4, "atol": 2e-6}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """The folder with the results of all runs in two ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    root = Path(two_ranks.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, two_ranks.__file__, str(folder)], cwd=root, capture_output=True, text=True, check=False,
        env={**two_ranks.os.environ, "PYTHONPATH": f"{root}:{root / 'tests'}", "OMP_NUM_THREADS": "1"}, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> dict:
    """What one process with twice the batch comes to."""
    folder = tmp_path_factory.mktemp("single")
    two_ranks.run(lambda **options: L.Trainer(**SINGLE, **options), folder, batch_size=4)
    return torch.load(folder / "result.pt")


def result(folder: Path, strategy: str, name: str) -> dict:
    return torch.load(folder / strategy / name / "result.pt")


def equal(left: dict, right: dict) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["whole", "accumulated"])
@pytest.mark.parametrize("strategy", two_ranks.STRATEGIES)
def test_two_ranks_equal_one_process_with_twice_the_batch(strategy, name, runs, single):
    found = result(runs, strategy, name)
    assert (found["world"], single["world"]) == (2, 1)
    assert len(found["losses"]) == two_ranks.STEPS
    assert found["losses"] == pytest.approx(single["losses"], rel=1e-5)
    assert found["weights"].keys() == single["weights"].keys()
    for key, value in single["weights"].items():
        torch.testing.assert_close(found["weights"][key], value, **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", two_ranks.STRATEGIES)
def test_resumed_equals_uninterrupted_bit_for_bit(strategy, runs):
    whole, first, resumed = (result(runs, strategy, name) for name in ("whole", "first", "resumed"))
    assert not equal(first["weights"], whole["weights"])
    assert equal(resumed["weights"], whole["weights"])
    assert resumed["losses"] == whole["losses"][len(first["losses"]) :]


@pytest.mark.slow
def test_steps_move_the_weights_by_far_more_than_the_tolerance(runs, single):
    """Else the comparison above would compare nothing."""
    first = result(runs, "ddp", "first")["weights"]
    moved = max(float((first[key] - value).abs().max()) for key, value in single["weights"].items())
    assert moved > 100 * CLOSE["atol"]


@pytest.mark.slow
def test_a_checkpoint_of_shards_is_one_file_like_any_other(runs, tmp_path):
    """Whole weights by name, and one process goes on with it."""
    end = runs / "fsdp" / "first" / "end.ckpt"
    two_ranks.run(lambda **options: L.Trainer(**SINGLE, **options), tmp_path, batch_size=4, resume=end)
    expected = result(runs, "fsdp", "whole")["weights"]
    for key, value in torch.load(tmp_path / "result.pt")["weights"].items():
        torch.testing.assert_close(value, expected[key], **CLOSE)


@pytest.mark.slow
def test_muon_orthogonalises_whole_matrices_under_shards_too(runs):
    """Its update is that of the whole matrix, not of each rank's rows: as under DDP, up to its iteration's rounding."""
    ddp, fsdp = (result(runs, strategy, "muon")["weights"] for strategy in two_ranks.STRATEGIES)
    for key, value in ddp.items():
        torch.testing.assert_close(fsdp[key], value, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_acceptance_is_evaluated_on_whole_weights(runs):
    """Real decoding and the chain walk agree under shards (else the run would have ended), and with DDP."""
    ddp, fsdp = (result(runs, strategy, "evaluated")["curve"] for strategy in two_ranks.STRATEGIES)
    assert [point["step"] for point in fsdp] == [0, 1, 2]
    assert [point["mean"] for point in fsdp] == [point["mean"] for point in ddp]
