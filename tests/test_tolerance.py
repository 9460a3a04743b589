"""The tolerance of figures: what is true is seldom said to differ, what was lost is found; simulated."""

import numpy as np
import pytest

from zoo.measurement.tolerance import TURNED, printed, tolerance

TRIALS = 20_000


def turned(rng, samples, share=TURNED):
    """By how much figures move where another decoder turns images, as often for better as for worse."""
    changed = rng.binomial(samples, share, TRIALS)
    return (2 * rng.binomial(changed, 0.5) - changed) / samples


@pytest.mark.parametrize("samples", [1, 3, 10, 50, 450, 5_000, 50_000])
@pytest.mark.parametrize("digits", [3, 4])
def test_at_most_one_true_claim_in_a_hundred_is_said_to_differ(samples, digits):
    rng = np.random.default_rng(samples)
    right = rng.binomial(samples, 0.8, TRIALS) / samples
    claims = right.round(digits)

    apart = np.abs(right + turned(rng, samples) - claims)
    assert (apart > tolerance(samples, turned=TURNED, rounding=10.0**-digits) + 1e-12).mean() <= 0.01


def test_a_loss_of_one_point_on_imagenet_is_found_whatever_the_decoder_turns():
    rng = np.random.default_rng(0)
    claim = 0.80341
    apart = np.abs(round(claim, 3) - (claim - 0.01 + turned(rng, 50_000)))

    assert (apart > tolerance(50_000, turned=TURNED, rounding=printed(round(claim, 3)))).mean() >= 0.99


@pytest.mark.parametrize(("share", "samples"), [(0.8, 100), (0.99, 1_000), (0.5, 10_000)])
def test_a_draw_of_the_images_agrees_with_the_figure_of_all_of_them(share, samples):
    rng = np.random.default_rng(samples)
    drawn = rng.binomial(samples, share, TRIALS) / samples + turned(rng, samples)

    assert (np.abs(drawn - share) > tolerance(samples, turned=TURNED, drawn=share)).mean() <= 0.01


def test_of_the_same_pixels_one_image_may_turn_and_no_two():
    apart = np.arange(3) / 450

    assert (apart <= tolerance(450) + 1e-12).tolist() == [True, True, False]
