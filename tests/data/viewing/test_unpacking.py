"""A packed micro-batch taken apart again: what the planned sequences were, whatever they are packed with; and its page."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.data.corpora import WordTokenizer, make_config, make_corpus
from tests.data.viewing.tags import Tags
from unimo_ds import cli
from unimo_ds.config import ContrastConfig, RunConfig, to_dict
from unimo_ds.data import packing, step_reader
from unimo_ds.data.schema import Example, SequenceRole
from unimo_ds.data.step_reader import StepReader
from unimo_ds.data.viewing.unpacking import purpose, summary, unpack
from unimo_ds.finetune_config import FinetuneConfig

FORMS = {
    "joint": ContrastConfig(),
    "shared image": ContrastConfig(joint_encoding="shared_image", positives=2),
    "both": ContrastConfig(rewrites="both", sentence_negatives=2),
    "single": ContrastConfig(rewrites="single", related_images=2, related_texts=2),
    "none": ContrastConfig(enabled=False),
}


@pytest.mark.parametrize("form", FORMS)
def test_unpacking_gives_back_what_was_packed(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    packed: list[list[Example]] = []

    def keep(examples: list[Example], *arguments: object, **options: object) -> object:
        packed.append(list(examples))
        return packing.pack(examples, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(step_reader, "pack", keep)
    config = make_config(contrast=FORMS[form], micro_batch_tokens=700)
    reader = StepReader(make_corpus(), WordTokenizer(), config, rank=0, world_size=1)
    batches = [batch for step in range(4) for batch in reader.read(step).micro_batches]
    roles = set()
    for batch, examples in zip(batches, packed, strict=True):
        wanted = [(number, one) for number, example in enumerate(examples) for one in example.sequences]
        found = unpack(batch)
        assert len(found) == len(wanted) == batch.num_sequences
        for at, (one, (number, sequence)) in enumerate(zip(found, wanted, strict=True)):
            roles.add(one.role)
            assert (one.example, one.role, one.level) == (number, sequence.role, sequence.level)
            assert (one.length, one.prefix_length, one.seed) == (sequence.length, sequence.prefix_length, sequence.seed)
            assert one.prefix_of == (at + sequence.shares_prefix_at if sequence.shares_prefix_at else -1)
            assert len(one.image_rows) == sequence.num_regions
            if sequence.region_features is not None:
                np.testing.assert_array_equal(batch.region_features[one.image_rows], sequence.region_features)
            np.testing.assert_array_equal(one.token_ids, [] if sequence.token_ids is None else sequence.token_ids)
            assert sorted(one.masked_regions) == sequence.masked_region_at.tolist()
            offsets = sequence.language_at - sequence.num_regions
            assert one.targets == dict(zip(offsets.tolist(), sequence.language_targets.tolist(), strict=True))
            assert one.objective == (sequence.language_objective if one.targets else None)
            if one.role is SequenceRole.RELATED_IMAGE:
                assert one.related_image == sequence.item_key
        counted = summary(batch)
        assert sum(one["sequences"] for one in counted["by_purpose"].values()) == batch.num_sequences
        assert sum(one["positions"] for one in counted["by_purpose"].values()) == batch.num_positions
        assert sum(counted["predicted_tokens"].values()) == len(batch.language_at)
    planned = {one.role for examples in packed for example in examples for one in example.sequences}
    assert roles == planned
    assert (len(roles) > 1) == config.contrast.enabled


def test_every_purpose_has_words() -> None:
    config = make_config(contrast=FORMS["both"])
    reader = StepReader(make_corpus(), WordTokenizer(), config, rank=0, world_size=1)
    found = {purpose(one) for step in range(6) for batch in reader.read(step).micro_batches for one in unpack(batch)}
    assert {"masked", "sequence to sequence", "image alone", "pair with negative word rewrite"} <= found


def page_of(file: Path) -> Tags:
    """Without scripts."""
    page = Tags(file.read_text())
    assert "script" not in {tag for tag, _ in page.tags}
    return page


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from unimo_ds.data.prepare.scenes.writing import write_demo_corpus

    folder = tmp_path_factory.mktemp("scenes")
    write_demo_corpus(folder, num_pairs=60, num_images=20, num_texts=20, num_held_out=10)
    return folder


def test_the_page_shows_what_the_model_gets(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, counts = tmp_path / "batch.html", tmp_path / "batch.json"
    words = ["--step", "2", "--world-size", "2", "--rank", "1", "--samples", "40"]
    ask = ["inspect", "batch", "--data", str(scenes), *words, "--html", str(page), "--json", str(counts)]
    assert cli.main(ask) == 0
    printed = capsys.readouterr().out
    found = json.loads(counts.read_text())
    assert (found["step"], found["rank"], found["world_size"], found["bad_samples"]) == (2, 1, 2, [])
    outline = page_of(page)
    assert outline.outside() == []
    assert "step 2, rank 1 of 2" in outline.text
    shown = found["micro_batches"][0]["samples"][:40]
    assert all(key in outline.text for key in shown)
    first = found["micro_batches"][0]
    assert f"{first['positions']:,} positions in {first['sequences']:,} sequences" in printed
    assert "[MASK]" in outline.text
    assert outline.count("hidden") >= 1, "regions that are hidden are filled"
    # The order that `inspect order` tells is the one that is shown.
    assert cli.main(["inspect", "order", "--data", str(scenes), "--steps", "2:3", "--world-size", "2", "--json"]) == 0
    order = json.loads(capsys.readouterr().out)["steps"][0]["ranks"][1]
    assert sorted(order) == sorted(key for one in found["micro_batches"] for key in one["samples"])


def test_texts_are_no_markup_and_what_is_hidden_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts, data, page = tmp_path / "texts.txt", tmp_path / "data", tmp_path / "batch.html"
    texts.write_text("".join(f"<script>alert({n})</script> & <b>what is said here {n}</b>\n" for n in range(30)))
    assert cli.main(["prepare", "import", "--kind", "texts", "--input", str(texts), "--output", str(data)]) == 0
    sets = [
        "contrast.enabled=false",
        "data.kind_weights.text=1",
        "data.kind_weights.pair=0",
        "data.kind_weights.image=0",
    ]
    options = [word for one in sets for word in ("--set", one)]
    ask = ["inspect", "batch", "--data", str(data), "--recipe", "small", *options, "--html", str(page)]
    assert cli.main(ask) == 0
    outline = page_of(page)
    assert "<b>what" in outline.text.replace("[MASK]", "")
    capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "needs --data DIR, or --run-dir RUN"),
        (["--data", "DATA", "--rank", "2", "--world-size", "2"], "a rank from 0 below the world size"),
        (["--data", "DATA", "--step", "-1"], "a step from 0"),
        (["--run-dir", "DATA"], "is no run"),
        (["--run-dir", "DATA", "--data", "DATA"], "batch --run-dir has no use for --data; leave it out"),
        (["--run-dir", "DATA", "--recipe", "small", "--set", "x=y"], "no use for --recipe, --set; leave"),
        (["--data", "DATA", "--steps", "1:2", "--workers", "2"], "inspect batch has no use for --steps, --workers"),
        (["--data", "DATA", "--html", "/dev/null/page.html"], "cannot write /dev/null/page.html"),
        (["--data", "DATA", "--samples", "-2"], "--samples -2 must not be negative"),
    ],
)
def test_what_makes_no_sense_is_refused(
    words: list[str], reason: str, scenes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["inspect", "batch", *(str(scenes) if word == "DATA" else word for word in words)]) == 2
    assert reason in capsys.readouterr().err


def test_characters_of_several_tokens_are_shown_whole(tmp_path: Path) -> None:
    texts, data, page = tmp_path / "texts.txt", tmp_path / "data", tmp_path / "batch.html"
    characters = [chr(0x4E00 + 7 * n) for n in range(400)]
    texts.write_text("".join(f"{''.join(characters[n : n + 20])}\n" for n in range(0, 400, 20)))
    words = ["--kind", "texts", "--input", str(texts), "--output", str(data), "--vocabulary-size", "270"]
    assert cli.main(["prepare", "import", *words]) == 0
    sets = ["contrast.enabled=false", "data.kind_weights.pair=0", "data.kind_weights.image=0"]
    sets += ["masking.sequence_to_sequence_share=0", "masking.language_share=0"]
    options = [word for one in sets for word in ("--set", one)]
    assert cli.main(["inspect", "batch", "--data", str(data), *options, "--html", str(page)]) == 0
    text = page_of(page).text
    assert "\ufffd" not in text
    assert sum(one in text for one in characters) > 40


def test_a_folder_whose_name_is_no_unicode_is_spelt_out(scenes: Path, tmp_path: Path) -> None:
    data, page = tmp_path / "d\udcff", tmp_path / "batch.html"
    shutil.copytree(scenes / "train", data)
    words = ["--data", str(data), "--data", str(scenes / "held_out")]
    assert cli.main(["inspect", "batch", *words, "--html", str(page)]) == 0
    assert "d\\udcff/pairs-000000.tar:" in page_of(page).text


def test_a_fine_tuning_is_no_pre_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = RunConfig("finetune_sst2_base", finetune=FinetuneConfig("sst2"))
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
    assert cli.main(["inspect", "batch", "--run-dir", str(tmp_path)]) == 2
    assert "is a fine-tuning; give the pre-training run" in capsys.readouterr().err


def test_pictures_that_are_damaged_are_blank_where_the_model_gets_stored_regions(scenes: Path, tmp_path: Path) -> None:
    data, page = tmp_path / "train", tmp_path / "batch.html"
    shutil.copytree(scenes / "train", data)
    for shard in data.glob("*.tar"):
        content = bytearray(shard.read_bytes())
        for found in re.finditer(b"\xff\xd8\xff", bytes(content)):  # as JPEGs begin
            content[found.end()] ^= 255
        shard.write_bytes(content)
    assert cli.main(["inspect", "batch", "--data", str(data), "--html", str(page)]) == 0
    outline = page_of(page)
    assert outline.count("blank") == outline.text.count("the picture cannot be decoded") == 8, "as many as are shown"
    assert outline.count("hidden") >= 1
