"""U-Nets as OpenVINO has them: a graph of their shape that is shipped, filled with their weights; else converted."""

import copy
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dovetail.core import graphs
from dovetail.edges import openvino
from dovetail.edges.folders import write_bytes
from dovetail.errors import ModelError

SHIPPED = Path(__file__).parent / "drawn"  # recipes/embedded_base/draw.py makes them


def keep(unet: Any, tokens: int, file: Path) -> None:
    """Write a U-Net that reads `tokens` text states a row as OpenVINO has it: `file` is an .xml, its weights lie beside it."""
    graph = shipped(unet, tokens)
    if graph is None:
        openvino.keep(unet, tokens, file)
    else:
        openvino.put(graph.xml, graphs.filled(graph, weights(unet)), file)


def shipped(unet: Any, tokens: int) -> graphs.Graph | None:
    """The graph that fits, if there is one."""
    for found in SHIPPED.glob("*.json.gz"):
        graph = graphs.unpacked(found.read_bytes())
        if graph.shape == shape(unet, tokens):
            return graph
    return None


def draw(unet: Any, tokens: int, file: Path) -> None:
    """Write the graph of U-Nets of this shape. Raises ModelError where a weight does not stand in it as it is."""
    unet = copy.deepcopy(unet).float().cpu()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for parameter in unet.parameters():
            parameter.normal_()  # so that no two are alike
    if list(unet.buffers()):
        raise ModelError("a U-Net with buffers cannot be drawn", do="convert the model itself")
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "unet.xml"
        openvino.keep(unet, tokens, made)
        constants = made.with_suffix(".bin").read_bytes()
        graph = graphs.emptied(shape(unet, tokens), made.read_text(encoding="utf-8"), constants, weights(unet))
    write_bytes(file, graphs.packed(graph))


def shape(unet: Any, tokens: int) -> dict[str, Any]:
    """What U-Nets of one graph have in common."""
    config = {name: told for name, told in unet.config.items() if not name.startswith("_")}
    told: dict[str, Any] = json.loads(json.dumps({"unet": config, "tokens": tokens}))
    return told


def weights(unet: Any) -> dict[str, memoryview]:
    """float32 bytes by name, not copied."""
    return {n: memoryview(p.detach().numpy().reshape(-1).view(np.uint8)) for n, p in unet.named_parameters()}
