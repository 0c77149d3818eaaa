"""Prints the word spoken in a recording: `python example.py RECORDING`; needs onnxruntime and soundfile."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import soundfile

if __name__ == "__main__":
    here = Path(__file__).parent
    told = json.loads((here / "labels.json").read_text(encoding="utf-8"))
    sound, rate = soundfile.read(sys.argv[1], dtype="float32", always_2d=True)
    if rate != told["sample_rate"]:
        sys.exit(f"{sys.argv[1]} has {rate} Hz; the model hears {told['sample_rate']} Hz")
    mono = sound.mean(axis=1)[: told["window"]]
    clip = np.zeros((1, told["window"]), np.float32)  # shorter recordings are padded with silence, as in training
    clip[0, : len(mono)] = mono
    (logits,) = onnxruntime.InferenceSession(here / "model.onnx").run(["logits"], {"waveform": clip})
    print(told["labels"][int(logits[0].argmax())])
