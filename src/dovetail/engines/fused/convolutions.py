"""Convolutions, group norms and residual blocks of a U-Net, there and back: one step for autograd each."""

from typing import Any

import torch
from diffusers.models.upsampling import Upsample2D
from torch import Tensor
from torch.nn import Conv2d, GroupNorm, Linear, SiLU
from torch.nn.functional import conv2d

from dovetail.engines.fused import kernels, products
from dovetail.engines.fused.matrices import bare, handed, kept, matrix, picture, tokens, wanted
from dovetail.engines.fused.products import linear, outer

FEW = 256  # places of all pictures, up to which a convolution is faster as a matrix product of what each place sees
SOME = 1024  # the same for the gradient of its weights


def plain_conv(conv: Any) -> bool:
    """Whether it is a convolution of 3 x 3 places with zeros around."""
    if type(conv) is not Conv2d or conv.groups != 1 or conv.padding_mode != "zeros" or conv.dilation != (1, 1):
        return False
    return conv.kernel_size == (3, 3) and conv.padding == (1, 1) and conv.stride in ((1, 1), (2, 2))


def _kernel(weight: Tensor, x: Tensor, stride: int = 1) -> Tensor:
    """Weights as they are used: as they lie, (out, in 9), by tiles and where there are fewer places than `out`; else bf16,
    channels last."""
    if products.tiled() or _places(x, stride) <= min(FEW, len(weight)):
        return matrix(weight)
    return kernels.to_last(weight)


def _convolved(x: Tensor, kernel: Tensor, bias: Tensor | None, stride: int = 1, beside: Tensor | None = None) -> Tensor:
    """Of 3 x 3 places, zeros around; and what is beside it, a picture."""
    if products.tiled():
        return products.conv(x, kernel, bias, stride, beside)
    if kernel.ndim == 4 and _places(x, stride) > FEW:
        y = conv2d(x, kernel, None if bias is None else bias.bfloat16(), stride, 1)
    else:
        by = kernel if kernel.ndim == 2 else tokens(kernel).flatten(1)
        seen = kernels.unfold_plain(x, stride) if kernel.ndim == 2 else kernels.unfold(x, stride)
        size = len(x), -(-x.shape[2] // stride), -(-x.shape[3] // stride), len(kernel)
        y = linear(seen, by, bias).view(size).permute(0, 3, 1, 2)
    return y if beside is None else y.add_(beside)


def _to_picture(gradient: Tensor, x: Tensor, kernel: Tensor, stride: int = 1) -> Tensor:
    """Gradient of what was convolved."""
    if products.tiled():
        return products.conv_back(gradient, kernel, x, stride)
    if kernel.ndim == 2:
        return kernels.fold_plain(products.back(tokens(gradient).flatten(0, 2), kernel), x, stride)
    if stride == 1 and _places(x, stride) <= FEW:
        return (kernels.unfold(gradient, 1) @ kernels.turn(kernel)).view(tokens(x).shape).permute(0, 3, 1, 2)
    return _by_torch(gradient, x, kernel, stride, [True, False, False])[0]


def _to_weights(gradient: Tensor, x: Tensor, weight: Tensor, kernel: Tensor, stride: int = 1) -> Tensor | None:
    """Gradient of the weights, as it is wanted, if it is."""
    if not weight.requires_grad:
        return None
    if products.tiled():
        return products.conv_outer(gradient, x, stride, wanted(weight))
    if _places(x, stride) <= min(SOME, len(weight)):
        return outer(tokens(gradient), kernels.unfold_plain(x, stride)).view(weight.shape)
    if _places(x, stride) > SOME:
        found = picture(_by_torch(gradient, x, kernel, stride, [False, True, False])[1])
    else:
        found = outer(tokens(gradient), kernels.unfold(x, stride)).view(tokens(kernel).shape).permute(0, 3, 1, 2)
    return kernels.from_last(found, wanted(weight))


def _back(
    gradient: Tensor, x: Tensor, weight: Tensor, kernel: Tensor | None, stride: int = 1, need: bool = True
) -> tuple[Any, Tensor | None]:
    """Gradients of what was convolved, where there is need, and of the weights."""
    kernel = _kernel(weight, x, stride) if kernel is None else kernel
    return _to_picture(gradient, x, kernel, stride) if need else None, _to_weights(gradient, x, weight, kernel, stride)


def _by_torch(gradient: Tensor, x: Tensor, kernel: Tensor, stride: int, asked: list[bool]) -> Any:
    """Both and a bias' gradient, those that are asked for."""
    back = torch.ops.aten.convolution_backward.default
    return back(gradient, x, kernel, None, [stride, stride], [1, 1], [1, 1], False, [0, 0], 1, asked)


def _places(x: Tensor, stride: int) -> int:
    """Of what a convolution makes of a picture."""
    return len(x) * -(-x.shape[2] // stride) * -(-x.shape[3] // stride)


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
        x = picture(x)
        kernel = _kernel(weight, x, stride)
        ctx.save_for_backward(x, kept(kernel))
        ctx.stride, ctx.weights = stride, (weight, bias)
        return _convolved(x, kernel, bias, stride)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        (x, kernel), needs, gradient = ctx.saved_tensors, ctx.needs_input_grad, picture(gradient)
        to_x, to_weight = _back(gradient, x, ctx.weights[0], kernel, ctx.stride, needs[0])
        to_bias = kernels.sum_rows(tokens(gradient)) if needs[2] else None
        return to_x, *handed(ctx.weights, (to_weight, to_bias)), None


def conv(layer: Conv2d, x: Tensor) -> Tensor:
    """As the layer has it: (b, out, h, w) of (b, c, h, w)."""
    return _Conv.apply(x, layer.weight, layer.bias, layer.stride[0])


class _Enlarged(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return kernels.enlarge(picture(x))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return kernels.enlarge_back(picture(gradient))


def upsampled(layer: Upsample2D, x: Tensor, output_size: Any = None) -> Tensor | None:
    """As the layer has it, twice as high and as wide; None where another size is asked for."""
    return layer.conv(_Enlarged.apply(x)) if output_size is None else None


def plain_upsampling(layer: Upsample2D) -> bool:
    """Whether each place becomes four, and then there is a convolution."""
    return layer.norm is None and not layer.use_conv_transpose and layer.interpolate and layer.use_conv and layer.name == "conv"


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        x = picture(x)
        y, *kept = kernels.group_norm(x, None, weight, bias, groups, eps, False)
        ctx.save_for_backward(x, weight, bias, *kept)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        x, weight, bias, mean, rstd = ctx.saved_tensors
        to_x, _, to_weight, to_bias = kernels.group_norm_back(picture(gradient), x, None, weight, bias, mean, rstd, False)
        return to_x, to_weight, to_bias, None, None


def norm(layer: GroupNorm, x: Tensor) -> Tensor | None:
    """As the layer has it; None of what is no picture (b, c, h, w)."""
    return _Norm.apply(x, layer.weight, layer.bias, layer.num_groups, layer.eps) if x.ndim == 4 else None


class _Residual(torch.autograd.Function):
    """x through norm, SiLU, convolution, shift by time, norm, SiLU, convolution, and beside it (Ho et al. 2020, appendix B)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, time: Tensor | None, norms: tuple[int, float, int, float], by_time: Tensor | None,
        by_time_bias: Tensor | None, before: Tensor, before_bias: Tensor, first: Tensor, first_bias: Tensor, after: Tensor,
        after_bias: Tensor, second: Tensor, second_bias: Tensor, beside: Tensor | None, beside_bias: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """(b, out, h, w) of x (b, c, h, w) and time (b, width); `norms` are groups and eps of both."""
        x = picture(x)
        of_time = said = shift = None
        if time is not None and by_time is not None and by_time_bias is not None:
            time = time.to(torch.bfloat16).contiguous()
            of_time, said = matrix(by_time), kernels.silu(time)
            shift = linear(said, of_time, by_time_bias)
        in_groups, in_eps, out_groups, out_eps = norms
        raised, *told = kernels.group_norm(x, None, before, before_bias, in_groups, in_eps, True)
        kernel = _kernel(first, x)
        inner = _convolved(raised, kernel, first_bias)
        again, *told_again = kernels.group_norm(inner, shift, after, after_bias, out_groups, out_eps, True)
        last = _kernel(second, x)
        across = None if beside is None else matrix(beside)
        aside = x if across is None else linear(tokens(x), across, beside_bias).permute(0, 3, 1, 2)
        y = _convolved(again, last, second_bias, beside=aside)
        ctx.weights = (
            by_time, by_time_bias, before, before_bias, first, first_bias, after, after_bias, second, second_bias, beside,
            beside_bias,
        )  # fmt: skip
        ctx.save_for_backward(
            x, time, of_time, said, shift, before, before_bias, *told, raised, kept(kernel), inner, after, after_bias,
            *told_again, again, kept(last), across,
        )  # fmt: skip
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        (
            x, time, of_time, said, shift, before, before_bias, mean, rstd, raised, kernel, inner, after, after_bias,
            mean_again, rstd_again, again, last, across,
        ) = ctx.saved_tensors  # fmt: skip
        needs, gradient = ctx.needs_input_grad, picture(gradient)
        to_again, to_second = _back(gradient, again, ctx.weights[8], last)
        to_inner, to_shift, to_after, to_after_bias = kernels.group_norm_back(
            to_again, inner, shift, after, after_bias, mean_again, rstd_again, True
        )
        aside = gradient if across is None else products.back(tokens(gradient), across).permute(0, 3, 1, 2)
        to_raised, to_first = _back(to_inner, raised, ctx.weights[4], kernel)
        to_x, _, to_before, to_before_bias = kernels.group_norm_back(
            to_raised, x, None, before, before_bias, mean, rstd, True, aside
        )
        to_time = to_by_time = to_by_time_bias = None
        if to_shift is not None:
            to_by_time_bias = kernels.sum_numbers(to_shift)
            to_shift = kernels.halve(to_shift, torch.empty(to_shift.shape, dtype=torch.bfloat16))
            to_by_time = outer(to_shift, said, wanted(ctx.weights[0]))
            to_time = kernels.silu_back(products.back(to_shift, of_time), time) if needs[1] else None
        to_last_bias = kernels.sum_rows(tokens(gradient)) if needs[12] or needs[14] else None
        to_beside_bias = None if to_last_bias is None else to_last_bias.clone()  # each keeps its own
        weights = (
            to_by_time, to_by_time_bias, to_before, to_before_bias, to_first,
            kernels.sum_rows(tokens(to_inner)) if needs[8] else None, to_after, to_after_bias, to_second, to_last_bias,
            outer(tokens(gradient), tokens(x), wanted(ctx.weights[10])) if needs[13] else None, to_beside_bias,
        )  # fmt: skip
        return to_x, to_time, None, *handed(ctx.weights, weights)


def residual(layer: Any, x: Tensor, temb: Tensor | None, *args: Any, **keys: Any) -> Tensor | None:
    """As the block has it; None where it is asked for more than that."""
    if args or keys or (layer.training and layer.dropout.p > 0):
        return None
    norms = layer.norm1.num_groups, layer.norm1.eps, layer.norm2.num_groups, layer.norm2.eps
    parts = layer.time_emb_proj, layer.norm1, layer.conv1, layer.norm2, layer.conv2, layer.conv_shortcut
    weights = [w for part in parts for w in ((None, None) if part is None else (part.weight, part.bias))]
    return _Residual.apply(x, temb, norms, *weights)


def plain_residual(layer: Any) -> bool:
    """Whether it is one of Stable Diffusion's."""
    parts = layer.norm1, layer.conv1, layer.norm2, layer.conv2
    beside, time = layer.conv_shortcut, layer.time_emb_proj
    return (
        bare(*parts) and all(p.bias is not None for p in parts)
        and (beside is None or (type(beside) is Conv2d and beside.bias is not None and beside.kernel_size == (1, 1)))
        and (time is None or (type(time) is Linear and time.bias is not None))
        and layer.upsample is None and layer.downsample is None and type(layer.nonlinearity) is SiLU
        and layer.time_embedding_norm == "default" and not layer.skip_time_act and layer.output_scale_factor == 1
        and all(plain_conv(c) and c.stride == (1, 1) for c in parts[1::2])
    )  # fmt: skip
