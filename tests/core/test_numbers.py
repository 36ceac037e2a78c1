"""Diffusion and randomness against the libraries and cases that are known."""

import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.training_utils import compute_snr

from dovetail.core import diffusion, randomness


@pytest.fixture
def scheduler() -> DDIMScheduler:
    return DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, rescale_betas_zero_snr=True)


def _drawn() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(5, 4, 8, 8), torch.randn(5, 4, 8, 8), torch.tensor([0, 17, 500, 998, 999])


def test_noisy_latents_are_those_of_diffusers(scheduler: DDIMScheduler) -> None:
    clean, noise, t = _drawn()
    torch.testing.assert_close(diffusion.noisy(clean, noise, t, scheduler.alphas_cumprod), scheduler.add_noise(clean, noise, t))


def test_velocity_is_that_of_diffusers(scheduler: DDIMScheduler) -> None:
    clean, noise, t = _drawn()
    ours = diffusion.target(clean, noise, t, scheduler.alphas_cumprod, "v_prediction")
    torch.testing.assert_close(ours, scheduler.get_velocity(clean, noise, t))


def test_the_other_targets_are_the_noise_and_the_clean_latents(scheduler: DDIMScheduler) -> None:
    clean, noise, t = _drawn()
    assert torch.equal(diffusion.target(clean, noise, t, scheduler.alphas_cumprod, "epsilon"), noise)
    assert torch.equal(diffusion.target(clean, noise, t, scheduler.alphas_cumprod, "sample"), clean)


def test_stratified_timesteps_take_one_from_each_band_and_never_leave_the_range() -> None:
    for offsets in (torch.zeros(8), torch.full((8,), 0.999), torch.rand(8)):
        t = diffusion.stratified_timesteps(offsets, 1000)
        assert (t // 125).tolist() == list(range(8)) and t.dtype == torch.int64
    assert diffusion.stratified_timesteps(torch.tensor([0.99999994]), 1000).tolist() == [999]


def test_probe_timesteps_are_the_middles_of_their_bands() -> None:
    assert diffusion.probe_timesteps(4, 1000).tolist() == [125, 375, 625, 875]


def test_sampled_latents_have_mean_and_spread_of_diffusers_distribution() -> None:
    moments = torch.cat(
        [torch.randn(2, 4, 3, 3), torch.tensor([-50.0, -1.0, 0.5, 40.0]).view(1, 4, 1, 1).expand(2, 4, 3, 3)], dim=1
    )
    theirs = DiagonalGaussianDistribution(moments)
    torch.testing.assert_close(diffusion.sampled_latents(moments, torch.zeros(2, 4, 3, 3), 0.5), theirs.mean * 0.5)
    noise = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(diffusion.sampled_latents(moments, noise, 0.5), (theirs.mean + theirs.std * noise) * 0.5)


def test_loss_is_the_mean_square_of_each_sample_in_float32() -> None:
    wanted = torch.zeros(2, 1, 2, 2)
    said = torch.stack([torch.ones(1, 2, 2), torch.full((1, 2, 2), 3.0)]).bfloat16()
    losses = diffusion.loss_per_sample(said, wanted)
    assert losses.tolist() == [1.0, 9.0] and losses.dtype == torch.float32


def test_snr_is_that_of_diffusers(scheduler: DDIMScheduler) -> None:
    t = torch.tensor([0, 17, 500, 998])
    torch.testing.assert_close(diffusion.snr(t, scheduler.alphas_cumprod), compute_snr(scheduler, t), rtol=1e-4, atol=0)
    assert diffusion.snr(torch.tensor([999]), scheduler.alphas_cumprod).item() == 0


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_min_snr_weighs_the_error_of_the_clean_latents_alike_whatever_is_predicted(
    scheduler: DDIMScheduler, prediction: diffusion.Prediction
) -> None:
    """An error d of the clean latents is one of d * snr**0.5 of the noise, and of d * (snr + 1)**0.5 of v."""
    t = torch.tensor([5, 300, 700, 990])
    a = scheduler.alphas_cumprod[t]
    squared = {"epsilon": a / (1 - a), "v_prediction": 1 / (1 - a), "sample": torch.ones(4)}[prediction]
    weights = diffusion.min_snr_weights(t, scheduler.alphas_cumprod, prediction, 5.0)
    torch.testing.assert_close(weights * squared, (a / (1 - a)).clamp(max=5.0), rtol=1e-3, atol=1e-6)


def test_min_snr_at_a_zero_terminal_is_a_number_for_every_target(scheduler: DDIMScheduler) -> None:
    t = torch.tensor([999])
    found = {
        p: diffusion.min_snr_weights(t, scheduler.alphas_cumprod, p, 5.0).item() for p in ("epsilon", "v_prediction", "sample")
    }
    assert found == {"epsilon": 1.0, "v_prediction": 0.0, "sample": 0.0}


def test_every_picture_is_seen_once_an_epoch_in_another_order_each_time() -> None:
    places = [p for step in range(14) for p in randomness.position(step, 3, 7, seed=4)]
    orders = [[i for i, e in places if e == epoch] for epoch in range(6)]
    assert all(sorted(order) == list(range(7)) for order in orders)
    assert len({tuple(o) for o in orders}) > 1


def test_a_batch_larger_than_the_collection_goes_through_it_several_times() -> None:
    places = randomness.position(0, 8, 3, seed=1)
    assert sorted(i for i, e in places if e == 0) == [0, 1, 2] and {e for _, e in places} == {0, 1, 2}


def test_what_a_step_learns_from_does_not_depend_on_what_was_asked_before() -> None:
    forward = [randomness.position(s, 4, 9, 2) for s in range(20)]
    assert [randomness.position(s, 4, 9, 2) for s in reversed(range(20))] == forward[::-1]
    assert randomness.position(0, 9, 9, 2) != randomness.position(0, 9, 9, 3)


def test_draws_depend_on_their_names_alone() -> None:
    def draw(*names: str | int) -> float:
        return torch.rand(1, generator=randomness.generator(*names)).item()  # type: ignore[arg-type]

    first = draw(0, "noise", 5)
    torch.rand(100)
    assert draw(0, "noise", 5) == first
    assert len({draw(0, "noise", 5), draw(1, "noise", 5), draw(0, "noise", 6), draw(0, "order", 5), draw(0, "noise5")}) == 5
