"""How long a training is planned to be, how often it is measured, and how many rehearsal pictures that is worth.

Everything follows from counts, not from clocks: the same folder gives the same plan on any machine. What an operation costs
is counted in passes, one picture once through the U-Net; forward and backward together are three.
"""

import math

PICTURES_PER_ROOT = 990  # pictures learned from, rehearsal included, for each square root of a distinct training picture
FEWEST_STEPS, MOST_STEPS, USUAL_BATCH = 150, 2_500, 8
MEASUREMENTS = 20  # of the held-out loss over a plan, at most
MEASURING_SHARE = 0.05  # of the passes of the steps may go into held-out losses
MOST_MEASURED = 32  # validation pictures in each of them
TRAINING_PASSES = 3
REHEARSAL_SHARE = 0.25  # of the passes of the training may go into painting rehearsal pictures
MOST_REHEARSAL, REHEARSAL_BATCH = 384, 16
MOST_MOVED, ALL_MOVED = 12, 512  # moved views of one picture, and of all together
GUIDED_STEPS, FEW_STEPS = 20, 4  # of a rehearsal picture: two passes each with guidance, one without


def steps(pictures: int, batch: int) -> int:
    """Optimizer steps of `batch` pictures planned for so many distinct training pictures.

    They grow with the square root of the pictures: few pictures are seen often, many are not each seen as often.
    """
    wanted = math.ceil(PICTURES_PER_ROOT * math.sqrt(max(1, pictures)) / batch)
    least, most = (math.ceil(bound * USUAL_BATCH / batch) for bound in (FEWEST_STEPS, MOST_STEPS))
    return min(max(wanted, least), most)


def measured_pictures(validation: int) -> int:
    """Validation pictures that the curve is measured on."""
    return min(validation, MOST_MEASURED)


def measuring_interval(planned: int, batch: int, validation: int, timesteps: int) -> int:
    """Steps between two held-out losses: a 20th of the plan, or more where that would take over 5 % of its passes."""
    passes = measured_pictures(validation) * timesteps
    affordable = math.ceil(passes / (MEASURING_SHARE * TRAINING_PASSES * batch))
    return min(planned, max(1, math.ceil(planned / MEASUREMENTS), affordable))


def rehearsal_pictures(pictures_learned: int, few_steps: bool) -> int:
    """Rehearsal pictures, in whole batches, that take at most a quarter of the training's passes to paint."""
    affordable = int(REHEARSAL_SHARE * TRAINING_PASSES * pictures_learned / (FEW_STEPS if few_steps else 2 * GUIDED_STEPS))
    return min(MOST_REHEARSAL, max(1, affordable // REHEARSAL_BATCH) * REHEARSAL_BATCH)


def moved_views(pictures: int) -> int:
    """Moved views of each training picture: few pictures are seen in more ways, so that they are not learned by heart."""
    return min(MOST_MOVED, ALL_MOVED // max(1, pictures))
