"""What looks like a secret is blotted out, what does not stays."""

from __future__ import annotations

import time

import pytest

from unimo_ds.config import RunConfig, to_dict
from unimo_ds.utils.redact import redact, redacted


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://AKIA123:wJalr@bucket/train", "s3://***@bucket/train"),
        ("cannot read https://user:pa:ss@host:8080/x.tar: 403", "cannot read https://***@host:8080/x.tar: 403"),
        ("https://host/x.tar?X-Amz-Signature=abc12&part=3", "https://host/x.tar?X-Amz-Signature=***&part=3"),
        ("https://host/x?sv=1&sig=ab%2Fc", "https://host/x?sv=1&sig=***"),
        ("--storage-password=hunter2 --seed=1", "--storage-password=*** --seed=1"),
        ("AWS_SECRET_ACCESS_KEY=wJalr", "AWS_SECRET_ACCESS_KEY=***"),
        ("AccountName=mine;AccountKey=Eby8vd/K1==;x", "AccountName=mine;AccountKey=***;x"),
        ("token: hf_abcdefghijklmnopqrstuvwx", "token: ***"),
        ("see hf_abcdefghijklmnopqrstuvwx", "see ***"),
    ],
)
def test_secrets_are_blotted_out(text: str, shown: str) -> None:
    assert redact(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "batch.micro_batch_tokens=16384",
        "masking.mask_token_share=0.8",
        "data/train",
        "no tokenizer.json: it is needed",
        "https://host/a@b.tar",
        "rank 1 on node3@rack2: 5 tokens",
        "step 3: tokens/s 12",
    ],
)
def test_everything_else_stays(text: str) -> None:
    assert redact(text) == text


def test_a_configuration_without_secrets_is_unchanged() -> None:
    config = to_dict(RunConfig(recipe="test"))
    assert redacted(config) == config
    assert redacted({"data": {"path": "s3://a:b@c"}, "command": ["x", "--token=yy"]}) == {
        "data": {"path": "s3://***@c"},
        "command": ["x", "--token=***"],
    }


@pytest.mark.parametrize("part", ["a-", "a.", "password", "api_", "sk-", "a: "])
def test_long_names_are_read_in_no_time(part: str) -> None:
    begun = time.process_time()
    redact(part * 20_000)
    assert time.process_time() - begun < 5, "quadratic ones take minutes"
