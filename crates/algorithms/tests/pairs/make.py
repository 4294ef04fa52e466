"""Writes two small tokenizers and the token ids that TRL 1.16 makes of preference pairs with them.

In a Python environment with trl 1.16.0, transformers 5.23.0 and torch 2.11.0:

    python crates/algorithms/tests/pairs/make.py crates/algorithms/tests/pairs
"""

import json
import sys
from pathlib import Path

import transformers
import trl
from datasets import Dataset
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

NAMES = ["Ada", "Ben", "Cora", "Dora", "Emil", "Flora", "Ida", "Jack"]
QUESTION = "What is the weather where {} lives?"
CORPUS = [QUESTION.format(name) + " It is rainy. It is sunny." for name in NAMES] + [
    "The weather is rainy where Ben lives, and sunny where Ada lives.",
    "Is it sunny? It is not. Is it rainy? It is.",
    "It lives where it is sunny.\n\nWhere is it rainy?",
    "user assistant system You answer in one word.",
]

# Two templates of the common kinds: one that closes each message alike, and one that closes answers only.
HEADERS = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
BRACKETS = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}[INST] {{ message['content'] }} [/INST]"
    "{% else %} {{ message['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)


def byte_level():
    """As Llama 3 has it: bytes, a begin token, and more than one end token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(
        vocab_size=360, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    begin = tokenizer.token_to_id("<|begin_of_text|>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", begin)])
    return tokenizer, {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}, HEADERS


def metaspace():
    """As Llama 2 has it: blanks are written, one stands in front of every text."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, show_progress=False))
    tokenizer.add_special_tokens([AddedToken("<s>", special=True, normalized=False), AddedToken("</s>", special=True, normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))])
    return tokenizer, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}, BRACKETS


def user(text):
    return {"role": "user", "content": text}


def answer(text):
    return {"role": "assistant", "content": text}


def examples(eos):
    # The pairs of the guide, and what is harder: a text that has its end token, tokens that merge across the boundary,
    # characters outside the vocabulary.
    texts = [{"prompt": QUESTION.format(name), "chosen": "It is rainy.", "rejected": "It is sunny."} for name in NAMES[:3]]
    texts += [
        {"prompt": QUESTION.format("Ida"), "chosen": " It is rainy.", "rejected": " It is sunny." + eos},
        {"prompt": "It is", "chosen": " rainy where Ben lives.", "rejected": "n't sunny."},
        {"prompt": "The wea", "chosen": "ther is rainy.", "rejected": "ther is sunny."},
        {"prompt": "Is it sunny?\n", "chosen": "\nIt is not.", "rejected": "It is."},
        {"prompt": "Zürich — ☀?", "chosen": "Ja ☔", "rejected": "Nein"},
    ]
    dialogues = [
        {"prompt": [user(QUESTION.format("Ada"))], "chosen": [answer("It is rainy.")], "rejected": [answer("It is sunny.")]},
        {"prompt": [user("Is it sunny?"), answer("It is not."), user("Is it rainy?")], "chosen": [answer("It is.")],
         "rejected": [answer("It is sunny.")]},
        {"prompt": [user(" It is ")], "chosen": [answer(" rainy ")], "rejected": [answer("sunny")]},
    ]
    return texts, dialogues


def tokenized(processing_class, rows):
    config = LlamaConfig(vocab_size=len(processing_class), hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                         num_attention_heads=1)
    args = DPOConfig(output_dir="pairs", report_to=[], use_cpu=True, bf16=False, max_length=None)
    trainer = DPOTrainer(model=LlamaForCausalLM(config), ref_model=LlamaForCausalLM(config), args=args,
                         train_dataset=Dataset.from_list(rows), processing_class=processing_class)
    columns = ["prompt_ids", "chosen_ids", "rejected_ids"]
    return [{**row, **{column: done[column] for column in columns}} for row, done in zip(rows, trainer.train_dataset)]


def main(folder):
    for name, make in [("byte_level", byte_level), ("metaspace", metaspace)]:
        out = Path(folder) / name
        out.mkdir(parents=True, exist_ok=True)
        tokenizer, special, template = make()
        tokenizer.save(str(out / "tokenizer.json"))
        config = {**special, "chat_template": template, "tokenizer_class": "PreTrainedTokenizerFast"}
        (out / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
        processing_class = PreTrainedTokenizerFast.from_pretrained(out)
        texts, dialogues = examples(special["eos_token"])
        reference = {"versions": {"trl": trl.__version__, "transformers": transformers.__version__},
                     "texts": tokenized(processing_class, texts), "dialogues": tokenized(processing_class, dialogues)}
        (out / "reference.json").write_text(json.dumps(reference, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
