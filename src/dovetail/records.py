"""The words that flow between the stages: frozen data, no behaviour.

Licence, origin and caption ride along from lead to model card; `key` is always the SHA-256 of a picture's bytes.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

Precision = Literal["bf16", "fp16", "no"]
Schedule = Literal["constant", "cosine", "linear", "polynomial", "warmup_stable_decay"]
STAGE_NAMES = (
    "sourcing", "gathering", "wrangling", "buildout", "processing",
    "training", "evaluation", "repo", "endpoint", "production",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Lead:
    """A picture that may be worth having: where it is, what it shows, whose it is."""

    name: str  # path below the folder, with forward slashes
    place: str  # absolute path
    caption: str
    caption_from: str  # file that said so
    licence: str
    author: str
    origin: str
    group: str  # pictures of one group (one drawing, one shoot) stay on one side of a split; "" where not said
    size_bytes: int
    modified_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """A picture whose bytes are home."""

    key: str
    name: str
    caption: str
    licence: str
    author: str
    origin: str
    group: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A picture worth learning, decoded to 8-bit sRGB, with its caption."""

    key: str  # of the bytes as they came
    pixels_key: str  # of the canonical file (the same bytes where nothing had to change)
    name: str
    caption: str
    licence: str
    author: str
    origin: str
    group: str
    width: int
    height: int
    fingerprint: str  # 64-bit perceptual hash, hexadecimal
    colours: str  # 4x4 RGB signature, hexadecimal


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """A picture that is not worth learning, and why."""

    name: str
    reason: str  # one word or two, countable
    detail: str
    key: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A pair with its place in the dataset."""

    key: str
    split: Literal["train", "validation", "test"]
    file: str  # path below the dataset's folder
    name: str
    caption: str
    licence: str
    author: str
    origin: str
    group: str  # the group that the split was made by: near-duplicates and the user's own groups joined
    width: int
    height: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentRow:
    """Where the latents and the embedding of one example lie."""

    item: str  # digest of picture, transform and VAE: what the latents depend on
    key: str
    split: str
    caption: str
    name: str
    file: str
    row: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Hints:
    """What a model knows of itself: `hints.json` in its folder. The defaults are those of Stable Diffusion at large."""

    guidance_scale: float = 7.5
    learning_rate_full: float = 1e-5
    learning_rate_lora: float = 1e-4
    rehearsal: list[str] = field(default_factory=list)  # prompts to learn along against forgetting
    other: list[str] = field(default_factory=list)  # prompts to see by what was forgotten; none in common


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Written last into an artifact's folder; an artifact without one does not exist."""

    stage: str
    asked: dict[str, Any]  # stage, version, own config table, content digests of what came before
    asked_digest: str
    content: str  # digest of `files`
    files: dict[str, str]  # path below the folder -> SHA-256
    made_at: str
    seconds: float
    dovetail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredSample:
    """One prompt and seed, sampled from the base and from the tuned model, and what was measured of both."""

    prompt: str
    seed: int
    group: Literal["held-out", "general"]  # a caption of a held-out picture, or a prompt of other things
    base_score: float | None  # of the judge; None where there is none, or where it gave no number
    tuned_score: float | None
    base_file: str
    tuned_file: str
    nearest_name: str = ""  # training picture that the tuned model's sample is nearest to
    nearest_file: str = ""
    nearest_similarity: float = 0.0
    broken: str = ""  # what is wrong with the tuned model's sample: blank, saturated, not a number


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean with its 95 % interval over `count` independent units (prompts, pictures)."""

    mean: float
    low: float
    high: float
    count: int


AXIS_NAMES = (
    "prompt", "likeness", "production", "copies", "held-out loss", "words", "variety", "forgetting", "broken", "parts", "details",
)  # fmt: skip
Outcome = Literal["won", "lost", "even", "cannot judge"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AxisResult:
    """One axis of the evidence: the tuned model against its base."""

    name: str  # one of AXIS_NAMES
    role: Literal["target", "guard", "information"]
    outcome: Outcome
    unit: str
    base: float | None = None
    tuned: float | None = None
    interval: Interval | None = None  # of the paired difference, or of the tuned model's own figure where there is no base's
    required: bool = False  # a guard without which nothing is promoted
    sentence: str
    advice: str = ""  # what to give so that it can be judged
    needed: int | None = None  # about how many held-out prompts (or pictures) would decide it
    needs: Literal["prompts", "pictures"] = "prompts"
    details: dict[str, Any] = field(default_factory=dict)  # figures of its own, for the report


Decision = Literal["promote", "hold", "cannot tell"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the axes come to."""

    decision: Decision
    guards: tuple[str, ...]  # axes that forbid a promotion
    decided_by: tuple[str, ...]  # axes that the decision follows from
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A GPU that can be had for money."""

    name: str
    memory_gib: float
    tflops: float  # dense bf16
    dollars_an_hour: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    """Where the held-out losses of a training go."""

    answer: Literal["improving", "flat", "overfits", "worsens", "cannot tell"]
    sentence: str
    best_step: int
    change: Interval  # of the loss since the base, as a share of the base's: below zero is better
    bands: dict[str, Interval]  # the same by band of noise


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """One line of a model's append-only release record."""

    number: int
    action: Literal["promote", "rollback"]
    version: str
    at: str
    reason: str
