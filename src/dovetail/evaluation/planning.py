"""How to spend a time budget on samples: which numbers of prompts and seeds tell most."""

from dataclasses import dataclass

GENERAL_SHARE = 0.25  # of the samples, for what was forgotten
LEAST_GENERAL, MOST_GENERAL = 8, 32
MOST_SEEDS = 16  # further ones say nothing new: the spread between prompts stays
MODELS = 2  # the base and the tuned one


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplePlan:
    """How many samples are taken of what."""

    prompts: int  # different held-out captions
    seeds: int  # samples of each
    general: int  # general prompts, one sample each

    @property
    def samples(self) -> int:
        """Of both models together."""
        return MODELS * (self.prompts * self.seeds + self.general)


def plan_within(minutes: float, seconds_per_sample: float, prompts: int, general: int) -> SamplePlan:
    """The plan with the most power that fits into `minutes`, where `prompts` and `general` are what there is.

    The variance of a mean over n prompts with s seeds each is (between + within / s) / n: for a given n x s it is least with as many
    prompts as there are. Seeds grow only after all prompts are in. At least one prompt with one seed is always planned.
    """
    budget = int(minutes * 60 / max(seconds_per_sample, 1e-9)) // MODELS
    others = min(general, MOST_GENERAL, max(LEAST_GENERAL, int(budget * GENERAL_SHARE)), max(0, budget - 1))
    left = max(1, budget - others)
    chosen = max(1, min(prompts, left)) if prompts else 0
    seeds = max(1, min(MOST_SEEDS, left // chosen)) if chosen else 1
    return SamplePlan(prompts=chosen, seeds=seeds, general=others)
