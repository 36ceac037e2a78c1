"""The two towers of the embedded judge: layers on fixed gradient features for pictures, a small transformer for texts."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, normalize, relu

from dovetail.evaluation import gradients


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of both towers; what `config.json` of a judge's folder holds."""

    hidden: int = 1024
    kind: int = 384  # width of the space of kinds of things
    layout: int = 768  # what is made of shapes, colors and places together
    vocabulary: int = 7500
    tokens: int = 40  # longest text
    text_width: int = 224
    text_layers: int = 2
    heads: int = 4
    joint: int = 256  # width of the space where pictures and texts meet

    def as_json(self) -> dict[str, Any]:
        """Plain data, readable by `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Shape":
        """The shape that `as_json` wrote; TypeError where it is none."""
        return cls(**data)


class KindTower(nn.Module):
    """Shape features of a picture, (n, gradients.SHAPE), to a place in the space of kinds, (n, kind)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(gradients.SHAPE, affine=False)
        self.first, self.first_norm = nn.Linear(gradients.SHAPE, shape.hidden), nn.BatchNorm1d(shape.hidden)
        self.second, self.second_norm = nn.Linear(shape.hidden, shape.hidden), nn.BatchNorm1d(shape.hidden)
        self.last, self.last_norm = nn.Linear(shape.hidden, shape.kind), nn.BatchNorm1d(shape.kind, affine=False)
        self.dropout = nn.Dropout(0.15)

    def forward(self, features: Tensor) -> Tensor:
        """Centered, of about unit variance."""
        x = self.dropout(relu(self.first_norm(self.first(self.norm(features)))))
        x = x + self.dropout(relu(self.second_norm(self.second(x))))
        found: Tensor = self.last_norm(self.last(x))
        return found


class LayoutTower(nn.Module):
    """All features, (n, gradients.WIDTH), to what stands where in which color, (n, layout)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(gradients.WIDTH, affine=False)
        self.first, self.first_norm = nn.Linear(gradients.WIDTH, shape.layout), nn.BatchNorm1d(shape.layout)
        self.second, self.second_norm = nn.Linear(shape.layout, shape.layout), nn.BatchNorm1d(shape.layout)

    def forward(self, features: Tensor) -> Tensor:
        """Rectified, normalized over the batch in training."""
        x = relu(self.first_norm(self.first(self.norm(features))))
        found: Tensor = x + relu(self.second_norm(self.second(x)))
        return found


class Layer(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.second_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(n, tokens, width); `mask` (n, 1, 1, tokens) is true at real tokens."""
        n, length, width = x.shape
        q, k, v = self.mix(self.norm(x)).view(n, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        # Plain products: on a CPU the fused attention's backward is ten times slower at these lengths.
        far = (q @ k.transpose(-1, -2) * (width // self.heads) ** -0.5).masked_fill(~mask, -1e4).softmax(-1)
        seen = (far.to(v.dtype) @ v).transpose(1, 2).reshape(n, length, width)
        x = x + self.out(seen)
        found: Tensor = x + self.down(gelu(self.up(self.second_norm(x))))
        return found


class TextTower(nn.Module):
    """Token numbers to mean token states (n, width)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.words = nn.Embedding(shape.vocabulary, shape.text_width)
        self.places = nn.Parameter(torch.randn(shape.tokens, shape.text_width) * 0.02)
        self.layers = nn.ModuleList(Layer(shape.text_width, shape.heads) for _ in range(shape.text_layers))
        self.norm = nn.LayerNorm(shape.text_width)
        nn.init.normal_(self.words.weight, std=0.05)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """`tokens` int64 (n, length), `mask` bool of the same shape, true at real tokens."""
        x = self.words(tokens) + self.places[: tokens.shape[1]]
        for layer in self.layers:
            x = layer(x, mask[:, None, None])
        weights = mask.unsqueeze(-1).to(x.dtype)
        return (self.norm(x) * weights).sum(1) / weights.sum(1)  # type: ignore[no-any-return]


class Towers(nn.Module):
    """Both towers and their projections into the joint space."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.kinds, self.layout, self.text = KindTower(shape), LayoutTower(shape), TextTower(shape)
        self.kind_joint = nn.Linear(shape.kind, shape.joint, bias=False)
        self.layout_joint = nn.Linear(shape.layout, shape.joint, bias=False)
        self.text_joint = nn.Linear(shape.text_width, shape.joint, bias=False)
        self.scale = nn.Parameter(torch.tensor(3.0))  # logarithm of what cosines are multiplied by in training

    def see(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of pictures in -1..1, (n, 3, h, w): see `see_features`."""
        return self.see_features(gradients.features(pictures))

    def see_features(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Unit vectors in the joint space (n, joint) and the space of kinds (n, kind), and the latter not normalized."""
        kinds = self.kinds(features[:, : gradients.SHAPE]).float()
        joint = self.kind_joint(kinds).float() + self.layout_joint(self.layout(features)).float()
        return normalize(joint, dim=-1), normalize(kinds, dim=-1), kinds

    def read(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Unit vectors of texts in the joint space (n, joint)."""
        return normalize(self.text_joint(self.text(tokens, mask)).float(), dim=-1)
