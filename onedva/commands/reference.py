"""`python -m onedva.commands.reference`: every verb and option of the command line as Markdown, read from the app
itself. docs/cli.md is its output, and a test holds it to that."""

from __future__ import annotations

from typing import Any

__all__ = ["reference"]


def reference() -> str:
    """The whole page, one section per verb."""
    import typer

    from onedva.cli import app

    group: Any = typer.main.get_command(app)
    context = typer.Context(group, info_name="onedva")
    parts = [
        "# Command line",
        "Written by `python -m onedva.commands.reference`; do not edit.",
        "Results go to stdout, logs and progress to stderr. Exit codes: 0, done; 2, a wrong option, input or "
        "environment, in one line on stderr (`ONEDVA_DEBUG=1` shows the traceback); 3, done, but the input was damaged "
        "or cut off and part of it is missing, as a line on stderr says; 130, interrupted, with nothing half-written. "
        "`onedva --install-completion` sets up completion in your shell.",
    ]
    for name in group.list_commands(context):
        verb = group.get_command(context, name)
        arguments = [parameter for parameter in verb.params if parameter.param_type_name == "argument"]
        flags = [parameter for parameter in verb.params if parameter.param_type_name == "option"]
        usage = " ".join(["onedva", name, "[OPTIONS]", *(_metavar(argument) for argument in arguments)])
        parts += [f"## {name}", verb.help or "", f"```\n{usage}\n```"]
        rows = [(f"`{_metavar(argument)}`", _help(argument)) for argument in arguments]
        rows += [(f"`{', '.join(flag.opts)}`", _help(flag)) for flag in flags]
        parts.append("\n".join(["| | |", "|---|---|", *(f"| {left} | {right} |" for left, right in rows)]))
    return "\n\n".join(parts) + "\n"


def _metavar(argument: Any) -> str:
    name = argument.metavar or argument.name.upper()
    return name if argument.required else f"[{name}]"


def _help(parameter: Any) -> str:
    """The help text and the default, where there is one to show."""
    text = (parameter.help or "").replace("|", "\\|")
    shown = parameter.show_default if isinstance(parameter.show_default, str) else parameter.default
    flag = isinstance(parameter.default, bool) or parameter.show_default is False
    return text if flag or shown is None or shown == "" else f"{text} Default: `{shown}`."


if __name__ == "__main__":
    print(reference(), end="")
