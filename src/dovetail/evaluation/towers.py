"""The towers of the embedded judge: a small convolutional network on edge maps for pictures, a transformer for texts."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, normalize, relu

from dovetail.evaluation import gradients


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of both towers; what `config.json` of a judge's folder holds."""

    channels: tuple[int, int, int] = (64, 128, 256)  # of the three convolutions
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
        return asdict(self) | {"channels": list(self.channels)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Shape":
        """The shape that `as_json` wrote; KeyError, TypeError or ValueError where it is none."""
        first, second, third = data["channels"]
        return cls(**data | {"channels": (first, second, third)})


class KindTower(nn.Module):
    """Features of a picture, (n, WIDTH), to a place in the space of kinds, (n, kind).

    Three convolutions see what is drawn; histograms of the same edges, and tints, roughly where. Both meet in a hidden state.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        first, second, third = shape.channels
        self.stem, self.stem_norm = nn.Conv2d(gradients.LAYERS, first, 4, 2, 1), nn.BatchNorm2d(first)
        self.near, self.near_norm = nn.Conv2d(first, second, 3, 1, 1), nn.BatchNorm2d(second)
        self.far, self.far_norm = nn.Conv2d(second, third, 3, 2, 1), nn.BatchNorm2d(third)
        self.deep = nn.Linear(third * (gradients.CELLS // 4) ** 2, shape.hidden, bias=False)
        rough = gradients.HISTOGRAMS + gradients.TINTS
        self.rough_norm = nn.BatchNorm1d(rough, affine=False)
        self.rough, self.norm = nn.Linear(rough, shape.hidden), nn.BatchNorm1d(shape.hidden)
        self.second, self.second_norm = nn.Linear(shape.hidden, shape.hidden), nn.BatchNorm1d(shape.hidden)
        self.last, self.last_norm = nn.Linear(shape.hidden, shape.kind), nn.BatchNorm1d(shape.kind, affine=False)
        self.dropout = nn.Dropout(0.15)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, features: Tensor) -> Tensor:
        """Centered, of about unit variance, float32."""
        maps = gradients.maps_of(features)
        rough = torch.cat([gradients.histograms(maps), gradients.tints_of(features)], 1)
        x = (2 * maps - 0.5).contiguous(memory_format=torch.channels_last)
        x = relu(self.near_norm(self.near(relu(self.stem_norm(self.stem(x))))))
        x = relu(self.far_norm(self.far(x)))
        hidden = self.deep(x.flatten(1)) + self.rough(self.rough_norm(rough))
        hidden = self.dropout(relu(self.norm(hidden)))
        hidden = hidden + self.dropout(relu(self.second_norm(self.second(hidden))))
        found: Tensor = self.last_norm(self.last(hidden).float())
        return found


class LayoutTower(nn.Module):
    """All features and the place in the space of kinds to what stands where in which color, (n, layout)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = gradients.HISTOGRAMS + gradients.WIDTH - gradients.EDGES + shape.kind
        self.norm = nn.BatchNorm1d(width, affine=False)
        self.first, self.first_norm = nn.Linear(width, shape.layout), nn.BatchNorm1d(shape.layout)
        self.second, self.second_norm = nn.Linear(shape.layout, shape.layout), nn.BatchNorm1d(shape.layout)

    def forward(self, features: Tensor, kinds: Tensor) -> Tensor:
        """`features` (n, WIDTH), `kinds` (n, kind); rectified, normalized over the batch in training."""
        rough = gradients.histograms(gradients.maps_of(features))
        x = self.norm(torch.cat([rough, features[:, gradients.EDGES :], kinds], 1))
        x = relu(self.first_norm(self.first(x)))
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
    """Token numbers to a weighted mean of token states (n, width)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.words = nn.Embedding(shape.vocabulary, shape.text_width)
        self.places = nn.Parameter(torch.randn(shape.tokens, shape.text_width) * 0.02)
        self.layers = nn.ModuleList(Layer(shape.text_width, shape.heads) for _ in range(shape.text_layers))
        self.norm = nn.LayerNorm(shape.text_width)
        self.weigh = nn.Linear(shape.text_width, 1)  # how much a token counts: of a long caption the noun more than "with a"
        nn.init.normal_(self.words.weight, std=0.05)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """`tokens` int64 (n, length), `mask` bool of the same shape, true at real tokens."""
        x = self.words(tokens) + self.places[: tokens.shape[1]]
        for layer in self.layers:
            x = layer(x, mask[:, None, None])
        x = self.norm(x)
        weights = self.weigh(x).float().masked_fill(~mask.unsqueeze(-1), -1e4).softmax(1)
        return (x * weights).sum(1)  # type: ignore[no-any-return]


# Degrees by which a picture is turned before its places in the space of kinds are averaged.
VIEWS = (0.0, -8.0, 8.0, -16.0, 16.0)


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

    def see(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Of pictures in -1..1, (n, 3, h, w), each seen straight and a little turned: see `see_features`."""
        views = [gradients.features(gradients.turned(pictures, degrees)) for degrees in VIEWS]
        kinds = torch.stack([self.kinds_of(view) for view in views]).mean(0)
        return self.see_features(views[0], kinds)

    def see_features(self, features: Tensor, kinds: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Unit vectors in the joint space (n, joint) and in the space of kinds (n, kind).

        `kinds` are places in the space of kinds that `kinds_of` gave for these features before.
        """
        placed = self.kinds_of(features) if kinds is None else kinds
        joint = self.kind_joint(placed).float() + self.layout_joint(self.layout(features, placed)).float()
        return normalize(joint, dim=-1), normalize(placed, dim=-1)

    def kinds_of(self, features: Tensor) -> Tensor:
        """Places in the space of kinds (n, kind), not of unit length: the mean of a picture and its mirror image."""
        found: Tensor = (self.kinds(features) + self.kinds(gradients.mirrored(features))) / 2
        return found

    def read(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Unit vectors of texts in the joint space (n, joint)."""
        return normalize(self.text_joint(self.text(tokens, mask)).float(), dim=-1)
