"""What all groups of commands on the command line share."""

from typing import Any

import click

from rnope.errors import unknown


class Group(click.Group):
    """A group that names the nearest command to one that it does not have."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and self.get_command(ctx, args[0]) is None:
            raise unknown("command", args[0], "command", self.list_commands(ctx))
        return super().resolve_command(ctx, args)
