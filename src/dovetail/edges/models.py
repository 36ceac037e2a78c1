"""Models: find, load, encode, decode, judge (diffusers, transformers, peft)."""

import inspect
import json
import os
import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from diffusers.utils import logging as diffusers_logging
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from dovetail.errors import ModelError, StoreError, first_line

transformers_logging.disable_progress_bar()
diffusers_logging.disable_progress_bar()
MANY = 1 << 25  # scores of one call, that are not all made at once
LOADING = threading.Lock()  # two of transformers' from_pretrained at once leave weights empty

Part = tuple[str, float, bool]  # of a text: words, their weight, whether they begin a new piece
Text = str | tuple[Part, ...]


class MatmulAttention(AttnProcessor):
    """Two matrix products and a softmax, for a CPU; what is rare (masks, norms within, upcast) is left to diffusers."""

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None, temb: Tensor | None = None, *args: Any, **keys: Any,
    ) -> Tensor:  # fmt: skip
        """(b, tokens, width) attended over itself or over `encoder_hidden_states` (b, other tokens, their width)."""
        rare = (attn.group_norm, attn.spatial_norm, attn.norm_cross, attention_mask, attn.residual_connection or None)
        if any(x is not None for x in rare) or attn.upcast_attention or attn.upcast_softmax or hidden_states.ndim != 3:
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb, *args, **keys)
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            part(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for part, x in ((attn.to_q, hidden_states), (attn.to_k, context), (attn.to_v, context))
        )
        seen = self.attended(query, key, value, attn.scale).transpose(1, 2).flatten(2)
        return attn.to_out[1](attn.to_out[0](seen)) / attn.rescale_output_factor

    def attended(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """softmax(query key^T scale) value: (b, heads, n, d) over (b, heads, m, d) gives (b, heads, n, d)."""
        if query.shape[:-1].numel() * key.shape[-2] > MANY:
            return scaled_dot_product_attention(query, key, value, scale=scale)
        return torch.softmax((query * scale) @ key.transpose(-1, -2), dim=-1).to(value.dtype) @ value


@dataclass
class Models:
    """The parts of one Stable Diffusion folder, each loaded when it is first needed, in float32."""

    folder: Path
    device: torch.device
    prediction: str | None = None  # where the U-Net was taught to predict something else than the folder says
    variant: str | None = None  # which weight files: "fp16", say
    text_taught: bool = False  # whether its text encoders are no longer the folder's, or learn
    unet_from: Path | None = None  # folder of another revision that has the U-Net
    _remembered: Any = (None, None)  # texts that the second text encoder read last, and what it made of them

    @cached_property
    def unet(self) -> UNet2DConditionModel:
        """The denoiser."""
        unet = _load(UNet2DConditionModel, (self.unet_from or self.folder) / "unet", self.variant)
        unet.set_attn_processor(MatmulAttention() if self.device.type == "cpu" else AttnProcessor2_0())
        return unet.to(self.device).eval().requires_grad_(False)

    @cached_property
    def vae(self) -> AutoencoderKL:
        """The way into and out of latent space."""
        return _load(AutoencoderKL, self.folder / "vae", self.variant).to(self.device).eval().requires_grad_(False)

    @cached_property
    def text_encoder(self) -> CLIPTextModel:
        """Words to states."""
        text_encoder = _load(CLIPTextModel, self.folder / "text_encoder", self.variant)
        return text_encoder.to(self.device).eval().requires_grad_(False)

    def forget(self, *parts: str) -> None:
        """Give back the memory of loaded parts; one that is needed again is read again, as the folder has it."""
        for part in parts:
            self.__dict__.pop(part, None)

    @cached_property
    def tokenizer(self) -> CLIPTokenizer:
        """Text to token numbers."""
        return _load(CLIPTokenizer, self.folder / "tokenizer")

    @cached_property
    def text_encoder_2(self) -> CLIPTextModelWithProjection:
        """The second one of a Stable Diffusion XL."""
        second = _load(CLIPTextModelWithProjection, self.folder / "text_encoder_2", self.variant)
        return second.to(self.device).eval().requires_grad_(False)

    @cached_property
    def tokenizer_2(self) -> CLIPTokenizer:
        """The second one of a Stable Diffusion XL."""
        return _load(CLIPTokenizer, self.folder / "tokenizer_2")

    def scheduler(self) -> Any:
        """A fresh scheduler of the class and configuration that the folder names (it holds state while it is used)."""
        import diffusers

        try:
            config = json.loads((self.folder / "scheduler" / "scheduler_config.json").read_text())
            own = {"prediction_type": self.prediction} if self.prediction else {}
            return getattr(diffusers, config["_class_name"]).from_config(config | own)
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise ModelError(
                f"cannot load scheduler of the model in {self.folder}: {first_line(error)}", do="give a whole diffusers folder"
            ) from error

    @cached_property
    def shape(self) -> dict[str, Any]:
        """The U-Net's configuration, without its weights."""
        return dict(UNet2DConditionModel.load_config((self.unet_from or self.folder) / "unet", local_files_only=True))

    @cached_property
    def vae_shape(self) -> dict[str, Any]:
        """The VAE's configuration, without its weights; what the folder leaves out is diffusers' own."""
        usual = {name: given.default for name, given in inspect.signature(AutoencoderKL.__init__).parameters.items()}
        try:
            return usual | AutoencoderKL.load_config(self.folder / "vae", local_files_only=True)
        except OSError as error:
            raise ModelError(f"the model in {self.folder} has no VAE", do="give a whole diffusers folder") from error

    @property
    def resolution(self) -> int:
        """Pixels of a side that the U-Net was made for."""
        return int(self.shape["sample_size"]) * self.pixels_per_latent

    @property
    def pixels_per_latent(self) -> int:
        """8 for Stable Diffusion, 4 for the embedded base."""
        return 2 ** (len(self.vae_shape["block_out_channels"]) - 1)

    @property
    def is_xl(self) -> bool:
        """Whether it is a Stable Diffusion XL: two text encoders, and a U-Net that is told sizes and crops."""
        return (self.folder / "text_encoder_2").is_dir()

    @property
    def encoders(self) -> dict[str, str]:
        """The text encoders and the tokenizer of each, by their names here."""
        first = {"text_encoder": "tokenizer"}
        return first | {"text_encoder_2": "tokenizer_2"} if self.is_xl else first

    @property
    def pixels_per_step(self) -> int:
        """The sides of a picture must be multiples of this, so that the U-Net can halve its latents to the end."""
        return self.pixels_per_latent * 2 ** (len(self.shape["block_out_channels"]) - 1)

    def pieces(self, text: Text) -> int:
        """How many passes of the text encoder a text takes."""
        return len(_cut(self.tokenizer, [text])[0])

    def weights(self, text: Text, pieces: int = 1) -> list[tuple[int, Tensor]]:
        """Of each text encoder its states' width and its tokens' weights, float32 (pieces, tokens): 1 but for words."""
        told = []
        for encoder, name in self.encoders.items():
            tokenizer = getattr(self, name)
            weights = torch.ones(pieces, tokenizer.model_max_length)
            for row, piece in zip(weights, _cut(tokenizer, [text])[0], strict=False):  # of the shorter, as `read` does
                row[1 : len(piece) + 1] = torch.tensor([weight for _, weight in piece])
            told.append((int(getattr(self, encoder).config.hidden_size), weights.to(self.device)))
        return told

    @torch.no_grad()
    def embed(self, captions: list[str], pieces: int = 1) -> Tensor:
        """The states that `read` gives, without gradients."""
        return self.read(captions, pieces)[0]

    def read(self, captions: Sequence[Text], pieces: int = 1) -> tuple[Tensor, Tensor | None]:
        """Text states, float32 (captions, pieces x tokens, width), and in Stable Diffusion XL what `pooled` gives.

        A text longer than the encoder reads is cut into pieces that are read apart, one after the other; what goes beyond
        `pieces` is left out, and a shorter text is filled up with empty ones. In Stable Diffusion XL they are the last states
        but one of both encoders side by side, and those of an empty text are zero where its index says so. The weights of
        parts change nothing here.
        """
        if not self.is_xl:
            states = self.text_encoder(self._ids(self.tokenizer, captions, pieces))[0].float()
            return states.reshape(len(captions), -1, states.shape[-1]), None
        first = self.text_encoder(self._ids(self.tokenizer, captions, pieces), output_hidden_states=True).hidden_states[-2]
        second, whole = self._second(tuple(captions), pieces)
        states, heard = torch.cat([first.float(), second], -1), self._heard(captions)
        return states.reshape(len(captions), -1, states.shape[-1]) * heard[:, None, None], whole * heard[:, None]

    @torch.no_grad()
    def pooled(self, captions: list[str], pieces: int = 1) -> Tensor:
        """What the second text encoder of a Stable Diffusion XL makes of each text as a whole, float32 (captions, width)."""
        states = self._second(tuple(captions), pieces)[1]
        return states * self._heard(captions)[:, None]

    def _second(self, captions: tuple[Text, ...], pieces: int) -> tuple[Tensor, Tensor]:
        """States and whole of the second encoder; asked for the same texts again it remembers, unless it learns."""
        if self._remembered[0] != (captions, pieces) or self.text_taught:
            told = self.text_encoder_2(self._ids(self.tokenizer_2, list(captions), pieces), output_hidden_states=True)
            whole = told.text_embeds.float().reshape(len(captions), pieces, -1)[:, 0]
            self._remembered = ((captions, pieces), (told.hidden_states[-2].float(), whole))
        return self._remembered[1]

    def _heard(self, captions: Sequence[Text]) -> Tensor:
        """Zero for an empty text that counts as none, else one."""
        index = json.loads((self.folder / "model_index.json").read_text())
        silent = index.get("force_zeros_for_empty_prompt", True)
        return torch.tensor([0.0 if silent and not c else 1.0 for c in captions], device=self.device)

    def _ids(self, tokenizer: CLIPTokenizer, captions: Sequence[Text], pieces: int) -> Tensor:
        """Token numbers (captions x pieces, tokens), each piece with its start and end."""
        cut = [piece for own in _cut(tokenizer, captions) for piece in (own + [[]] * pieces)[:pieces]]
        rows = [[tokenizer.bos_token_id, *(word for word, _ in piece), tokenizer.eos_token_id] for piece in cut]
        told = tokenizer.pad(
            {"input_ids": rows}, padding="max_length", max_length=tokenizer.model_max_length, return_tensors="pt"
        )
        return told.input_ids.to(self.device)

    @torch.no_grad()
    def moments(self, pixels: Tensor) -> Tensor:
        """VAE mean and log-variance, float32 (b, 2c, h, w), of pixels (b, 3, H, W) in -1..1."""
        return self.vae.encode(pixels.to(self.device)).latent_dist.parameters.float()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> np.ndarray:
        """uint8 pictures (b, H, W, 3) of scaled latents (b, c, h, w), rounded as diffusers does."""
        decoded = self.vae.decode(latents.to(self.device, self.vae.dtype) / self.vae_shape["scaling_factor"]).sample
        unit = (decoded.float() / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
        return (unit * 255).round().astype(np.uint8)


def _expanded(tokenizer: CLIPTokenizer, text: str) -> str:
    """The text with each learnt word of several vectors (`<tv>`, `<tv>_1`) followed by its further ones, as in diffusers."""
    known = tokenizer.added_tokens_encoder
    for token in sorted((t for t in known if t in text and f"{t}_1" in known), key=len, reverse=True):
        count = next(i for i in range(1, len(known) + 1) if f"{token}_{i}" not in known)
        text = text.replace(token, " ".join([token, *(f"{token}_{i}" for i in range(1, count))]))
    return text


def _cut(tokenizer: CLIPTokenizer, texts: Sequence[Text]) -> list[list[list[tuple[int, float]]]]:
    """Of each text the pieces that are read apart, at least one; of each piece the tokens with their weights."""
    most = int(tokenizer.model_max_length) - 2  # beside start and end
    every = [((text, 1.0, False),) if isinstance(text, str) else text for text in texts]
    words = [_expanded(tokenizer, part) for parts in every for part, _, _ in parts]
    read = iter(tokenizer(words, add_special_tokens=False, verbose=False).input_ids)
    cut: list[list[list[tuple[int, float]]]] = [[[]] for _ in every]
    for pieces, parts in zip(cut, every, strict=True):
        for _, weight, begins in parts:
            if begins and pieces[-1]:
                pieces.append([])
            tokens, free = [(token, weight) for token in next(read)], most - len(pieces[-1])
            pieces[-1] += tokens[:free]
            pieces += [tokens[first : first + most] for first in range(free, len(tokens), most)]
    return cut


def in_bf16(unet: UNet2DConditionModel) -> Any:
    """The U-Net under bf16 autocast, called like it; the prediction is float32."""

    def call(latents: Tensor, timestep: Tensor, return_dict: bool = False, **conditions: Any) -> tuple[Tensor]:
        with torch.autocast(latents.device.type, torch.bfloat16):
            answer = unet(latents, timestep, return_dict=False, **conditions)[0]
        return (answer.float(),)

    return call


def _load(kind: Any, folder: Path, variant: str | None = None) -> Any:
    try:
        dtype = "dtype" if kind in (CLIPTextModel, CLIPTextModelWithProjection) else "torch_dtype"
        extra = {} if kind is CLIPTokenizer else {dtype: torch.float32, "use_safetensors": True, "variant": variant}
        with LOADING:
            return kind.from_pretrained(folder, local_files_only=True, **extra)
    except Exception as error:  # each library raises its own kinds; the user needs one line
        raise ModelError(
            f"cannot load {folder.name} of the model in {folder.parent}: {first_line(error)}",
            do="give a diffusers folder with safetensors weights",
        ) from error


def resolve(name: str, embedded: Path, cache: Path, revision: str | None = None, downloads: str | None = None) -> Path:
    """The diffusers folder of `embedded`, a folder, a hub id (at a revision) or a `.safetensors` file.

    Raises ModelError where there is none, or the hub cannot be reached.
    """
    if name == "embedded":
        if not (embedded / "model_index.json").exists():
            raise ModelError("the embedded base is not in this installation", do="install the package again")
        return embedded
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "model_index.json").exists():
            raise ModelError(f"{path} has no model_index.json", do="give a folder that diffusers' save_pretrained wrote")
        return path.resolve()
    if path.suffix == ".safetensors":
        return _from_single_file(path, cache)
    if path.suffix in (".ckpt", ".pt", ".bin", ".pth"):
        raise ModelError(f"{path} is a pickle, which can run code when it is read", do="convert it to .safetensors first")
    return _from_hub(name, revision, downloads)


def _from_single_file(path: Path, cache: Path) -> Path:
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    if not path.is_file():
        raise ModelError(f"there is no file {path}", do="check the path")
    beside = path.with_suffix("")  # a folder of the same name may hold what the file has not: configurations and tokenizer
    own = {"config": str(beside), "local_files_only": True} if (beside / "model_index.json").is_file() else {}
    status = path.stat()
    target = cache / f"{path.stem}-{status.st_size:x}-{status.st_mtime_ns:x}"
    if not (target / "model_index.json").exists():
        try:
            with safe_open(path, "pt") as file:
                kind = StableDiffusionXLPipeline if any("embedders.1." in k for k in file.keys()) else StableDiffusionPipeline  # noqa: SIM118
            pipeline = kind.from_single_file(str(path), torch_dtype=torch.float32, **own)
        except Exception as error:
            raise ModelError(
                f"cannot read {path} as a Stable Diffusion checkpoint: {first_line(error)}",
                do=f"give a diffusers folder, or put the model's configurations and tokenizer into {beside}",
            ) from error
        pipeline.save_pretrained(target.with_suffix(".tmp"))
        target.with_suffix(".tmp").rename(target)
    return target


def _from_hub(name: str, revision: str | None, downloads: str | None) -> Path:
    from huggingface_hub import snapshot_download

    if name.count("/") != 1:
        raise ModelError(
            f"there is no model {name!r}",
            do="give embedded, a diffusers folder, a hub id like owner/name, or a .safetensors file",
        )
    wanted = ["*.json", "*.txt", "*/*.json", "*/*.txt", "*/*.safetensors", "LICENSE*", "README.md"]
    try:
        return Path(snapshot_download(name, revision=revision, cache_dir=downloads, allow_patterns=wanted))
    except Exception as error:
        raise ModelError(
            f"cannot fetch {name} from the hub: {first_line(error)}",
            do="check the name and the network, or give a local folder",
        ) from error


def save_unet(unet: UNet2DConditionModel, folder: Path, dtype: str) -> None:
    """A diffusers `unet` folder, safetensors only, that does not say where on this machine it came from."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kept, kind = {p: p.data for p in unet.parameters()}, getattr(torch, dtype)
        (unet if unet.dtype == kind else unet.to(kind)).save_pretrained(folder, safe_serialization=True)
        for parameter, data in kept.items():
            parameter.data = data
    file = folder / "config.json"
    told = {key: value for key, value in json.loads(file.read_text()).items() if key != "_name_or_path"}
    file.write_text(json.dumps(told, indent=2) + "\n")


def same_unet(unet: UNet2DConditionModel, folder: Path, dtype: str) -> None:
    """Read the U-Net of a written folder back and compare. Raises StoreError where a weight differs."""
    written, kind = Models(folder, torch.device("cpu")).unet.state_dict(), getattr(torch, dtype)
    for name, tensor in unet.state_dict().items():
        if name not in written or not torch.equal(written[name], tensor.cpu().to(kind).float()):
            raise StoreError(
                f"the written U-Net differs from the trained one at {name}", do="check the disk and run the same command again"
            )


def save_single_file(models: Models, file: Path, dtype: str, names: Mapping[str, tuple[str, tuple[str, ...]]]) -> None:
    """All parts in one `.safetensors`, under `names` (name there -> part, names of the weights); read back and compared."""
    kind = getattr(torch, dtype)
    parts = {part: getattr(models, part).state_dict() for part in ("unet", "vae", *models.encoders)}
    whole = {name: torch.cat([parts[part][n] for n in own]).cpu().to(kind).contiguous() for name, (part, own) in names.items()}
    for name, tensor in whole.items():
        if ".attn_1." in name and tensor.ndim == 2:  # there the VAE's attention is made of convolutions
            whole[name] = tensor[:, :, None, None]
        if name.endswith(".text_projection"):
            whole[name] = tensor.T.contiguous()
    guess = "v" if models.scheduler().config.prediction_type == "v_prediction" else models.scheduler().config.prediction_type
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(whole, file, metadata={"format": "pt", "modelspec.prediction_type": guess})
    written = load_file(file)
    if any(not torch.equal(written[name], tensor) for name, tensor in whole.items()):
        raise StoreError(f"{file.name} differs from the trained model", do="check the disk and run the same command again")
