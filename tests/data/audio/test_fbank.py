"""The filter bank is that of AST's authors, on batches of sounds of any length and under mixed precision."""

import numpy as np
import pytest
import torch

from golden_values import Golden
from vitdistill.data.audio.device import SoundOnDevice
from vitdistill.data.audio.fbank import RATE, FilterBank, frames_of, samples_of
from vitdistill.data.images.augment import Augment
from vitdistill.data.order import seed_everything_at
from vitdistill.types import InputSpec

AUDIOSET = ((-4.2677393,), (2 * 4.5689974,))


def padded(waveform: torch.Tensor, samples: int) -> torch.Tensor:
    made = torch.full((samples,), float("nan"))
    made[: len(waveform)] = waveform[:samples]
    return made


def test_golden() -> None:
    golden = Golden("ast_fbank_a")
    bins, frames = golden.hyper["num_mel_bins"], golden.hyper["target_length"]
    bank = FilterBank(bins, frames)
    waveform = padded(golden.inputs["waveform"][0], bank.samples)[None]
    golden.check("fbank", bank(waveform)[0, 0].T)
    on_device = SoundOnDevice(Augment(recipe="none"), InputSpec((1, bins, frames), *AUDIOSET, sound=True), 2)
    golden.check("normalised", on_device.eval(waveform)[0, 0].T)
    assert golden.checked == set(golden.expected)


def test_the_feature_extractor_of_transformers_gives_the_same() -> None:
    from transformers import ASTFeatureExtractor
    from transformers.utils import is_speech_available

    if is_speech_available():
        pytest.skip("with torchaudio it is another computation")
    sound = np.random.RandomState(0).standard_normal(7000).astype(np.float32) * 0.1
    extractor = ASTFeatureExtractor(max_length=60, mean=AUDIOSET[0][0], std=AUDIOSET[1][0] / 2)
    expect = torch.as_tensor(extractor(sound, sampling_rate=RATE, return_tensors="pt").input_values)[0]
    spec = InputSpec((1, 128, 60), *AUDIOSET, sound=True)
    waveform = padded(torch.from_numpy(sound), samples_of(60))[None]
    got = SoundOnDevice(Augment(recipe="none"), spec, 2).eval(waveform)[0, 0].T
    torch.testing.assert_close(got, expect, atol=5e-4 * float(expect.abs().max()), rtol=0)


def test_a_sound_is_the_same_alone_and_beside_longer_ones() -> None:
    bank = FilterBank(32, 40)
    short, long = torch.randn(3000), torch.randn(9000)
    both = bank(torch.stack((padded(short, bank.samples), padded(long, bank.samples))))
    assert frames_of(3000) == 17 and both[0, 0, :, :17].abs().min() > 0
    assert not both[0, 0, :, 17:].any(), "zeros behind the end, and not the logarithm of silence"
    alone = FilterBank(32, 17)(short[None, : samples_of(17)])
    torch.testing.assert_close(both[0, 0, :, :17], alone[0, 0], atol=2e-3, rtol=0)  # the mean is of 40 samples more
    assert both[1, 0].all()


def test_mixed_precision_leaves_the_filter_bank_in_float32() -> None:
    bank, sounds = FilterBank(16, 10), torch.randn(2, samples_of(10))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(bank(sounds), FilterBank(16, 10)(sounds))
        assert bank(sounds).dtype == torch.float32
    assert torch.equal(bank(sounds), FilterBank(16, 10)(sounds))


def test_spec_augment_sets_one_band_and_one_stretch_to_zero_before_normalisation() -> None:
    spec = InputSpec((1, 64, 100), (-5.0,), (2.0,), sound=True)
    on_device = SoundOnDevice(Augment(recipe="sound"), spec, 2)
    sounds = torch.randn(200, on_device.bank.samples)
    seed_everything_at(0, "step")
    inputs, _ = on_device.train(sounds, None)
    seed_everything_at(0, "step")
    assert torch.equal(inputs, on_device.train(sounds, None)[0]), "repeatable"
    plain = on_device.eval(sounds)
    left_out = inputs != plain
    assert torch.all(inputs[left_out] == 2.5), "(0 - mean) / std"
    bands, stretches = left_out[:, 0].all(dim=2), left_out[:, 0].all(dim=1)
    for found, size in ((bands, 64), (stretches, 100)):
        widths = found.sum(dim=1)
        assert widths.min() == 0 and 0.1875 * size - 3 <= widths.max() < 0.1875 * size
        steps = (found[:, 1:] != found[:, :-1]).sum(dim=1)
        assert steps.max() == 2, "in one piece"
        assert found.any(dim=0).float().mean() > 0.95, "anywhere"
    off = SoundOnDevice(Augment(recipe="sound", freq_mask=0.0, time_mask=0.0), spec, 2)
    assert torch.equal(off.train(sounds, None)[0], plain)
