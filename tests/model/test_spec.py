"""The layer list of each variant, row by row of SPEC V, and what a wrong value is told."""

import dataclasses

import pytest

from rnope.errors import ConfigError
from rnope.model.spec import SIZES, VARIANTS, Init, LayerSpec, ModelConfig
from rnope.strict import from_plain, to_plain

NOPE, NORMED = LayerSpec(position="nope"), LayerSpec(position="rope", theta=1e4, qk_norm=True)


def rope(theta=1e4, window=None):
    return LayerSpec(position="rope", theta=theta, window=window)


SWA = rope(window=4096)
TABLE = {  # one group of each, at the paper's size
    "rope": [rope()],
    "qk-norm": [NORMED],
    "nope": [NOPE],
    "rnope": [NOPE, rope()],
    "rnope-last": [rope(), NOPE],
    "rnope-10k": [NOPE, rope(1e4)],
    "rnope-100k": [NOPE, rope(1e5)],
    "rnope-2m": [NOPE, rope(2e6)],
    "rnope-4m": [NOPE, rope(4e6)],
    "rnope-10k-swa": [NOPE, rope(window=8192)],
    "rnope-swa": [SWA, SWA, SWA, NOPE],
    "rnope-swa-1to1": [SWA, NOPE],
    "rnope-swa-1to7": [SWA] * 7 + [NOPE],
    "rnope-swa-full-first": [NOPE, SWA, SWA, SWA],
    "swa-rope": [SWA, SWA, SWA, rope()],
    "swa-only": [SWA],
    "rnope-1to3": [rope(), rope(), rope(), NOPE],
}


def test_the_table_is_whole():
    assert set(TABLE) == set(VARIANTS)


@pytest.mark.parametrize("name", TABLE)
def test_layers_of_each_variant(name):
    layers = ModelConfig.variant(name).layers
    assert len(layers) == 32
    assert layers == tuple(TABLE[name] * (32 // len(TABLE[name])))


def test_the_paper_size_is_table_1():
    config = ModelConfig.variant("rnope-swa")
    assert (config.width, config.heads, config.kv_heads, config.head_size) == (4096, 32, 8, 128)
    assert (2 * config.ffn_width, config.vocab_size) == (28_672, 256_000)
    assert [i for i, layer in enumerate(config.layers) if layer.position == "nope"] == list(range(3, 32, 4))


@pytest.mark.parametrize("size", SIZES)
def test_every_size_gives_every_variant_that_divides_it(size):
    for name, variant in VARIANTS.items():
        if SIZES[size]["num_layers"] % len(variant.group) == 0:
            assert len(ModelConfig.variant(name, size=size).layers) == SIZES[size]["num_layers"]


def test_overrides():
    config = ModelConfig.variant("rnope-swa", size="tiny", num_layers=8, window=7, theta=123.0, width=64)
    assert config.kinds() == {"rope-window": 6, "nope": 2}
    assert config.thetas == (123.0,) and config.layers[0].window == 7 and config.width == 64
    assert ModelConfig.variant("rnope-2m", theta=7.0).thetas == (2e6,)  # its name states it
    assert ModelConfig.variant("rnope-10k-swa", window=100).layers[1].window == 200


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ModelConfig.variant("rnope-swe"), ["variant = 'rnope-swe'", "Did you mean 'rnope-swa'?"]),
        (lambda: ModelConfig.variant("rope", size="8B"), ["size = '8B'", "Did you mean '8b'?"]),
        (lambda: ModelConfig.variant("rope", widht=3), ["widht", "Did you mean 'width'?"]),
        (lambda: ModelConfig.variant("rope", layers=()), ["layers", "override of a size"]),
        (lambda: ModelConfig.variant("rnope-swa", num_layers=6), ["num_layers = 6", "multiple of 4"]),
        (lambda: ModelConfig.variant("rope", num_layers=0), ["num_layers = 0"]),
        (lambda: ModelConfig.variant("rnope-swa", window=0), ["window = 0", "at least 1"]),
        (lambda: ModelConfig.variant("rnope-swa", kv_heads=5), ["kv_heads = 5", "divide", "1, 2, 4, 8, 16, 32"]),
        (lambda: ModelConfig.variant("rope", head_size=7), ["head_size = 7", "even"]),
        (lambda: ModelConfig.variant("rope", width=0), ["width = 0"]),
        (lambda: ModelConfig.variant("rope", theta=1.0), ["theta = 1.0", "above 1"]),
        (lambda: ModelConfig.variant("rope", theta=float("nan")), ["theta = nan"]),
        (lambda: ModelConfig.variant("rope", logit_scale=0.0), ["logit_scale"]),
        (lambda: ModelConfig.variant("rope").with_layers(()), ["layers = []", "at least one"]),
        (lambda: LayerSpec(position="rope"), ["theta = None", "10000"]),
        (lambda: LayerSpec(position="nope", theta=1e4), ["theta = 10000.0", "no rotation"]),
        (lambda: LayerSpec(position="rop", theta=1e4), ["position = 'rop'", "Did you mean 'rope'?"]),
        (lambda: Init(embedding_std=-1.0), ["embedding_std = -1.0"]),
    ],
)
def test_a_wrong_value_is_named_with_its_remedy(call, words):
    with pytest.raises(ConfigError) as caught:
        call()
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_an_odd_head_is_fine_without_rotation():
    assert ModelConfig.variant("nope", size="tiny", head_size=7).head_size == 7


def test_visible_counts_the_current_token():
    assert [LayerSpec(position="nope", window=3).visible(t) for t in (1, 2, 3, 4, 100)] == [1, 2, 3, 3, 3]
    assert NOPE.visible(100) == 100


def test_layer_table_and_kinds():
    table = ModelConfig.variant("rnope-swa", num_layers=4).layer_table()
    assert table.splitlines() == ["    0–2  rope θ 10,000, window 4,096", "      3  nope, full"]
    assert ModelConfig.variant("qk-norm").layer_table() == "   0–31  rope θ 10,000, full, QK-Norm"
    assert ModelConfig.variant("rnope-swa").kinds() == {"rope-window": 24, "nope": 8}


@pytest.mark.parametrize("name", VARIANTS)
def test_plain_data_and_back(name):
    config = ModelConfig.variant(name)
    assert from_plain(ModelConfig, to_plain(config)) == config
    assert hash(config) == hash(dataclasses.replace(config))


def test_a_stage_changes_only_the_layers_that_it_can():
    everything = {"theta": 5e5, "window": 64, "rope_window": None}
    assert rope().staged(**everything) == rope(5e5) and NOPE.staged(**everything) == NOPE
    assert SWA.staged(**everything) == rope(5e5, window=64)
    assert rope().staged(theta=None, window=None, rope_window=32) == rope(window=32)
    assert SWA.staged(theta=None, window=None, rope_window=32) == rope(window=32)
    assert NOPE.staged(theta=None, window=None, rope_window=32) == NOPE
    assert SWA.staged(theta=None, window=None, rope_window=None) == SWA


def test_conversion_changes_positions_and_spans_and_keeps_what_belongs_to_the_weights():
    config = ModelConfig.variant("rope", "tiny", theta=5e5)
    hybrid = config.converted("rnope-swa", window=7)
    assert hybrid.layers == (rope(5e5, 7),) * 3 + (NOPE,)
    assert dataclasses.replace(hybrid, layers=config.layers) == config
    assert config.converted("rnope-100k").layers == (NOPE, rope(1e5)) * 2
    assert config.converted("rnope-10k-swa", window=7).layers == (NOPE, rope(5e5, 7)) * 2
    normed = ModelConfig.variant("qk-norm", "tiny").converted("rnope-swa", window=7)
    assert all(spec.qk_norm for spec in normed.layers) and normed.layers[3].position == "nope"
    assert hybrid.converted("rnope-swa", window=9).layers[0].window == 9


@pytest.mark.parametrize(
    ("start", "variant", "window", "words"),
    [
        ("rope", "rnope-swo", 7, "rnope-swa"),
        ("rope", "rnope-swa", None, "has windowed layers"),
        ("rope", "rnope-swa", 0, "has windowed layers"),
        ("rope", "rnope", 7, "has no window"),
        ("rope", "rnope-swa-1to7", 7, "repeats a group of 8"),
        ("rope", "qk-norm", None, "QK-Norm in layer 0"),
        ("rnope-swa", "rope", None, "RoPE in layer 3"),
    ],
)
def test_a_conversion_that_cannot_be_is_refused(start, variant, window, words):
    with pytest.raises(ConfigError, match=words):
        ModelConfig.variant(start, "tiny").converted(variant, window=window)
