"""Writes the rotary frequencies and angles of transformers: python make.py reference.json

With transformers 5.23.0 and torch 2.11.0 on a CPU.
"""

import json
import sys

import torch
import transformers
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

POSITIONS = [0, 1, 17, 1000, 8000, 100000]
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}
CASES = [
    {"head_dim": 64, "rope_theta": 10000.0, "rope_scaling": None},
    {"head_dim": 64, "rope_theta": 100000, "rope_scaling": None},
    {"head_dim": 128, "rope_theta": 500000.0, "rope_scaling": LLAMA3},
    {"head_dim": 64, "rope_theta": 500000.0, "rope_scaling": {**LLAMA3, "factor": 32.0}},
    {"head_dim": 128, "rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 4.0}},
    {"head_dim": 96, "rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 3.0}},
]


def main(out):
    cases = []
    for case in CASES:
        config = LlamaConfig(hidden_size=2 * case["head_dim"], num_attention_heads=2, **case)
        rotary = LlamaRotaryEmbedding(config)
        cos, sin = rotary(torch.zeros(1, dtype=torch.float32), torch.tensor([POSITIONS]))
        half = case["head_dim"] // 2
        cases.append({**case, "inv_freq": rotary.inv_freq.tolist(), "cos": cos[0, :, :half].tolist(),
                      "sin": sin[0, :, :half].tolist()})
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    with open(out, "w") as file:
        json.dump({"versions": versions, "positions": POSITIONS, "cases": cases}, file)
        file.write("\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
