"""The engine over two real processes: every ZeRO stage and precision against a plain loop on one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.distributed.engine_worker import TARGETS, TOKENS, Toy, configuration, loss_sum
from tests.distributed.launching import launch
from unimo_ds.engine.optim import parameter_groups

WORKER = Path(__file__).with_name("engine_worker.py")
PRECISIONS = ("fp32", "bf16", "fp16")
NAMES = [f"zero{stage}_{precision}" for precision in PRECISIONS for stage in range(4)]
OFFLOADED = ["zero2_offload_bf16", "zero3_offload_bf16"]
TOLERANCE = {"fp32": 2e-6, "bf16": 1e-2, "fp16": 1e-3}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict:
    output = tmp_path_factory.mktemp("engine") / "results.json"
    launch(WORKER, [",".join(NAMES + OFFLOADED), str(output)], processes=2)
    return json.loads(output.read_text())


def plain_loop(*, updates: int) -> tuple[torch.Tensor, list[float]]:
    """Weights and gradient norms after some updates with nothing but torch."""
    config = configuration().optimizer
    model = Toy()
    groups = parameter_groups(model, weight_decay=config.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=config.betas, eps=config.epsilon)
    norms = []
    for _ in range(updates):
        optimizer.zero_grad()
        (loss_sum(model(TOKENS), TARGETS) / len(TOKENS)).backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)))
        optimizer.step()
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()]), norms


@pytest.mark.parametrize("name", NAMES + OFFLOADED)
def test_engine_equals_a_plain_loop_and_micro_batches_add_up(results: dict, name: str) -> None:
    """Dynamic fp16 scales skip some steps first, so the loop takes as many updates as the engine did."""
    tolerance = TOLERANCE[name.rsplit("_", 1)[1]]
    for result in results[name].values():
        steps = [*result["steps"], result["after"]]
        applied = [step for step in steps if step["applied"]]
        assert len(applied) == result["applied_steps"] >= 2
        expected, norms = plain_loop(updates=len(applied))
        for step, norm in zip(applied, norms, strict=True):
            assert step["gradient_norm"] == pytest.approx(norm, rel=max(tolerance, 1e-5))
        torch.testing.assert_close(torch.tensor(result["weights"]), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", NAMES + OFFLOADED)
def test_dropped_gradients_leave_no_trace(results: dict, name: str) -> None:
    """A step declared non-finite, one with a NaN on the last rank only, one that is unwanted: all are skipped by all ranks, none
    stays, and the last one leaves the loss scale as it was."""
    for result in results[name].values():
        for dropped in ("skipped", "spoiled", "unwanted"):
            assert not result[dropped]["applied"]
        assert result["unchanged"]
        assert result["after"]["applied"]
        assert result["after"]["loss_scale"] == result["unwanted"]["loss_scale"]


@pytest.mark.parametrize("stage", range(4))
def test_fp16_scales_its_gradients_at_every_stage(results: dict, stage: int) -> None:
    """Without the scale, small gradients would vanish unnoticed; with it the first steps overflow and halve it."""
    steps = results[f"zero{stage}_fp16"]["1"]["steps"]
    assert steps[0]["loss_scale"] == 65536.0
    assert not steps[0]["applied"]
