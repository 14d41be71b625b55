"""Each translator runs its real network or program: random weights say nonsense, but the same nonsense always."""

from pathlib import Path

import pytest
import torch

from tests.data.prepare.raw import captions
from tests.data.prepare.rewriting.translation.tiny_marian import write_model
from unimo_ds.data.prepare.rewriting.translation import apertium, marian, opening
from unimo_ds.data.prepare.rewriting.translation.marian import MarianTranslator
from unimo_ds.data.prepare.rewriting.translation.protocol import Pivot, in_batches
from unimo_ds.data.prepare.settings import RewriteSettings
from unimo_ds.utils.errors import UserError

TEXTS = [captions(i)[i % 2] for i in range(7)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    return write_model(folder / "en-xx", 0), write_model(folder / "xx-en", 1)


def test_marian_translates_as_the_library_does(models: tuple[Path, Path]) -> None:
    translator = MarianTranslator(models[0], batch_size=3, beams=2, device=torch.device("cpu"))
    found = translator.translate(TEXTS, number=2)
    assert [len(one) for one in found] == [2] * len(TEXTS)
    # One text alone, by the model itself: batches and padding change nothing.
    from transformers import MarianMTModel, MarianTokenizer

    model, tokenizer = MarianMTModel.from_pretrained(models[0]).eval(), MarianTokenizer.from_pretrained(models[0])
    inputs = tokenizer(TEXTS[0], return_tensors="pt")
    limit = min(2 * inputs["input_ids"].shape[1] + 10, 63)
    made = model.generate(**inputs, num_beams=2, num_return_sequences=2, max_new_tokens=limit, max_length=None)
    expected = [" ".join(tokenizer.decode(one, skip_special_tokens=True).split()) for one in made]
    alone = MarianTranslator(models[0], batch_size=1, beams=2, device=torch.device("cpu")).translate(
        TEXTS[:1], number=2
    )
    assert alone[0] == expected
    assert expected[0]
    assert translator.translate(TEXTS, number=2) == found


def test_empty_texts_and_line_breaks(models: tuple[Path, Path]) -> None:
    translator = MarianTranslator(models[0], beams=1, device=torch.device("cpu"))
    assert translator.translate([]) == []
    found = translator.translate(["", "A dog\nruns .", "A dog runs ."])
    assert found[0] == []
    assert found[1] == found[2]
    assert "\n" not in found[1][0]


def test_ctranslate2_says_what_marian_says(models: tuple[Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("ctranslate2")
    from ctranslate2.converters import TransformersConverter

    from unimo_ds.data.prepare.rewriting.translation.ctranslate import CTranslate2Translator

    files = ["source.spm", "target.spm", "vocab.json", "tokenizer_config.json"]
    TransformersConverter(str(models[0]), copy_files=files).convert(str(tmp_path / "model"))
    fast = CTranslate2Translator(tmp_path / "model", batch_size=3, beams=1)
    plain = MarianTranslator(models[0], batch_size=3, beams=1, device=torch.device("cpu"))
    found, expected = fast.translate(TEXTS), plain.translate(TEXTS)
    # Lengths differ by the limits of the two; what both say is the same.
    assert all(one[0][:20] == other[0][:20] for one, other in zip(found, expected, strict=True))
    assert len({one[0] for one in found}) > 1
    assert [len(one) for one in fast.translate(TEXTS, number=3)] == [3] * len(TEXTS)
    with pytest.raises(UserError, match="no CTranslate2 model"):
        CTranslate2Translator(models[0])


def test_pivots_go_there_and_back(models: tuple[Path, Path]) -> None:
    settings = RewriteSettings(translator="marian", to_pivot=models[:1], from_pivot=models[1:], beams=2)
    opening.check(settings)
    (pivot,) = opening.pivots(settings)
    assert (pivot.name, pivot.is_trusted) == ("marian en-xx", True)
    there = pivot.there.translate(TEXTS[:2])
    assert pivot.around(TEXTS[:2], number=2) == pivot.back.translate([one[0] for one in there], number=2)
    assert pivot.around(["", TEXTS[0]])[0] == []


def test_what_is_no_model_is_said(models: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no folder"):
        MarianTranslator(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no Marian tokenizer"):
        MarianTranslator(tmp_path)
    for name in ("source.spm", "target.spm", "vocab.json", "tokenizer_config.json", "config.json"):
        (tmp_path / name).write_bytes((models[0] / name).read_bytes())
    with pytest.raises(UserError, match="no Marian model"):
        MarianTranslator(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pivots": ("spa",)}, "--pivots needs --translator"),
        ({"translator": "apertium", "to_pivot": (Path("x"),)}, "takes --pivots, not folders"),
        ({"translator": "apertium", "pivots": ("spanish",)}, "'spanish' is unknown; did you mean 'spa'"),
        ({"translator": "marian", "pivots": ("spa",)}, "not --pivots"),
        ({"translator": "marian"}, "at least one"),
        ({"translator": "marian", "to_pivot": (Path("x"),), "from_pivot": (Path("y"), Path("z"))}, "as many folders"),
        ({"translator": "ctranslate2", "to_pivot": (Path("x"),), "from_pivot": (Path("y"),)}, "x is no folder"),
    ],
)
def test_contradictions_are_one_sentence(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        opening.check(RewriteSettings(**options))


def test_ranks_under_slurm_share_the_gpus(models: tuple[Path, Path], monkeypatch) -> None:
    """The second task of a node takes the second GPU, for translators as for detectors."""
    given = []
    monkeypatch.setattr(marian, "MarianTranslator", lambda folder, **options: given.append(options["device"]))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("SLURM_LOCALID", "3")
    settings = RewriteSettings(translator="marian", to_pivot=models[:1], from_pivot=models[1:])
    opening.pivots.__wrapped__(settings)
    assert given == [torch.device("cuda", 1)] * 2


def test_batches_keep_the_order() -> None:
    seen = []

    def shout(batch: list[str]) -> list[list[str]]:
        seen.append(batch)
        return [[text.upper(), ""] for text in batch]

    assert in_batches(["bb", "", "cccc", " a  b "], 2, shout) == [["BB"], [], ["CCCC"], ["A B"]]
    assert seen == [["cccc", "a b"], ["bb"]]


def installed() -> tuple[str, ...]:
    try:
        return apertium.installed()
    except UserError:
        return ()


@pytest.mark.skipif("spa" not in installed(), reason="apertium with apertium-eng-spa is not installed")
def test_apertium_translates_line_by_line() -> None:
    translator = apertium.Apertium("eng-spa")
    texts = [
        "A black dog is in the water .",
        "",
        "an unheardofword",
        "50 % of #4 * 3",
        "two\nlines",
        "A dog [^x$] {y} \\ <b> /",
    ]
    found = translator.translate(texts)
    assert [len(one) for one in found] == [1, 0, 0, 0, 1, len(found[5])]
    assert "perro negro" in found[0][0]
    assert found[0][0].endswith(" .")
    # Many lines stay many lines, whatever stands in them.
    many = translator.translate([texts[0], texts[5]] * 40)
    assert many[::2] == [found[0]] * 40
    back = Pivot("apertium spa", translator, apertium.Apertium("spa-eng"), is_trusted=False).around(texts[:2])
    assert "black dog" in back[0][0]
    with pytest.raises(UserError, match="apertium eng-xyz failed"):
        apertium.Apertium("eng-xyz").translate(["A dog"])


def test_a_missing_program_is_said() -> None:
    with pytest.raises(UserError, match="cannot run 'no-such-program'"):
        apertium.Apertium("eng-spa", program="no-such-program").translate(["A dog"])
    with pytest.raises(UserError, match="needs the program"):
        apertium.installed("no-such-program")
