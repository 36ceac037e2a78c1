"""U-Nets as OpenVINO has them without being converted: as if they had been."""

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from dovetail import bases
from dovetail.core import graphs
from dovetail.edges import openvino
from dovetail.edges.models import Models
from dovetail.engines import drawings

TOKENS = 7


@pytest.fixture(scope="module")
def unet(tiny_base: Path) -> UNet2DConditionModel:
    return Models(tiny_base, torch.device("cpu")).unet


@pytest.fixture(scope="module")
def drawn(unet: UNet2DConditionModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    drawings.draw(unet, TOKENS, folder / "tiny.json.gz")
    return folder


def files(file: Path) -> tuple[str, bytes]:
    return file.read_text(), file.with_suffix(".bin").read_bytes()


def test_a_graph_that_fits_is_filled_to_the_bytes_that_a_conversion_gives(unet, drawn, tmp_path: Path, monkeypatch) -> None:
    openvino.keep(unet, TOKENS, tmp_path / "converted.xml")
    monkeypatch.setattr(drawings, "SHIPPED", drawn)
    monkeypatch.setattr(openvino, "keep", lambda *_: pytest.fail("it was converted"))
    drawings.keep(unet, TOKENS, tmp_path / "filled.xml")
    (_, mine), (_, converted) = files(tmp_path / "filled.xml"), files(tmp_path / "converted.xml")
    asked = torch.randn(2, 4, 8, 8), torch.tensor([3.0, 700.0]), torch.randn(2, TOKENS, unet.config.cross_attention_dim)
    answers = [openvino.CompiledUNet(tmp_path / f"{name}.xml", TOKENS)(*asked)[0] for name in ("filled", "converted")]
    assert torch.equal(*answers) and len(mine) >= len(converted)  # alike weights may share a place there


def test_where_none_fits_it_is_converted(unet, drawn, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(drawings, "SHIPPED", drawn)
    converted = []
    monkeypatch.setattr(openvino, "keep", lambda *told: converted.append(told))
    drawings.keep(unet, TOKENS + 1, tmp_path / "unet.xml")
    assert converted == [(unet, TOKENS + 1, tmp_path / "unet.xml")]


def test_the_embedded_base_is_drawn() -> None:
    models = Models(bases.EMBEDDED, torch.device("cpu"))
    graph = drawings.shipped(models.unet, int(models.tokenizer.model_max_length))
    assert graph is not None, "its U-Net has another shape now: python -m recipes.embedded_base.draw"
    assert len(graphs.filled(graph, drawings.weights(models.unet))) == graph.size
