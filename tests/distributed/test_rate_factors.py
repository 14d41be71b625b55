"""Rates by part over two processes: every ZeRO stage and precision against a plain loop, checkpoints, other ranks and stages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.distributed.checkpoint_worker import RATES
from tests.distributed.engine_worker import TARGETS, TOKENS, Toy, configuration, loss_sum
from tests.distributed.launching import launch
from tests.distributed.test_checkpoint import NAMES, OFFLOADED
from tests.distributed.test_engine import TOLERANCE

WORKER = Path(__file__).with_name("rate_factors_worker.py")
FROZEN, RATE_FACTORS = ("embedding.weight", "inner.2.bias"), {"inner.2.weight": 0.1, "bias": 1.0, "temperature": 2.0}
"""What the worker's settings mean; all other parameters have a half."""
MOVES = ["zero3_fp32:zero0_fp32", "zero0_fp32:zero3_fp32", "zero2_fp32:zero3_fp32", "zero1_bf16:zero3_bf16"]
TURNED = [f"zero1_bf16:{target}:turned" for target in ("zero1_bf16", "zero3_fp32")]
"""Frozen and trained change places, but for what neither names."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict]:
    """Saved and partly moved by two ranks; then read by one."""
    folder = tmp_path_factory.mktemp("runs")
    for processes, names, moves in ((2, NAMES + OFFLOADED, MOVES[-1:] + TURNED), (1, [], MOVES)):
        output = folder / f"by{processes}.json"
        launch(WORKER, [str(folder), str(output), ",".join(names), ",".join(moves)], processes=processes)
    return {processes: json.loads((folder / f"by{processes}.json").read_text()) for processes in (1, 2)}


def plain_loop(applied: list[bool]) -> tuple[torch.Tensor, list[float]]:
    """Weights and gradient norms with nothing but torch: a group for every parameter. applied: which steps make an update."""
    config, model = configuration().optimizer, Toy()
    groups = []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in FROZEN)
        decay = config.weight_decay if parameter.ndim > 1 else 0.0
        if parameter.requires_grad:
            groups.append({"params": [parameter], "weight_decay": decay, "factor": RATE_FACTORS.get(name, 0.5)})
    optimizer = torch.optim.AdamW(groups, betas=config.betas, eps=config.epsilon)
    norms = []
    for rate, is_applied in zip(RATES, applied, strict=True):
        if not is_applied:
            continue
        optimizer.zero_grad()
        (loss_sum(model(TOKENS), TARGETS) / len(TOKENS)).backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)))
        for group in optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        optimizer.step()
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()]), norms


@pytest.mark.parametrize("name", NAMES + OFFLOADED)
def test_two_ranks_equal_a_plain_loop(runs: dict[int, dict], name: str) -> None:
    result, tolerance = runs[2][name], TOLERANCE[name.rsplit("_", 1)[1]]
    applied = [step["applied"] for step in result["steps"]]
    assert sum(applied) == result["straight"]["steps"] >= 2
    expected, norms = plain_loop(applied)
    taken = [step["gradient_norm"] for step in result["steps"] if step["applied"]]
    assert taken == pytest.approx(norms, rel=max(tolerance, 1e-5))
    torch.testing.assert_close(torch.tensor(result["straight"]["weight"]), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", NAMES + OFFLOADED)
def test_frozen_weights_keep_every_bit_and_have_no_moments(runs: dict[int, dict], name: str) -> None:
    """In fp32, where the forward pass uses them rounded."""
    result, fresh = runs[2][name], dict(Toy().named_parameters())
    assert result["frozen"] == list(FROZEN)
    for slot in ("weight", "exp_avg", "exp_avg_sq"):
        after = by_name(result["straight"][slot])
        for key, parameter in fresh.items():
            unmoved = parameter.flatten() if slot == "weight" else torch.zeros(parameter.numel())
            assert torch.equal(after[key], unmoved) == (key in FROZEN), (slot, key)


def by_name(values: list[float]) -> dict[str, torch.Tensor]:
    """Flat tensors of the parameters."""
    sizes = {name: parameter.numel() for name, parameter in Toy().named_parameters()}
    return dict(zip(sizes, torch.tensor(values).split(list(sizes.values())), strict=True))


@pytest.mark.parametrize("name", NAMES + OFFLOADED)
def test_resume_is_bit_equal_and_dropped_gradients_leave_no_trace(runs: dict[int, dict], name: str) -> None:
    assert runs[2][name]["dropped_leave_no_trace"]
    assert runs[2][name]["restored_equal"]
    assert runs[2][name]["resumed_equal"]


@pytest.mark.parametrize(("processes", "move"), [*((1, move) for move in MOVES), (2, MOVES[-1])])
def test_state_moves_between_world_sizes_and_stages(runs: dict[int, dict], processes: int, move: str) -> None:
    saved, moved = runs[2][move.partition(":")[0]], runs[processes][move]
    for slot in ("weight", "exp_avg", "exp_avg_sq", "steps"):
        assert moved["restored"][slot] == saved["saved"][slot]
    expected, after = torch.tensor(saved["straight"]["weight"]), torch.tensor(moved["after"]["weight"])
    torch.testing.assert_close(after, expected, rtol=0, atol=4e-3 if "bf16" in move else 1e-5)


@pytest.mark.parametrize("move", TURNED)
def test_a_copied_checkpoint_goes_on_with_other_factors(runs: dict[int, dict], move: str) -> None:
    """Weights arrive bit for bit; what was frozen starts with moments of zeros and moves, what is frozen now stands still."""
    saved, moved = runs[2]["zero1_bf16"]["saved"], runs[2][move]
    assert moved["restored"]["weight"] == saved["weight"]
    before, after = by_name(saved["weight"]), by_name(moved["after"]["weight"])
    moments = {moment: by_name(moved["restored"][moment]) for moment in ("exp_avg", "exp_avg_sq")}
    for name in before:
        is_frozen = name.startswith("inner")
        assert torch.equal(after[name], before[name]) == is_frozen, name
        for moment, restored in moments.items():
            kept = torch.zeros_like(restored[name]) if is_frozen else by_name(saved[moment])[name]
            assert torch.equal(restored[name], kept), name
    assert 0 < (after["embedding.weight"] - before["embedding.weight"]).abs().max() < 2 * sum(RATES[3:])
