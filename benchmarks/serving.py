"""Cache bytes of one sequence where our models are served: our engine, transformers, llama.cpp. Printed as a table.

The model is small and random; only its shape matters. Sizes are measured, not computed: the storages behind the cache
tensors of transformers once a token was decoded, and what llama.cpp logs that it allocated.

    python benchmarks/serving.py
"""

import ctypes
import re
import tempfile
from pathlib import Path

import click
import llama_cpp
import torch
from transformers import AutoModelForCausalLM, Cache, DynamicCache, StaticCache

import rnope
from rnope.hf.gguf import export_gguf

SHAPE = dict(num_layers=4, width=64, heads=1, kv_heads=1, head_size=64, ffn_width=64, vocab_size=256, window=512)
CHUNK = 1024


def stored(cache: Cache) -> int:
    tensors = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


@torch.no_grad()
def transformers_bytes(folder: Path, tokens: int) -> list[int]:
    """Dynamic and static, in bfloat16: a prompt in chunks, then one token."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    ids, sizes = torch.zeros(1, tokens, dtype=torch.long), []
    for cache in (DynamicCache(config=model.config), StaticCache(config=model.config, max_cache_len=tokens)):
        for part in (*ids[:, :-1].split(CHUNK, 1), ids[:, -1:]):
            model(part, past_key_values=cache, use_cache=True, logits_to_keep=1)
        sizes.append(stored(cache))
    return sizes


def llama_bytes(file: Path, tokens: int) -> list[int]:
    """With and without `swa_full`, in float16, at llama.cpp's default of 512 tokens computed at once."""
    log: list[str] = []
    callback = llama_cpp.llama_log_callback(lambda level, text, data: log.append(text.decode()))
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    parameters = llama_cpp.llama_model_default_params()
    parameters.use_extra_bufts = False  # beside torch, its AMX kernels were seen to end in an illegal instruction
    model, sizes = llama_cpp.llama_model_load_from_file(str(file).encode(), parameters), []
    for full in (False, True):
        options = llama_cpp.llama_context_default_params()
        options.n_ctx, options.swa_full = tokens, full
        log.clear()
        llama_cpp.llama_free(llama_cpp.llama_init_from_model(model, options))
        found = re.findall(r"llama_kv_cache: size = +([\d.]+) MiB", "".join(log))
        sizes.append(round(sum(map(float, found)) * 2**20))
    llama_cpp.llama_model_free(model)
    return sizes


@click.command()
@click.option("--tokens", multiple=True, type=int, default=[4096, 32768], show_default=True)
def main(tokens: tuple[int, ...]) -> None:
    """Print the table of docs/serving.md."""
    click.echo("| variant | tokens | engine | transformers dynamic | static | llama.cpp | with `swa_full` |")
    click.echo("|---|---|---|---|---|---|---|")
    for variant in ("rope", "rnope-swa"):
        model = rnope.Decoder(rnope.ModelConfig.variant(variant, "100m", **SHAPE))
        with tempfile.TemporaryDirectory() as place:
            folder, file = Path(place) / "folder", Path(place) / "model.gguf"
            rnope.save(model, folder)
            export_gguf(model, file)
            engine = rnope.Engine(model.to(torch.bfloat16))
            for count in tokens:
                sizes = [engine.cache_bytes(count), *transformers_bytes(folder, count), *llama_bytes(file, count)]
                cells = " | ".join(f"{size / 2**20:.2f}" for size in sizes)
                click.echo(f"| `{variant}` | {count:,} | {cells} |")


if __name__ == "__main__":
    main()
