"""``rnope train``: options into a recipe, a mesh and a run. Nothing here loads torch before it is needed."""

import os
from pathlib import Path

import click
from rich.console import Console

from rnope import recipes
from rnope.errors import ConfigError
from rnope.train.voice import one_voice


@click.command(help=f"Train the models of RECIPE through all its stages; run again with the same folder to go on.\n\n"
                    f"RECIPE is one that ships ({', '.join(recipes.shipped('training'))}) or a .toml file. On many GPUs: "
                    f"torchrun --nproc-per-node 8 -m rnope train RECIPE ...")  # fmt: skip
@click.argument("recipe")
@click.option("--arm", "arms", multiple=True, help="Only this arm. May be repeated [default: all].")
@click.option("--data", "data", multiple=True, metavar="SOURCE=FOLDER",
              help="Where `rnope data build` wrote a source of the recipe. May be repeated.")  # fmt: skip
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder for checkpoints, logs and models [default: out/RECIPE]."
)
@click.option("--start", type=click.Path(path_type=Path), metavar="FOLDER",
              help="Model folder to go on from, for recipes such as uptrain that have no model of their own.")  # fmt: skip
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE",
              help="Change the recipe, for example stages.pretrain.steps=100 or execution.save_steps=50.")  # fmt: skip
@click.option(
    "--dry-run", is_flag=True, help="Print the resolved plan (layers, tokens, rates, FLOPs, days, bytes) and stop."
)
@click.option(
    "--ranks", type=click.IntRange(min=1), help="Of the plan that --dry-run prints [default: as torchrun says, or 1]."
)
@click.option("--gpu", default="H100", show_default=True, help="Of the plan that --dry-run prints.")
@click.option("--utilisation", type=click.FloatRange(0.01, 1), default=0.4, show_default=True,
              help="Share of the GPU's peak that the plan counts with.")  # fmt: skip
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, or auto: cuda where there is one.")
def train(
    recipe: str,
    arms: tuple[str, ...],
    data: tuple[str, ...],
    out: Path | None,
    start: Path | None,
    changes: tuple[str, ...],
    dry_run: bool,
    ranks: int | None,
    gpu: str,
    utilisation: float,
    device: str,
) -> None:
    with one_voice():
        resolved = recipes.load_training(recipe, changes)
        if resolved.start is not None or start is not None:
            from rnope.train.start import opened

            resolved = opened(resolved, start)
        folders = dict(_pair(text) for text in data)
        if dry_run:
            from rnope.train.plan import plan
            from rnope.train.preview import describe

            world = ranks or int(os.environ.get("WORLD_SIZE", "1"))
            chosen = [resolved.arm(name) for name in arms] or resolved.arms
            plans = [plan(resolved, a, ranks=world, data=folders, gpu=gpu, utilisation=utilisation) for a in chosen]
            if int(os.environ.get("RANK", "0")) == 0:
                click.echo(describe(*plans))
            return
        from rnope.parallel.mesh import joined
        from rnope.train.run import train as run

        with joined(resolved.execution.sequence_parallel, device=device) as mesh:
            console = Console(stderr=True, quiet=mesh.rank > 0)
            folder = out or Path("out") / resolved.name
            models = run(resolved, arms, data=folders, out=folder, mesh=mesh, console=console)
            if mesh.rank == 0:
                for model in models:
                    click.echo(model)


def _pair(text: str) -> tuple[str, str]:
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise ConfigError("--data", text, "must be SOURCE=FOLDER", "Write --data web=data/web.")
    return name, folder
