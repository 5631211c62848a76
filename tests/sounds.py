"""Generated sound files: class folders of tones, low and high, and ESC-50's folder in miniature."""

from pathlib import Path

import numpy as np
import soundfile

CLASSES = {"high": 3000.0, "low": 400.0}


def tone(pitch: float, seed: int, *, seconds: float = 0.3, rate: int = 16_000) -> np.ndarray:
    """A tone near a pitch with some noise, in -1..1."""
    chance = np.random.RandomState(seed)
    time = np.arange(int(seconds * rate)) / rate
    wave = 0.3 * np.sin(2 * np.pi * pitch * chance.uniform(0.8, 1.2) * time)
    return (wave + 0.02 * chance.standard_normal(len(time))).astype(np.float32)


def write(file: Path, waveform: np.ndarray, rate: int = 16_000, **options: str) -> Path:
    """Write a sound; the folder is made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(file, waveform, rate, **options)
    return file


def class_folders(root: Path, train: int = 8, val: int = 4, *, rate: int = 16_000) -> Path:
    """`train/` and `val/` with a folder per class, and so many sounds in each."""
    for split, count in (("train", train), ("val", val)):
        for number, (name, pitch) in enumerate(CLASSES.items()):
            for index in range(count):
                seed = 1000 * number + index + (500 if split == "val" else 0)
                write(root / split / name / f"{index}.wav", tone(pitch, seed, rate=rate), rate)
    return root


def esc50(root: Path, folds: int = 2, per_fold: int = 2, *, rate: int = 44_100) -> Path:
    """ESC-50's folder with a few clips of two classes in every fold."""
    lines = ["filename,fold,target,category,esc10,src_file,take"]
    for fold in range(1, folds + 1):
        for target, (category, pitch) in enumerate(CLASSES.items()):
            for take in range(per_fold):
                name = f"{fold}-{100 * take}-A-{target}.wav"
                write(root / "audio" / name, tone(pitch, 100 * fold + 10 * take + target, rate=rate), rate)
                lines.append(f"{name},{fold},{target},{category},True,{take},A")
    (root / "meta").mkdir(parents=True, exist_ok=True)
    (root / "meta/esc50.csv").write_text("\n".join(lines) + "\n")
    return root
