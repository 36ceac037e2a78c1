"""The embedded base's U-Net as a graph without weights, so that its endpoint, and those of models tuned from it, start at once.

    python -m recipes.embedded_base.draw

Run it again where the shape of the U-Net changes; a test says so.
"""

from dovetail import bases
from dovetail.edges import machine
from dovetail.edges.models import Models
from dovetail.engines import drawings

FILE = drawings.SHIPPED / "embedded.json.gz"


def main() -> None:
    models = Models(bases.EMBEDDED, machine.pick_device())
    drawings.draw(models.unet, int(models.tokenizer.model_max_length), FILE)
    print(f"{FILE.stat().st_size / 1024:.0f} KB in {FILE}")


if __name__ == "__main__":
    main()
