"""`dovetail.toml`: one table a stage. Unknown keys are refused by name; every flag of the CLI is a key here."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dovetail import training_plan
from dovetail.records import Precision, Schedule

HELD_OUT_TIMESTEPS = 8  # fixed ones of a held-out loss


class Table(BaseModel):
    """A table of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class Sourcing(Table):
    """Where are the pairs, whose are they, may we learn from them?"""

    folder: str = Field("", description="folder of pictures and captions (metadata.jsonl, metadata.csv or .txt beside each)")
    caption: str = Field(
        "", description="for pictures that have none; for all of one thing, as in DreamBooth: a photo of sks dog"
    )
    licence: str = Field("not stated", description="licence of pictures that do not state their own")
    author: str = Field("not stated", description="author of pictures that do not name their own")
    origin: str = Field("", description="where the pictures come from; empty means the folder itself")


class Gathering(Table):
    """Bring the bytes home."""

    max_bytes: int = Field(100_000_000, gt=0, description="a larger file is rejected")


class Wrangling(Table):
    """Keep what is worth learning, say why the rest is not."""

    min_side: int = Field(32, gt=0, description="pixels; a picture with a shorter side is rejected")
    max_pixels: int = Field(100_000_000, gt=0, description="checked in the header, before anything is decoded")
    max_aspect_ratio: float = Field(4.0, ge=1, description="longer side over shorter side")
    background: str = Field("#ffffff", pattern="^#[0-9a-fA-F]{6}$", description="shows through transparent pixels")
    max_caption_characters: int = Field(2_000, gt=0, description="a longer caption is rejected, not cut")


class Buildout(Table):
    """Train / validation / test, no near-duplicate across a border."""

    validation_share: float = Field(0.15, ge=0, lt=0.5)
    test_share: float = Field(0.2, ge=0, lt=0.5)
    near_duplicate_bits: int = Field(
        6, ge=0, le=32, description="perceptual hashes that differ in fewer bits are compared by colour"
    )
    seed: int = 0


class Processing(Table):
    """Pictures and words to latents and embeddings."""

    resolution: int | None = Field(None, gt=0, description="pixels; empty means the base's own")
    centre_crop: bool = Field(True, description="else a random crop, another one each epoch")
    random_flip: bool = Field(True, description="half of the time a picture is seen mirrored")
    moved_views: int | None = Field(
        None,
        ge=0,
        description="views of each training picture at another scale and place, beside the whole; empty means 12 where "
        "pictures are few and none where they are many",
    )
    buckets: bool = Field(False, description="cut each picture to the nearest of several shapes of one area, not to a square")
    rehearsal_pictures: int | None = Field(
        None,
        ge=0,
        description="pictures the base paints of other prompts, learned along against forgetting; empty means 384, or as many "
        "as take no more than a quarter of the training's work",
    )
    rehearsal_prompts: list[str] = Field(
        default=[],
        description="empty means those that the base ships, else the dataset's own captions are not rehearsed",
    )

    def planned(self, pictures: int, training: "Training", few_steps: bool) -> "Processing":
        """This processing before that training: nothing is empty that follows from it.

        `few_steps` says whether the base has a few-step version to paint with.
        """
        steps, batch = training.planned(pictures, 0).steps, training.batch_size * training.gradient_accumulation_steps
        count = training_plan.rehearsal_pictures(steps * batch, few_steps) if training.rehearsal_share else 0
        filled = {"rehearsal_pictures": count, "moved_views": training_plan.moved_views(pictures)}
        return self.model_copy(update={k: v for k, v in filled.items() if getattr(self, k) is None})


class Training(Table):
    """Teach the U-Net."""

    method: Literal["full", "lora", "dora", "lokr", "textual_inversion"] = "full"
    text_encoder: bool = Field(False, description="teach the text encoder along (both of an XL), by adapters of the same kind")
    steps: int | None = Field(
        None, gt=0, description="optimizer steps at most; empty means as many as the pictures call for (docs/training.md)"
    )
    batch_size: int = Field(8, gt=0, description="pictures a forward pass")
    gradient_accumulation_steps: int = Field(1, gt=0)
    learning_rate: float | None = Field(
        None, gt=0, description="empty means the one that came with the base, else 1e-5 full and 1e-4 LoRA"
    )
    lr_scheduler: Schedule = "cosine"
    warmup_steps: int = Field(20, ge=0)
    max_grad_norm: float | None = Field(1.0, gt=0, description="gradients are clipped to it; empty means they are not")
    weight_decay: float = Field(0.01, ge=0)
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    adam_epsilon: float = Field(1e-8, gt=0)
    ema_decay: float = Field(
        0.99, ge=0, lt=1, description="of the averaged weights, which are the ones published; 0 means none are kept"
    )
    ema_on_cpu: bool = Field(False, description="keep the averaged weights in main memory")
    lora_rank: int = Field(16, gt=0, description="of LoRA, DoRA and LoKr")
    lora_alpha: int = Field(16, gt=0)
    placeholder: str = Field("<thing>", pattern=r"^\S+$", description="of textual inversion: the new word in the captions")
    placeholder_vectors: int = Field(1, gt=0, le=16, description="that the new word stands for")
    initializer: str = Field("thing", description="known words whose meaning the new one begins with")
    rehearsal_share: float = Field(0.25, ge=0, lt=1, description="of each batch, where rehearsal pictures exist")
    caption_dropout: float = Field(0.1, ge=0, lt=1)
    snr_gamma: float | None = Field(None, gt=0, description="min-SNR weighting of the loss; 5 is usual; empty means none")
    noise_offset: float = Field(0.0, ge=0, description="spread of a shift of the noise, one draw a channel; 0.1 is usual")
    input_perturbation: float = Field(0.0, ge=0, description="noise on what the U-Net sees and not on what it is asked for")
    dream: float | None = Field(None, gt=0, description="DREAM training, detail preservation 1 is usual; empty means none")
    prediction_type: Literal["epsilon", "v_prediction", "sample"] | None = Field(
        None, description="what the U-Net is to predict; empty means what it predicts already"
    )
    mixed_precision: Precision = "bf16"
    merge_micro_batches: bool = Field(
        True, description="accumulated pictures go through the U-Net together where they are small: the same mathematics"
    )
    gradient_checkpointing: bool = Field(
        False, description="recompute activations, where they would take more than a sixteenth of the device's memory"
    )
    fused_backward: bool = Field(
        False, description="update each weight within the backward pass and drop its gradient: less memory, no clipping"
    )
    compile: bool | None = Field(
        None, description="compile residual and transformer blocks; empty means on a GPU, where the training is long enough"
    )
    use_8bit_adam: bool = Field(False, description="bitsandbytes' AdamW with 8-bit state, on a GPU")
    checkpoint_every: int = Field(150, gt=0, description="optimizer steps")
    checkpoints_kept: int | None = Field(2, gt=0, description="older ones are deleted; empty means none is")
    held_out_every: int | None = Field(
        None, gt=0, description="optimizer steps between held-out losses; empty means a 20th of the steps, or what stays cheap"
    )
    published: Literal["last", "best"] = Field(
        "best",
        description="weights that are published: those of the best held-out loss (docs/training.md), or of the last step",
    )
    early_stop: int = Field(
        5, ge=0, description="end after so many held-out losses in a row that lost half of the largest fall; 0 means never"
    )
    on_nan: Literal["stop", "roll back"] = Field(
        "stop",
        description="a loss that is no number ends the training, or takes it back to the newest checkpoint at half the rate",
    )
    time_limit_minutes: float | None = Field(
        None, gt=0, description="then a checkpoint is written and the training stops; the same command goes on"
    )
    sample_every: int = Field(300, gt=0, description="optimizer steps between sample grids")
    seed: int = 0

    def planned(self, pictures: int, validation: int) -> "PlannedTraining":
        """This training for so many distinct training and validation pictures: nothing that follows from them is empty."""
        batch = self.batch_size * self.gradient_accumulation_steps
        steps = self.steps or training_plan.steps(pictures, batch)
        every = self.held_out_every or training_plan.measuring_interval(steps, batch, validation, HELD_OUT_TIMESTEPS)
        return PlannedTraining.model_validate(self.model_dump() | {"steps": steps, "held_out_every": every})

    @model_validator(mode="after")
    def _text_encoder_by_adapters(self) -> Self:
        if self.text_encoder and self.method in ("full", "textual_inversion"):
            raise ValueError("the text encoder is taught by adapters only: take method lora, dora or lokr")
        return self

    @model_validator(mode="after")
    def _no_norm_before_the_step(self) -> Self:
        if self.fused_backward and self.max_grad_norm is not None:
            raise ValueError("fused_backward cannot clip to a norm of all gradients: set max_grad_norm to nothing, or leave it")
        return self


class PlannedTraining(Training):
    """A training whose steps are known."""

    steps: int = Field(gt=0)
    held_out_every: int = Field(gt=0)


class Evaluation(Table):
    """Is the tuned model better than its base? Evidence on several axes, one rule."""

    judge: str = Field(
        "",
        description="what scores pictures against texts: a CLIP or SigLIP folder or hub id, a visual question answerer, or "
        "http://host/v1#model; empty means the base's own judge, else openai/clip-vit-base-patch32",
    )
    question_judge: str = Field(
        "",
        description="what is asked about single parts of a prompt: as `judge`; empty means the vision endpoint, else the judge",
    )
    vision_url: str = Field("", description="OpenAI-compatible endpoint of a vision model, to ask about parts: http://host/v1")
    vision_model: str = Field("", description="its name there")
    vision_key_env: str = Field("", description="environment variable that holds the endpoint's key")
    vision_timeout_seconds: float = Field(60, gt=0, description="for one answer of the endpoint")
    minutes: float | None = Field(
        None, gt=0, description="time for samples: prompts and seeds are planned to tell most; empty means the next three keys"
    )
    max_prompts: int = Field(16, gt=0, description="captions of held-out pictures that are sampled")
    seeds_per_prompt: int = Field(4, gt=0)
    other_prompts: int = Field(32, ge=0, description="general prompts, to see what was forgotten")
    steps: int = Field(20, gt=0, description="of the sampler")
    guidance_scale: float | None = Field(None, ge=1, description="empty means the one that came with the base, else 7.5")
    batch_size: int = Field(16, gt=0)
    seed: int = 1000


class Repo(Table):
    """Construct the model repository and put it into the registry."""

    name: str = Field("", description="name in the registry; empty means the folder's name")
    registry: str = Field("", description="folder of the registry; empty means $DOVETAIL_HOME/registry or ~/.dovetail/registry")
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    single_file: bool = Field(False, description="also one .safetensors with everything in it, as other tools want it")


class Endpoint(Table):
    """Answer requests."""

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535, description="0 means any free one")
    steps: int = Field(20, gt=0, description="where a request does not say")
    guidance_scale: float | None = Field(None, ge=1, description="empty means the one that came with the base, else 7.5")
    engine: Literal["auto", "torch", "bf16", "openvino"] = Field("auto", description="auto takes the fastest of a short trial")
    log: Literal["off", "json"] = Field("off", description="json: a line for each answer and picture on standard error")
    replicas: int = Field(0, ge=0, description="processes that answer, started by Ray Serve; 0 means this one, without Ray")
    base_too: bool = Field(False, description="serve the base that it was tuned from beside it, as model `base`")
    prompt: str = Field("", description="asked of the endpoint to see that it answers; empty means the first test caption")
    seed: int = 7


class Production(Table):
    """Release a published model."""

    promote: Literal["if better", "always", "never"] = "if better"
    reason: str = ""


class Config(Table):
    """The whole file."""

    base: str = Field("embedded", description="model to tune: embedded, a diffusers folder, a hub id or a .safetensors file")
    sourcing: Sourcing = Sourcing()
    gathering: Gathering = Gathering()
    wrangling: Wrangling = Wrangling()
    buildout: Buildout = Buildout()
    processing: Processing = Processing()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    repo: Repo = Repo()
    endpoint: Endpoint = Endpoint()
    production: Production = Production()
