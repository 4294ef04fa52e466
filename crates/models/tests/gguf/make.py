"""Writes `blocks.json`: random blocks of each quantised type of GGUF, and the values that the package gguf reads from them.

    pip install gguf==0.19.0
    python crates/models/tests/gguf/make.py
"""

import json
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

# Bytes at which a block has numbers in half precision: scale and minimum.
HALVES = {"F16": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q4_K": [0, 2], "Q5_K": [0, 2],
          "Q6_K": [208]}
TYPES = ["F32", "F16", "BF16", *list(HALVES)[1:]]


def main():
    random = np.random.default_rng(0)
    cases = []
    for name in TYPES:
        kind = GGMLQuantizationType[name]
        values, size = GGML_QUANT_SIZES[kind]
        blocks = 8 if values == 1 else 2
        data = random.integers(0, 256, (blocks, size), dtype=np.uint8)
        for at in HALVES.get(name, []):
            data[:, at:at + 2] = random.normal(0, 0.1, (blocks, 1)).astype(np.float16).view(np.uint8)
        if name in ("F32", "BF16"):
            data = random.normal(0, 1, (blocks, 1)).astype(np.float32).view(np.uint8)[:, 4 - size:].copy()
        read = dequantize(data, kind) if name != "F32" else data.view(np.float32)
        assert np.isfinite(read).all() and read.size == blocks * values
        cases.append({"type": int(kind), "name": name, "blocks": data.tobytes().hex(),
                      "values": read.astype("<f4").tobytes().hex()})
    Path(__file__).with_name("blocks.json").write_text(
        "[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")


if __name__ == "__main__":
    main()
