"""The paper's own numbers, table by table, as printed: what the page sets beside ours. No arithmetic, no opinion.

Source: Yang et al., *Rope to Nope and Back Again: A New Hybrid Attention Strategy*, Cohere, 2025.
Where the paper drops a leading zero (``.0960``) it is written out; ``-`` is a cell that the paper leaves empty.
"""

from dataclasses import dataclass

from rnope.results import SEGMENTS

CITATION = "Yang et al., Rope to Nope and Back Again: A New Hybrid Attention Strategy, Cohere, 2025"
LINK = "https://arxiv.org/abs/2501.18795"
LENGTHS = ("8k", "32k", "128k")


@dataclass(frozen=True, kw_only=True, slots=True)
class PaperTable:
    """One table of the paper; cells are the text that it prints."""

    number: int
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def row(self, *start: str) -> tuple[str, ...]:
        """The one row that begins with `start`."""
        (found,) = [row for row in self.rows if row[: len(start)] == start]
        return found


def _table(number: int, title: str, text: str) -> PaperTable:
    lines = [tuple(cell.strip() for cell in line.split("|")) for line in text.strip().splitlines()]
    assert {len(line) for line in lines} == {len(lines[0])}
    return PaperTable(number=number, title=title, columns=lines[0], rows=tuple(lines[1:]))


TABLE_2 = _table(2, "750 B tokens, fine-tuned: benchmarks and needles at 65,536 tokens", """
Model   | Val Loss | MMLU  | HellaSwag | CommonsenseQA | ARC-E | ARC-C | Needles 65k
RoPE    | 1.52     | 48.55 | 73.74     | 68.30         | 81.05 | 39.13 | 9.82
QK-Norm | 1.53     | 48.21 | 73.68     | 68.23         | 80.54 | 38.98 | 7.93
NoPE    | 1.58     | 47.61 | 72.16     | 66.42         | 76.94 | 37.12 | 9.03
""")  # fmt: skip

TABLE_3 = _table(3, "attention mass of RoPE, QK-Norm and NoPE", """
Context Length | Model   | begin  | needle | context | qc
8k             | RoPE    | 0.3863 | 0.0328 | 0.3809  | 0.2000
8k             | QK-Norm | 0.0242 | 0.0173 | 0.8020  | 0.1565
8k             | NoPE    | 0.3058 | 0.0454 | 0.4501  | 0.1987
32k            | RoPE    | 0.3541 | 0.0201 | 0.4343  | 0.1915
32k            | QK-Norm | 0.0064 | 0.0056 | 0.8517  | 0.1364
32k            | NoPE    | 0.2807 | 0.0325 | 0.4981  | 0.1886
128k           | RoPE    | 0.3463 | 0.0010 | 0.4751  | 0.1776
128k           | QK-Norm | 0.0010 | 0.0004 | 0.8993  | 0.0994
128k           | NoPE    | 0.0846 | 0.0073 | 0.8156  | 0.0925
""")  # fmt: skip

TABLE_4 = _table(4, "attention mass at 32k by layer kind, and needles at 128k", """
Model         | NoPE begin | NoPE needle | NoPE context | NoPE qc | RoPE begin | RoPE needle | RoPE context | RoPE qc | needles-128k
RoPE          | -          | -           | -            | -       | 0.3541     | 0.0201      | 0.4343       | 0.1915  | 7.395
RNoPE-10k     | 0.3275     | 0.0765      | 0.5672       | 0.0287  | 0.0049     | 0.0004      | 0.6805       | 0.3142  | 8.036
RNoPE-100k    | 0.3263     | 0.0778      | 0.5633       | 0.0327  | 0.0241     | 0.0005      | 0.6782       | 0.2972  | 7.461
RNoPE-2M      | 0.3250     | 0.0712      | 0.5735       | 0.0303  | 0.1111     | 0.0046      | 0.6233       | 0.2611  | 7.022
RNoPE-4M      | 0.3486     | 0.0369      | 0.5981       | 0.0165  | 0.0960     | 0.0039      | 0.6774       | 0.2227  | 6.203
RNoPE-10k-swa | 0.3303     | 0.0742      | 0.5634       | 0.0321  | -          | -           | -            | -       | 9.562
""")  # fmt: skip  # noqa: E501

TABLE_5 = _table(5, "standard benchmarks, after fine-tuning", """
Model     | MMLU | HellaSwag | ARC-E | ARC-C | SATen | SATMath | GSM8K | Winogrande | MBPP
Baseline  | 57.5 | 75.8      | 84.6  | 48.5  | 70.0  | 30.9    | 40.9  | 68.5       | 39.1
RNope-SWA | 59.5 | 76.2      | 82.5  | 48.8  | 71.9  | 30.5    | 42.7  | 69.5       | 39.3
""")  # fmt: skip

TABLE_6 = _table(6, "RULER, retrieval", """
Model     | 8k   | 16k  | 32k  | 64k  | 128k | 256k
Baseline  | 96.6 | 94.4 | 95.1 | 89.1 | 83.0 | 57.1
RNope-SWA | 96.1 | 96.1 | 94.9 | 92.0 | 90.0 | 74.8
""")  # fmt: skip

TABLE_7 = _table(7, "RULER, question answering", """
Model     | 8k   | 16k  | 32k  | 64k  | 128k | 256k
Baseline  | 53.5 | 50.0 | 52.5 | 45.5 | 36.0 | 30.0
RNope-SWA | 55.5 | 52.5 | 55.5 | 49.0 | 46.0 | 42.5
""")  # fmt: skip

TABLE_8 = _table(8, "attention mass of RoPE and the RNoPE variants, by layer kind", """
Context Length | Model | NoPE begin | NoPE needle | NoPE context | NoPE qc | RoPE begin | RoPE needle | RoPE context | RoPE qc
8k   | RoPE          | -      | -      | -      | -      | 0.3863 | 0.0328 | 0.3809 | 0.2000
8k   | RNoPE-10k     | 0.3900 | 0.0952 | 0.4736 | 0.0412 | 0.1255 | 0.0102 | 0.5340 | 0.3302
8k   | RNoPE-100k    | 0.3854 | 0.0932 | 0.4783 | 0.0430 | 0.2135 | 0.0136 | 0.4558 | 0.3171
8k   | RNoPE-2M      | 0.3775 | 0.0902 | 0.4874 | 0.0449 | 0.2041 | 0.0126 | 0.4952 | 0.2881
8k   | RNoPE-4M      | 0.4153 | 0.0546 | 0.5072 | 0.0229 | 0.1389 | 0.0136 | 0.6162 | 0.2313
8k   | RNoPE-10k-swa | 0.3830 | 0.1025 | 0.4702 | 0.0443 | 0.2040 | 0.0110 | 0.5938 | 0.1911
32k  | RoPE          | -      | -      | -      | -      | 0.3541 | 0.0201 | 0.4343 | 0.1915
32k  | RNoPE-10k     | 0.3275 | 0.0765 | 0.5672 | 0.0287 | 0.0049 | 0.0004 | 0.6805 | 0.3142
32k  | RNoPE-100k    | 0.3263 | 0.0778 | 0.5633 | 0.0327 | 0.0241 | 0.0005 | 0.6782 | 0.2972
32k  | RNoPE-2M      | 0.3250 | 0.0712 | 0.5735 | 0.0303 | 0.1111 | 0.0046 | 0.6233 | 0.2611
32k  | RNoPE-4M      | 0.3486 | 0.0369 | 0.5981 | 0.0165 | 0.0960 | 0.0039 | 0.6774 | 0.2227
32k  | RNoPE-10k-swa | 0.3303 | 0.0742 | 0.5634 | 0.0321 | -      | -      | -      | -
128k | RoPE          | -      | -      | -      | -      | 0.3463 | 0.0010 | 0.4751 | 0.1776
128k | RNoPE-10k     | 0.2991 | 0.0444 | 0.6430 | 0.0135 | 0.0000 | 0.0001 | 0.7230 | 0.2769
128k | RNoPE-100k    | 0.2454 | 0.0419 | 0.7016 | 0.0111 | 0.0001 | 0.0000 | 0.7749 | 0.2250
128k | RNoPE-2M      | 0.2600 | 0.0401 | 0.6836 | 0.0162 | 0.0417 | 0.0008 | 0.7516 | 0.2059
128k | RNoPE-4M      | 0.2949 | 0.0307 | 0.6635 | 0.0109 | 0.0663 | 0.0022 | 0.7115 | 0.2230
128k | RNoPE-10k-swa | 0.2760 | 0.0467 | 0.6615 | 0.0159 | -      | -      | -      | -
""")  # fmt: skip

TABLE_9 = _table(9, "entropy in bits of the aggregated attention distribution", """
Model   | 8k    | 32k   | 128k
RoPE    | 6.02  | 6.95  | 7.62
QK-Norm | 10.71 | 12.46 | 14.14
""")  # fmt: skip

TABLES = (TABLE_2, TABLE_3, TABLE_4, TABLE_5, TABLE_6, TABLE_7, TABLE_8, TABLE_9)

# Raw NIAH scores, from the captions of figures 1 and 2: trained to 128k, so that 256k is twice the trained length.
RAW_SCORES = {"Baseline": {"128k": "9.99", "256k": "8.25"}, "RNope-SWA": {"128k": "9.99", "256k": "9.97"}}

# Section 5.3.
EFFICIENCY = (
    ("key-value cache and time complexity", "at most 75 % less"),
    ("end-to-end latency, 132k tokens in, 96 out", "about 44 % less"),
    ("end-to-end latency, 990k tokens in, 8 out", "nearly 70 % less"),
    ("training throughput at 64k", "about 50 % faster"),
    ("training throughput at 128k", "nearly 2× faster"),
)

# Which model of tables 3 and 8 a variant of ours is set beside; RNope-SWA itself has no attention masses in the paper.
_COUNTERPARTS = {
    "rope": "RoPE",
    "qk-norm": "QK-Norm",
    "nope": "NoPE",
    "rnope": "RNoPE-10k",
    "rnope-10k": "RNoPE-10k",
    "rnope-100k": "RNoPE-100k",
    "rnope-2m": "RNoPE-2M",
    "rnope-4m": "RNoPE-4M",
    "rnope-10k-swa": "RNoPE-10k-swa",
    "rnope-swa": "RNoPE-10k-swa",
}
_RAW = {"rope": "Baseline", "rnope-swa": "RNope-SWA"}


WITH_MASSES = tuple(dict.fromkeys(row[1] for table in (TABLE_3, TABLE_8) for row in table.rows))
"""The models of which the paper prints attention masses."""


def mass(variant: str, kind: str, length: str) -> dict[str, float] | None:
    """The paper's attention masses for the layers of `kind` in the model nearest to `variant`; None: it has none.

    Args:
        variant: a name of `rnope.model.spec.VARIANTS`.
        kind: a `LayerSpec.kind`; only its position counts here.
        length: one of `LENGTHS`.
    """
    model = _COUNTERPARTS.get(variant)
    return None if model is None else masses(model, kind, length)


def masses(model: str, kind: str, length: str) -> dict[str, float] | None:
    """The same for a model by the name that tables 3 and 8 have for it."""
    position = "NoPE" if kind.startswith("nope") else "RoPE"
    for table in (TABLE_8, TABLE_3):
        columns = SEGMENTS if table is TABLE_3 else tuple(f"{position} {segment}" for segment in SEGMENTS)
        for row in table.rows:
            if row[:2] == (length, model):
                cells = [row[table.columns.index(column)] for column in columns]
                return None if "-" in cells else dict(zip(SEGMENTS, map(float, cells), strict=True))
    return None


def counterpart(variant: str) -> str | None:
    """The model of tables 3 and 8 that `variant` is set beside."""
    return _COUNTERPARTS.get(variant)


def name(variant: str) -> str | None:
    """The model of the paper's tables that `variant` itself is; None: it is of none."""
    return "RNope-SWA" if variant == "rnope-swa" else _COUNTERPARTS.get(variant)


def raw_scores(variant: str) -> tuple[str, dict[str, str]] | None:
    """The model of figures 1 and 2 that is `variant`, and its raw NIAH scores by context length."""
    name = _RAW.get(variant)
    return None if name is None else (name, RAW_SCORES[name])
