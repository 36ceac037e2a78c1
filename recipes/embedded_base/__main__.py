"""The whole recipe in order: `python -m recipes.embedded_base` (or `make base`). Run it again to go on where it stopped."""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from . import icons
from .whole import whole

HERE = Path(__file__).parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", type=Path, default=HERE / "build" / "embedded_base")
    parser.add_argument("--parts", type=Path, help="folder of finished parts (vae, text_encoder, ...) to begin with")
    args = parser.parse_args()
    for part in sorted(args.parts.iterdir()) if args.parts else []:
        if not (args.build / part.name).exists():
            with whole(args.build / part.name) as folder:
                shutil.copytree(part, folder, dirs_exist_ok=True)
    os.environ.setdefault("GOMP_SPINCOUNT", "30000")  # threads that wait give way to others sooner (docs/log.md)
    downloads = args.build / "icons"
    icons.fetch(downloads)
    places = ["--downloads", str(downloads), "--out", str(args.build)]
    stages: list[tuple[str, Path | None, list[str]]] = [
        ("tokenizer", args.build / "tokenizer", places),
        ("train_vae", args.build / "vae", ["whole", *places]),
        ("train_towers", args.build / "text_encoder", places),
        ("latents", None, places),
        ("train_unet", None, ["--out", str(args.build)]),
        ("distill", args.build / "few_step", ["--out", str(args.build)]),
        ("train_vae", args.build / "vae-sharp", ["decoder", *places]),
        ("televisions", None, ["--downloads", str(downloads), "--examples", str(HERE / "examples" / "televisions")]),
        ("pack", None, ["--build", str(args.build), "--base", str(HERE / "src" / "dovetail" / "base")]),
    ]
    for module, result, arguments in stages:
        if result is not None and result.exists():
            print(f"{module}: {result} is there")
            continue
        print(f"{module} {' '.join(arguments)}", flush=True)
        subprocess.run([sys.executable, "-m", f"recipes.embedded_base.{module}", *arguments], cwd=HERE, check=True)


if __name__ == "__main__":
    main()
