"""Options that several commands share."""

from typing import Annotated

import typer

RunFlag = Annotated[
    str | None,
    typer.Option("--run", metavar="DIR", help="folder of the run [default: runs/<name of the pictures' folder>]"),
]
ConfigFlag = Annotated[
    str | None,
    typer.Option("--config", metavar="FILE", help="configuration [default: dovetail.toml, else the run's own copy]"),
]
SetFlag = Annotated[
    list[str] | None, typer.Option("--set", metavar="TABLE.KEY=VALUE", help="any key of dovetail.toml; may be repeated")
]
DryFlag = Annotated[bool, typer.Option("--dry-run", help="print the resolved configuration and stop")]
BaseFlag = Annotated[
    str | None,
    typer.Option("--base", metavar="MODEL", help="model to tune: embedded, a diffusers folder, a hub id, a .safetensors file"),
]

MethodFlag = Annotated[
    str | None, typer.Option("--method", help="full, lora, dora, lokr or textual_inversion (training.method)")
]
