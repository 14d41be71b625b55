"""Layout and published figures of the paper's Tables 1 to 4 (those of the official release).

Published cells are copied verbatim. A column names the measurement of a fine-tuning (`finetune/tasks/`) that fills it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    title: str
    task: str
    parts: tuple[tuple[str, str], ...]
    """(split, metric) of each number in a cell; slashes separate them."""


@dataclass(frozen=True)
class Table:
    title: str
    columns: tuple[Column, ...]
    published: tuple[tuple[str, tuple[str, ...]], ...]
    """(model, cells); empty cells are empty in the paper too."""


def _published(text: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Rows of `model: cell cell ...`; an empty cell is a dash."""
    rows = (line.partition(":") for line in text.strip().splitlines())
    return tuple(
        (label.strip(), tuple("" if cell == "-" else cell for cell in cells.split())) for label, _, cells in rows
    )


def _recalls(direction: str) -> tuple[tuple[str, str], ...]:
    return tuple(("test", f"{direction}/r@{k}") for k in (1, 5, 10))


def _dev(*metrics: str) -> tuple[tuple[str, str], ...]:
    return tuple(("dev", metric) for metric in metrics)


def _test(*metrics: str) -> tuple[tuple[str, str], ...]:
    return tuple(("test", metric) for metric in metrics)


_IMAGES = Column("Image retrieval R@1/5/10", "retrieval", _recalls("text_to_image"))
_TEXTS = Column("Text retrieval R@1/5/10", "retrieval", _recalls("image_to_text"))
_CAPTIONS = Column("Captions BLEU-4/CIDEr", "captioning", _test("bleu_4", "cider"))
_SENTENCES = (
    Column("SST-2", "sst2", _dev("accuracy")),
    Column("MNLI m/mm", "mnli", _dev("accuracy_matched", "accuracy_mismatched")),
    Column("CoLA", "cola", _dev("matthews")),
    Column("STS-B", "stsb", _dev("mean_correlation")),
    Column("CoQA F1", "coqa", _dev("f1")),
    Column("SQuAD QG B4/METEOR/R-L", "squad-questions", _test("bleu_4", "meteor", "rouge_l")),
    Column("CNN/DM R-1/2/L", "cnndm", _test("rouge_1", "rouge_2", "rouge_l")),
    Column("Gigaword R-1/2/L", "gigaword", _test("rouge_1", "rouge_2", "rouge_l")),
)

TABLES = (
    Table(
        "Table 1: multi-modal tasks",
        (
            _IMAGES,
            _TEXTS,
            Column("SNLI-VE val/test", "snli-ve", (("dev", "accuracy"), ("test", "accuracy"))),
            Column("VQA test-dev/test-std", "vqa", _test("accuracy")),
            _CAPTIONS,
        ),
        _published("""
        ViLBERT-base:    58.20/84.90/91.52 -                 -           70.55/70.92 -
        VLP-base:        -                 -                 -           70.5/70.7   36.5/116.9
        UNITER-base:     72.52/92.36/96.08 85.90/97.10/98.80 78.59/78.28 72.70/72.91 -
        Oscar-base:      -                 -                 -           73.16/73.44 36.5/123.7
        Villa-base:      74.74/92.86/95.82 86.60/97.90/99.20 79.47/79.03 73.59/73.67 -
        ERNIE-ViL-base:  74.44/92.72/95.94 86.70/97.80/99.00 -           72.62/72.85 -
        UNIMO-base:      74.66/93.40/96.08 89.70/98.40/99.10 80.00/79.10 73.79/74.02 38.8/124.4
        UNITER-large:    75.56/94.08/96.76 87.30/98.00/99.20 79.39/79.38 73.82/74.02 -
        Oscar-large:     -                 -                 -           73.61/73.82 37.4/127.8
        Villa-large:     76.26/94.24/96.84 87.90/97.50/98.80 80.18/80.02 74.69/74.87 -
        ERNIE-ViL-large: 76.70/93.58/96.44 88.10/98.00/99.20 -           74.75/74.93 -
        UNIMO-large:     78.04/94.24/97.12 89.40/98.90/99.80 81.11/80.63 75.06/75.27 39.6/127.7
        """),
    ),
    Table(
        "Table 2: single-modal tasks",
        _SENTENCES,
        _published("""
        BERT-base:                       92.7 84.4/–    -    -    -    -                 -                 -
        RoBERTa-base:                    94.8 -         63.6 -    77.4 22.15/24.58/51.12 42.31/20.04/39.49 38.65/19.66/36.04
        UNIMO-base:                      95.1 86.8/86.7 65.4 91.0 80.2 22.78/25.24/51.34 42.42/20.12/39.61 38.80/19.99/36.27
        UNIMO-base without single-modal: 82.0 59.9/64.9 15.0 88.8 67.1 17.09/21.04/46.47 41.06/19.01/38.23 38.06/18.91/35.41
        BERT-large:                      93.2 86.6/–    60.6 90.0 -    -                 -                 -
        RoBERTa-large:                   96.4 90.2/90.2 68.0 92.4 85.1 23.39/25.73/52.11 43.10/20.29/40.24 39.32/20.01/36.58
        XLNet-large:                     95.6 89.8/–    63.6 91.8 -    -                 -                 -
        UniLM-large:                     94.5 87.0/85.9 61.1 87.7 82.5 22.12/25.06/51.07 43.33/20.21/40.51 38.45/19.45/35.75
        UNIMO-large:                     96.8 89.8/89.5 68.5 92.6 84.9 24.59/26.39/52.47 43.51/20.65/40.63 39.71/20.37/36.88
        """),
    ),
    Table(
        "Table 3: texts help vision (base)",
        (
            _IMAGES,
            _TEXTS,
            Column("SNLI-VE val", "snli-ve", _dev("accuracy")),
            Column("VQA dev", "vqa", _dev("accuracy")),
            _CAPTIONS,
        ),
        _published("""
        UNIMO:               74.66/93.40/96.08 89.70/98.40/99.10 80.00 73.79 38.8/124.4
        UNIMO without texts: 72.04/91.62/95.30 85.80/97.90/99.10 79.52 73.77 38.3/123.2
        """),
    ),
    Table(
        "Table 4: vision helps texts (base)",
        _SENTENCES,
        _published("""
        UNIMO:                          95.1 86.8/86.7 65.4 91.0 80.2 22.78/25.24/51.34 42.42/20.12/39.61 38.80/19.99/36.27
        UNIMO without pairs and images: 94.7 87.4/86.8 62.8 90.6 78.1 21.26/24.02/50.04 42.26/20.09/39.41 38.22/19.43/35.71
        """),
    ),
)
