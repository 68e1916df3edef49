"""Options: what they mean, and what is refused with one clear message before anything is built."""

import pytest

from rnope import cli
from rnope.bench.plan import Plan, dtypes, full_attention, listed, numbers
from rnope.errors import ConfigError


def plan(**changes):
    return Plan(**(dict(what="prefill", lengths=(64,), size="tiny") | changes))


def test_lists():
    assert listed("none") == listed("") == () and numbers("1,2", "threads") == (1, 2)
    assert dtypes("bfloat16,fp32") == ("bf16", "fp32")


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(repeats=0), "repeats = 0: must lie in 1"),
        (dict(lengths=()), "lengths = .*: there is nothing in it"),
        (dict(lengths=(64, 64)), "names one twice"),
        (dict(peers=("lama",)), "peers = 'lama': no such peer. Did you mean 'llama'"),
        (dict(dtypes=("int4",)), "dtype = 'int4': no such dtype"),
        (dict(threads=(0,)), "threads = 0: must lie in"),
        (dict(device="tpu"), "device = 'tpu': no such device"),
        (dict(new_tokens=(8, 8)), r"new_tokens = .*: there are 1 lengths"),
        (dict(kv_heads=3), "kv_heads = 3: must divide the 4 query heads"),
        (dict(peak="big"), "peak = 'big': no such choice"),
        (dict(ways=("fast",)), "ways = 'fast'"),
        (dict(variant="rope-swa"), "variant = 'rope-swa'"),
        (dict(window=0), "window = 0"),
    ],
)
def test_mistakes_name_field_rule_and_remedy(changes, message):
    with pytest.raises(ConfigError, match=message):
        plan(**changes)


@pytest.mark.parametrize(
    "arguments",
    [
        ["prefill", "--lengths", "long"],
        ["prefill", "--repeats", "0"],
        ["decode", "--peers", "vllm"],
        ["memory", "--stop-after", "0"],
        ["attention", "--device", "cuda:9x"],
        ["atention"],
        ["figure", "no-such-file.json"],
    ],
)
def test_the_command_refuses_them_with_exit_code_2(arguments, capsys):
    assert cli.run(["bench", *arguments]) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("rnope: ") and err.count("\n") == 1


def test_the_baseline_is_rope_everywhere_with_the_same_sizes():
    config = plan().config
    full = full_attention(config)
    assert full == type(config).variant("rope", "tiny")


def test_two_runs_share_a_file_where_model_and_machine_are_the_same():
    assert plan(lengths=(8,), repeats=9, peers=()).identity() == plan().identity()
    assert plan(seed=1).identity() != plan().identity() != plan(chunk_tokens=7).identity()
