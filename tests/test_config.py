"""Overrides, typing and refusal of recipes that cannot run."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator
from typing import Any

import pytest

from unimo_ds.config import RunConfig, fingerprint, from_dict, to_dict
from unimo_ds.config_check import check
from unimo_ds.overrides import apply_overrides
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.intervals import Interval

CONFIG = RunConfig(recipe="test")


def test_overrides_reach_every_type():
    changed = apply_overrides(
        CONFIG,
        [
            "seed=7",
            "model.hidden_dropout=0",
            "contrast.in_batch=false",
            "contrast.form=one_log",
            "optimizer.betas=0.9,0.999",
            "data.held_out_path=some/folder",
            "data.source_weights.coco=2",
            "data.source_weights.cc3m-v1.1=3",
            "optimizer.rate_factors.layers.0=0.5",
            "data.made_with.tokenizer=7b",
            "data.folder_weights=0.5, 2,1",
            "model.initialize_from=none",
        ],
    )
    assert (changed.seed, changed.model.hidden_dropout, changed.contrast.in_batch) == (7, 0.0, False)
    assert changed.contrast.form == "one_log"
    assert changed.optimizer.betas == (0.9, 0.999)
    assert changed.data.held_out_path == "some/folder"
    assert changed.data.source_weights == {"coco": 2.0, "cc3m-v1.1": 3.0}
    assert changed.optimizer.rate_factors == {"layers.0": 0.5}
    assert changed.data.made_with == {"tokenizer": "7b"}
    assert changed.data.folder_weights == (0.5, 2.0, 1.0)
    assert from_dict(RunConfig, to_dict(changed)) == changed
    assert apply_overrides(changed, ["data.folder_weights=none"]).data.folder_weights == ()
    assert changed.model.initialize_from is None
    assert apply_overrides(changed, ["data.source_weights=none"]).data.source_weights == {}
    assert CONFIG.seed == 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.hiden_size=4", "did you mean 'hidden_size'"),
        ("modle.hidden_size=4", "did you mean 'model'"),
        ("total_steps=200", "unknown key 'total_steps'; did you mean 'schedule.total_steps'"),
        ("enabled=false", "did you mean 'contrast.enabled'"),
        ("form=cosine", "did you mean 'contrast.form' or 'schedule.form'"),
        ("total_step=200", "unknown key 'total_step'; known: "),
        ("model=4", "group of keys"),
        ("seed.x=4", "single value"),
        ("seed=four", "takes int"),
        ("seed=1.5", "takes int"),
        ("contrast.in_batch=1", "true or false"),
        ("contrast.form=both", "one_log, two_logs, log_each"),
        ("optimizer.betas=0.9", "2 values"),
        ("data.folder_weights=1,b", "takes float, not 'b'"),
        ("data.folder_weights.a=1", "single value"),
        ("losses.contrastive=nan", r"between -2\^63 and 2\^63, not 'nan'"),
        ("losses.contrastive=inf", r"between -2\^63 and 2\^63, not 'inf'"),
        ("seed=1" + 400 * "0", r"seed takes a number between -2\^63 and 2\^63, not '10+'"),
        ("data.num_workers=100000", "between 0 and 1024"),
        ("finetune=sst2", "'finetune' is a group of keys, and this run has no such group"),
        ("finetune.epochs=3", "unknown key 'finetune.epochs': this run has no such group"),
        ("seed", "no '='"),
    ],
)
def test_bad_overrides_are_refused_with_the_right_name(override, message):
    with pytest.raises(UserError, match=message):
        check(apply_overrides(CONFIG, [override]))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.num_heads=7", "multiple"),
        ("model.hidden_dropout=1", "between 0 and 0.95"),
        ("masking.language_share=1.5", "between 0 and 1"),
        ("masking.min_fragment_tokens=40", "max_fragment_tokens"),
        ("contrast.positives=1000000000", "must be between 0 and 1000"),
        ("masking.random_token_share=0.3", "together are above 1"),
        ("masking.fragment_share=0", r"must be between 0\.001 and 1"),
        ("contrast.group_pairs=-3", "at least 0"),
        ("model.num_layers=0", "at least 1"),
        ("data.max_text_tokens=600", "max_positions"),
        ("batch.global_samples=0", "between 1 and 1000000"),
        ("batch.global_samples=1000000000", "between 1 and 1000000"),
        ("data.max_regions=4611686018427387904", "between 1 and 2147483647"),
        ("data.prefetch_steps=1000000000", "between 1 and 1000"),
        ("masking.max_span_words=1000000000", "between 1 and 100000"),
        ("schedule.warmup_steps=9000000", "warmup_steps"),
        ("schedule.decay_share=0.5", "is for schedule.form=stable, but the form is"),
        ("data.kind_weights.pair=0", "needs pairs"),
        ("contrast.temperature=0.9", "max_temperature"),
        ("logging.trace_steps=5,4", "a first step and a last one"),
        ("run_dir=", "run_dir is empty"),
        ("run_dir=s3://bucket/run", "s3://bucket/run is a URL where a path on this machine belongs"),
        ("losses.contrastive=-1", "at least 0"),
        ("optimizer.betas=0.9,1", "below 1"),
        ("optimizer.epsilon=-1", "at least 0"),
        ("engine.threads=-1", "between 0 and 4096"),
        ("engine.hang_minutes=1e18", "525600"),
        ("seed=-1", "between 0 and 9223372036854775807"),
        ("seed=99999999999999999999", "seed takes a number between"),
        ("model.initializer_range=0", "at least 1e-06"),
        ("logging.num_pictures=-1", "at least 0"),
    ],
)
def test_impossible_recipes_are_refused(override, message):
    check(CONFIG)
    with pytest.raises(UserError, match=message):
        check(apply_overrides(CONFIG, [override]))


def test_a_run_that_trains_nothing_is_refused():
    names = ("masked_language", "sequence_to_sequence", "region_regression", "region_classification")
    contrast_alone = apply_overrides(CONFIG, [f"losses.{name}=0" for name in names])
    check(contrast_alone)
    for override in ("losses.contrastive=0", "contrast.enabled=false"):
        with pytest.raises(UserError, match="nothing is trained"):
            check(apply_overrides(contrast_alone, [override]))


def test_a_run_of_no_samples_is_refused_and_one_without_pairs_is_not():
    none = [f"data.kind_weights.{kind}=0" for kind in ("image", "text", "pair")]
    with pytest.raises(UserError, match=r"data\.kind_weights are all 0"):
        check(apply_overrides(CONFIG, none))
    check(apply_overrides(CONFIG, ["data.kind_weights.pair=0", "contrast.enabled=false"]))


def test_a_warm_up_may_last_to_the_end():
    check(apply_overrides(CONFIG, [f"schedule.warmup_steps={CONFIG.schedule.total_steps}"]))


def test_round_trip_and_fingerprint():
    changed = apply_overrides(CONFIG, ["data.source_weights.vg=3", "seed=3"])
    assert from_dict(RunConfig, to_dict(changed)) == changed
    assert fingerprint(changed) != fingerprint(CONFIG)
    assert fingerprint(changed) == fingerprint(dataclasses.replace(changed))
    with pytest.raises(UserError, match="did you mean 'seed'"):
        from_dict(RunConfig, {"recipe": "x", "sed": 1})


FREE_ON_PURPOSE = {
    # Held against each other, against the data or one by one (config_check.py, data/mixture.py).
    "model.region_tag_sizes",
    "data.source_weights",
    "data.folder_weights",
    "masking.max_fragment_tokens",
    "contrast.temperature",
    "contrast.max_temperature",
    "optimizer.betas",
    "logging.trace_steps",
    # Where its parts are known (engine/rate_factors.py).
    "optimizer.rate_factors",
    # Nobody sets it: the task and its data do.
    "finetune.num_outputs",
    # Of the circle loss, which is defined for every number.
    "finetune.retrieval.margin",
    "finetune.retrieval.scale",
}


def numbers(kind: type, prefix: str = "") -> Iterator[tuple[str, bool]]:
    """Key of each setting with a number in it, and whether that has an interval."""
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        parts = set(parts_of(hint))
        for group in [part for part in parts if isinstance(part, type) and dataclasses.is_dataclass(part)]:
            yield from numbers(group, f"{prefix}{name}.")
        if parts & {int, float}:
            yield f"{prefix}{name}", any(isinstance(part, Interval) for part in parts)


def parts_of(hint: Any) -> Iterator[Any]:
    """The hint, and what stands in its brackets."""
    yield hint
    for part in typing.get_args(hint):
        yield from parts_of(part)


def test_every_number_has_an_interval_or_is_free_on_purpose():
    found = dict(numbers(RunConfig))
    assert len(found) > 100
    assert {key for key, has_interval in found.items() if not has_interval} == FREE_ON_PURPOSE
