"""``rnope export``: the options, the call, the printing. Nothing here loads torch before a command runs."""

from pathlib import Path

import click


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--format", type=click.Choice(["gguf"]), default="gguf", show_default=True, expose_value=False,
              help="gguf is one file for llama.cpp; it needs `pip install gguf`.")  # fmt: skip
@click.option("--dtype", type=click.Choice(["f32", "f16", "q8_0"]), default="f16", show_default=True,
              help="Type of the matrices; norms stay f32.")  # fmt: skip
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The file to write.")
@click.option("--no-tokenizer", is_flag=True, help="Leave FOLDER's tokenizer out: the file then takes token ids only.")
def export(folder: Path, dtype: str, out: Path, no_tokenizer: bool) -> None:
    """Write the model of FOLDER in another program's format."""
    from rnope.hf.folder import load, read_context_tokens
    from rnope.hf.gguf import export_gguf
    from rnope.tokenizer import Tokenizer

    tokenizer = None if no_tokenizer or not (folder / "tokenizer.json").exists() else Tokenizer.load(folder)
    export_gguf(load(folder), out, dtype=dtype, tokenizer=tokenizer, context_tokens=read_context_tokens(folder))
    click.echo(out)
