"""Which weights are decayed, which optimizers are refused, how the rate moves."""

from __future__ import annotations

import copy
import itertools
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
from deepspeed.ops.op_builder.builder import OpBuilder
from torch import nn
from torch.utils import cpp_extension
from torch.utils.file_baton import FileBaton

from unimo_ds.config import OptimizerConfig, RunConfig, ScheduleConfig
from unimo_ds.engine import ds_config, optim
from unimo_ds.engine.schedule import DECAYS, learning_rate
from unimo_ds.utils.errors import UserError

CONFIG = RunConfig(recipe="test")


def test_only_matrices_are_decayed() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3), nn.LayerNorm(3))
    decayed, kept = optim.parameter_groups(model, weight_decay=0.1)
    assert [parameter.ndim for parameter in decayed["params"]] == [2, 2]
    assert decayed["weight_decay"] == 0.1
    assert [parameter.ndim for parameter in kept["params"]] == [1, 1, 1]
    assert kept["weight_decay"] == 0.0
    model[0].weight.requires_grad_(False)
    assert len(optim.parameter_groups(model, weight_decay=0.1)[0]["params"]) == 1


def test_each_factor_makes_groups_of_its_own_and_the_longest_part_counts() -> None:
    model = nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(2, 3) for _ in range(11)), "norm": nn.LayerNorm(3)})
    factors = {"layers": 0.5, "layers.1": 2.0, "layers.1.bias": 0.0, "layers.0": 0.5}
    optim.freeze(model, factors)
    assert [name for name, one in model.named_parameters() if not one.requires_grad] == ["layers.1.bias"]
    groups = optim.parameter_groups(model, weight_decay=0.1, rate_factors=factors)
    assert [(group[optim.RATE_FACTOR], group["weight_decay"], len(group["params"])) for group in groups] == [
        (2.0, 0.1, 1),
        (1.0, 0.0, 2),
        (0.5, 0.1, 10),  # `layers.1` says nothing of `layers.10`
        (0.5, 0.0, 10),
    ]
    assert groups[0]["params"][0] is model["layers"][1].weight


@pytest.mark.parametrize(
    ("factors", "said"),
    [
        (
            {"layers": 0.5, "layer.1": 0.5},
            r"rate_factors\.layer\.1: the model has no such part; did you mean 'layers\.1'\?",
        ),
        ({"": 0.5}, "the model has no such part; known: layers, norm"),
        ({"zzzzzz": 0.5}, "the model has no such part; known: layers, norm"),
        ({"layers": -1.0}, r"rate_factors\.layers=-1\.0 must be at least 0"),
        ({"layers": float("nan")}, r"rate_factors\.layers=nan must be at least 0"),
        ({"layers": 0.0, "norm": 0.0}, "freezes the whole model"),
    ],
)
def test_factors_that_fit_no_part_or_no_rate_are_refused(factors: dict[str, float], said: str) -> None:
    model = nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(2, 3) for _ in range(3)), "norm": nn.LayerNorm(3)})
    with pytest.raises(UserError, match=said):
        optim.freeze(model, factors)


@pytest.mark.parametrize("name", ["apex_adam", "apex_lamb"])
def test_apex_is_refused_on_a_cpu(name: str) -> None:
    values = ds_config.load("zero0_fp32", CONFIG, 1)
    with pytest.raises(UserError, match="NVIDIA GPUs"):
        optim.make_optimizer(nn.Linear(2, 2), OptimizerConfig(name=name), values, device=torch.device("cpu"))


def test_lamb_is_refused_where_tensors_are_flattened() -> None:
    values = ds_config.load("zero1_bf16", CONFIG, 1)
    with pytest.raises(UserError, match="zero0_bf16"):
        optim.make_optimizer(nn.Linear(2, 2), OptimizerConfig(name="apex_lamb"), values, device=torch.device("cuda"))


def test_another_package_called_apex_is_not_taken_for_nvidias(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))  # what is imported here is gone afterwards
    values = ds_config.load("zero1_bf16", CONFIG, 1)
    with pytest.raises(UserError, match="built from source"):
        optim.make_optimizer(nn.Linear(2, 2), OptimizerConfig(name="apex_adam"), values, device=torch.device("cuda"))


def test_an_adam_that_cannot_be_compiled_is_told_and_so_is_a_lock_that_a_killed_compiler_left(
    monkeypatch: pytest.MonkeyPatch, tmp_path, capsys
) -> None:
    monkeypatch.setattr(OpBuilder, "_loaded_ops", {})
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setenv("CXX", "/bin/false")
    values = ds_config.load("zero1_fp32", CONFIG, 1)
    (tmp_path / "cpu_adam").mkdir()
    lock = tmp_path / "cpu_adam" / "lock"
    lock.touch()
    monkeypatch.setattr(FileBaton, "wait", lambda baton: lock.unlink())  # as somebody does who reads the line
    for is_locked in (True, False):
        with pytest.raises(UserError, match=r"cannot compile its cpu_adam here \(.+\); see that a C\+\+ compiler"):
            optim.make_optimizer(
                nn.Linear(2, 2), OptimizerConfig(name="deepspeed_adam"), values, device=torch.device("cpu")
            )
        assert (f"one was killed at it: remove {lock}\n" in capsys.readouterr().out) == is_locked


def test_prepared_state_changes_nothing_and_steps_can_be_set() -> None:
    weights = [torch.ones(3, requires_grad=True) for _ in range(2)]
    for prepare in (False, True):
        optimizer = torch.optim.AdamW([weights[prepare]], lr=0.1, fused=True)
        if prepare:
            optim.prepare_state(optimizer, [weights[prepare]])
        for _ in range(3):
            weights[prepare].grad = torch.tensor([1.0, -2.0, 0.5])
            optimizer.step()
        assert optim.applied_steps(optimizer) == 3
        optim.set_applied_steps(optimizer, 7)
        assert optim.applied_steps(optimizer) == 7
    assert torch.equal(weights[0], weights[1])


@pytest.mark.skipif(
    not any(Path(cpp_extension._get_build_directory("cpu_adam", verbose=False)).glob("*.so")),
    reason="needs DeepSpeed's CPU Adam, which a first run with optimizer.name=deepspeed_adam compiles in two minutes",
)
def test_deepspeeds_adam_goes_on_to_the_bit() -> None:
    """After a resume, and after a rollback of the same optimizer, whose own powers of beta are further on by then."""
    model, values = nn.Linear(40, 30), ds_config.load("zero0_fp32", RunConfig(recipe="test"), 1)
    fresh = copy.deepcopy(model.state_dict())

    def made() -> torch.optim.Optimizer:
        model.load_state_dict(fresh)
        optimizer = optim.make_optimizer(
            model, OptimizerConfig(name="deepspeed_adam"), values, device=torch.device("cpu")
        )
        optim.prepare_state(optimizer, list(model.parameters()))
        return optimizer

    def steps(optimizer: torch.optim.Optimizer, first: int, stop: int) -> None:
        for step in range(first, stop):
            generator = torch.Generator().manual_seed(step)
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()

    def kept(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
        moments = [optimizer.state[one][name] for one in model.parameters() for name in optim.MOMENTS]
        return [one.detach().clone() for one in (*model.parameters(), *moments)]

    def put(optimizer: torch.optim.Optimizer, values: list[torch.Tensor]) -> None:
        moments = [optimizer.state[one][name] for one in model.parameters() for name in optim.MOMENTS]
        with torch.no_grad():
            for target, value in zip((*model.parameters(), *moments), values, strict=True):
                target.copy_(value)
        optim.set_applied_steps(optimizer, 30)

    straight = made()
    steps(straight, 0, 30)
    at_30 = kept(straight)
    steps(straight, 30, 60)
    expected = kept(straight)
    for resumed in (made(), straight):
        put(resumed, at_30)
        steps(resumed, 30, 60)
        assert all(torch.equal(one, other) for one, other in zip(kept(resumed), expected, strict=True))


def test_the_compiler_that_torchs_adamw_brings_is_left_out() -> None:
    """The same bits as torch's own class, whose methods import `torch._dynamo`: most of a second and a half of each start."""
    script = """
import sys, torch
from unimo_ds.config import OptimizerConfig
from unimo_ds.engine import optim
models = [torch.nn.Linear(7, 5), torch.nn.Linear(7, 5)]
models[1].load_state_dict(models[0].state_dict())
values = {"zero_optimization": {"stage": 0}}
ours = optim.make_optimizer(models[0], OptimizerConfig(), values, device=torch.device("cpu"))
def steps(model, optimizer):
    for seed in range(3):
        optimizer.zero_grad()
        model(torch.randn(4, 7, generator=torch.Generator().manual_seed(seed))).square().sum().backward()
        optimizer.step()
steps(models[0], ours)
assert "torch._dynamo" not in sys.modules
values["zero_optimization"]["stage"] = 1
theirs = optim.make_optimizer(models[1], OptimizerConfig(), values, device=torch.device("cpu"))
assert type(theirs) is torch.optim.AdamW
steps(models[1], theirs)
for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
    assert torch.equal(one, other) and one.grad_fn is None
    for name, value in ours.state[one].items():
        assert torch.equal(value, theirs.state[other][name]), name
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


def test_rate_rises_to_the_peak_and_falls_to_zero() -> None:
    schedule = ScheduleConfig(total_steps=110, warmup_steps=10)
    rates = [learning_rate(step, peak=2.0, schedule=schedule) for step in range(112)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9] == rates[10] == 2.0
    assert rates[60] == pytest.approx(1.0)
    assert rates[109] > 0
    assert rates[110] == rates[111] == 0.0
    assert max(rates) == 2.0


def rates_of(form: str, total_steps: int = 110, warmup_steps: int = 10, **more: float) -> list[float]:
    schedule = ScheduleConfig(total_steps, warmup_steps, form, **more)
    return [learning_rate(step, peak=2.0, schedule=schedule) for step in range(total_steps + 2)]


def test_every_form_warms_up_alike_and_never_exceeds_the_peak() -> None:
    forms = get_args(get_type_hints(ScheduleConfig)["form"])
    assert set(forms) == set(DECAYS)
    for form in forms:
        for warmup_steps in (0, 1, 10, 110):
            rates = rates_of(form, warmup_steps=warmup_steps)
            warm = [2.0 * step / warmup_steps for step in range(1, warmup_steps + 1)]
            assert rates[:warmup_steps] == pytest.approx(warm, rel=1e-15)
            falling = rates[warmup_steps:]
            assert all(2.0 >= now >= later >= 0 for now, later in itertools.pairwise(falling)), form
            assert all(rates[:110]), form
            if form != "drops":
                assert rates[110] == rates[111] == 0.0


def test_cosine_is_half_a_wave_and_mirrored_about_its_middle() -> None:
    rates = rates_of("cosine")
    assert rates[10] == 2.0
    # cos of 60, 90 and 120 degrees
    assert [rates[10 + step] for step in (25, 50, 75)] == pytest.approx([1 + 0.5**0.5, 1.0, 1 - 0.5**0.5])
    for step in range(101):
        assert rates[10 + step] + rates[110 - step] == pytest.approx(2.0)
    # sum of 1 + cos(pi k / n) over k = 0 .. n - 1 is n + 1
    assert sum(rates[10:110]) == pytest.approx(101)


def test_stable_is_constant_and_then_falls_in_a_line() -> None:
    rates = rates_of("stable")
    assert rates[9:89] == [2.0] * 80
    assert rates[88:111] == pytest.approx([2.0 * left / 22 for left in range(22, -1, -1)])
    assert rates_of("stable", decay_share=0.5)[55:57] == pytest.approx([2.0, 2.0 * 54 / 55])


def test_a_stable_rate_has_the_other_forms_at_its_ends() -> None:
    assert rates_of("stable", decay_share=1.0) == pytest.approx(rates_of("linear"), rel=1e-15)
    assert rates_of("stable", decay_share=0.0)[9:110] == [2.0] * 101
    assert rates_of("stable", decay_share=1.0, warmup_steps=110)[109] == 2.0


def test_rate_without_warmup_or_decay() -> None:
    assert learning_rate(0, peak=1.0, schedule=ScheduleConfig(total_steps=10, warmup_steps=0)) == 1.0
    for warmup_steps in (9, 10):
        assert learning_rate(9, peak=1.0, schedule=ScheduleConfig(total_steps=10, warmup_steps=warmup_steps)) == 1.0
