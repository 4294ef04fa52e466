"""Writes golden vectors of the common layout that the published ones do not hold: python make.py FOLDER

Other lengths, paddings, intervals and tolerances, and numbers that are none. Texts and numbers are made up; what is expected is
worked out here with torch 2.11.0, and for Vera with transformers 5.23.0.
"""

import json
import math
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import T5Config, T5EncoderModel

torch.manual_seed(0)
EOS, PAD, IGNORED = 1, 0, -100


def number(x):
    return None if math.isnan(x) else x


def letters():
    """Seven choices, whose letters go beyond those of the published files."""
    ids = {"A": 71, "B": 272, "C": 205, "D": 309, "E": 262, "F": 377, "G": 350}
    slots = [[ids[letter], EOS] for letter in ids] + [[EOS, PAD]]
    expected = {
        "choice_first_token_ids": [[slot[0] for slot in slots]],
        "is_padding_choice": [[slot[0] == EOS for slot in slots]],
        "choice_ids": [slots],
        "choice_mask": [[[int(i != PAD) for i in slot] for slot in slots]],
        "answer_labels": [[ids["F"], EOS]],
    }
    case = {"cap": 8, "max_answer_len": 2, "choices": [list(ids)], "answers": ["F"], "expected": expected}
    separators = {"knowledge": {"ids": [16113, EOS]}, "answer": {"ids": [11801, EOS]}}
    return {"tolerance": "exact", "separators": separators, "prompt_cases": [], "letter_cases": [case]}


def sampling(top_k, vocab=60):
    logits = torch.randn(2, vocab, dtype=torch.float64)
    kept = logits / 0.7
    if top_k != 0:
        kept = kept.masked_fill(kept < kept.topk(50 if top_k is None else top_k).values[:, -1:], -math.inf)
    probs = kept.softmax(-1)
    expected = {"probs": probs.tolist(), "kept": (probs > 0).int().tolist(), "greedy_token": logits.argmax(-1).tolist()}
    return {"name": f"top_k {top_k}", "logits": logits.tolist(), "temperature": 0.7, "top_k_argument": top_k,
            "top_p_argument": None, "decoder_length_so_far": 5, "min_length": 3, "eos_id": EOS, "expected": expected}


def mean_nll():
    """Labels that are padded with what losses leave out."""
    ids = [[[4, EOS], [5, EOS], [EOS, IGNORED]], [[6, EOS], [7, EOS], [8, EOS]]]
    logits = torch.randn(2, 3, 2, 11, dtype=torch.float64)
    log_probs = logits.log_softmax(-1)
    scores = torch.full((2, 3), -1e9, dtype=torch.float64)
    for row in range(2):
        for slot in range(3):
            if ids[row][slot][0] != EOS:
                scores[row, slot] = sum(log_probs[row, slot, t, i] for t, i in enumerate(ids[row][slot])) / 2
    probs = scores.softmax(-1)
    preds = probs.argmax(-1)
    expected = {"choice_scores": scores.tolist(), "choice_probs": probs.tolist(), "preds": preds.tolist(),
                "correct": [int(p == 0) for p in preds]}
    case = {"choice_ids": ids, "answer_index": [0, 0], "logits": logits.tolist(), "expected": expected}
    return {"tolerance": 1e-9, "cases": [case]}


def quark_loss():
    """Rows of different lengths, padded with -100; one tolerance for values and gradients."""
    labels = torch.tensor([[9, 4, 5, 1, -100], [8, 6, 1, -100, -100]])
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]])
    vocab, kl_vocab, kl_coef, entropy_coef = 10, 8, 0.1, 0.06
    policy = torch.randn(2, 5, vocab, dtype=torch.float64, requires_grad=True)
    reference = torch.randn(2, 4, vocab, dtype=torch.float64)
    response, real = labels[:, 1:].clamp(min=0), mask[:, 1:].double()
    logits = policy[:, 1:]
    log_p = logits.log_softmax(-1)
    lm = -log_p.gather(-1, response.unsqueeze(-1)).squeeze(-1) * real
    entropy = -(log_p.exp() * log_p).sum(-1) * real
    p, r = logits[..., :kl_vocab].log_softmax(-1), reference[..., :kl_vocab].log_softmax(-1)
    kl = (p.exp() * (p - r)).sum(-1) * real
    count = real.sum()
    total = (lm + kl_coef * kl - entropy_coef * entropy).sum() / count
    total.backward()
    expected = {
        "token_lm_loss": lm.tolist(), "token_kl": kl.tolist(), "token_entropy": entropy.tolist(),
        "lm_loss": (lm.sum() / count).item(), "kl_loss": (kl.sum() / count).item(),
        "entropy": (entropy.sum() / count).item(), "total_loss": total.item(),
        "stat_objective_kl": (kl.sum() / 2).item(), "stat_objective_entropy": (lm.sum() / 2).item(),
        "grad_policy_logits_l2": policy.grad.norm().item(), "grad_policy_logits": policy.grad.tolist(),
    }
    case = {"n_control_codes": 1, "vocab": vocab, "kl_vocab": kl_vocab, "kl_coef": kl_coef, "entropy_coef": entropy_coef,
            "task_loss_coef": 0.0, "decoder_labels": labels.tolist(), "decoder_mask": mask.tolist(),
            "policy_logits": policy.tolist(), "ref_logits": reference.tolist(), "expected": expected}
    return {"tolerance": 2e-5, "cases": [case], "controllers": []}


def consistency():
    """Labels padded with -100, and their logits with them."""
    ids = [[4, 5, EOS], [6, EOS, IGNORED]]
    case = {"dataset": "quarel", "choices": ["(A)", "(B)"], "gold_index": 1, "label_token_ids": ids}
    probs = {}
    for name in ("i2o", "ir2o"):
        logits = torch.randn(2, 3, 9, dtype=torch.float64)
        log_probs = logits.log_softmax(-1).gather(-1, torch.tensor(ids).clamp(min=0).unsqueeze(-1)).squeeze(-1)
        log_probs[1, 2] = 0.0
        means = torch.stack([log_probs[0].mean(), log_probs[1, :2].mean()])
        probs[name] = means.softmax(-1)
        case[f"{name}_logits"] = logits.tolist()
        case[f"{name}_option_token_logprobs"] = log_probs.tolist()
        case[f"{name}_option_probs"] = probs[name].tolist()
    case["continuous"] = (probs["ir2o"][1] - probs["i2o"][1]).item()
    right = {name: int(p.argmax()) == 1 for name, p in probs.items()}
    case["discrete"] = -1.0 if not right["ir2o"] else 0.0 if right["i2o"] else 1.0
    return {"tolerance": {"relative": 1e-6, "absolute": 1e-8, "why": "written with all digits"}, "numeric": [case], "strings": []}


def evaluation():
    """Statistics of nothing."""
    correlation = [{"correct": [1, 0], "score": [None, None], "correlation_ratio": None},
                   {"correct": [], "score": [], "correlation_ratio": None}]
    return {"tolerance": 1e-6, "other_sources": [], "training_eval": [], "nrg": [], "correlation": correlation}


def control_tokens():
    """A product whose first reward has no quantiles of its own."""
    names = [f"_TOKEN1_{i:05}" for i in range(4)] + ["WRONG_LABEL", "CORRECT_LABEL"]
    case = {
        "config": {"reward_name": "accuracy,plausibility", "n_extra_tokens": "4,5", "task_correctness": "no", "reward_as_product": 1,
                   "train_option": {"accuracy": "quark", "plausibility": "quark"}},
        "tokens_added_in_order": names, "token_ids": {name: 50 + i for i, name in enumerate(names)},
        "base_tokenizer_len": 50, "embedding_rows_before_after": [64, 56], "num_control_codes": 1,
        "best_control_code_ids": [50],
    }
    return {"tokens": [case], "staged": [], "collator": [], "embedding_init": [], "generate_arguments": []}


def data_pool():
    """The same in the pool: blocks of the product, where equal samples keep their own positions."""
    prompts = ["p1", "p2", "p2", "p3", "p4"]
    responses = ["a", "b", "b", "c", "d"]
    plausibility = [0.9, 0.8, 0.8, 0.3, 0.7]
    right = [1, 1, 1, 1, 0]
    order = [0, 1, 2, 3, 4]
    expected = {
        "prompts": [prompts[i] for i in order], "responses": [responses[i] for i in order],
        "cat_tokens": ["_TOKEN1_00000", "_TOKEN1_00000", "_TOKEN1_00001", "_TOKEN1_00001", "_TOKEN1_00001"],
        "tc_tokens": ["CORRECT_LABEL" if right[i] else "WRONG_LABEL" for i in order],
        "gold_label_sequences": ["g"] * 5, "task_correctness": [right[i] for i in order],
        "scores": {"plausibility": [plausibility[i] for i in order]},
    }
    add = {"prompts": prompts, "responses": responses, "gold_label_sequences": ["g"] * 5, "scores": {"plausibility": plausibility},
           "task_correctness": right}
    config = {"rewards": ["accuracy", "plausibility"], "n_extra_tokens": [2, 5], "filter_scores": [-1, -1],
              "train_options": ["quark", "quark"], "product": True}
    return {"cases": [{"config": config, "adds": [add], "expected": [expected]}]}


def pipeline():
    """Rounds at steps that are no multiples of the published interval, and sampling without top-k."""
    rows = {"prompts": ["p"], "responses": ["A reason. So the answer is (A)."], "label_sentences": ["So the answer is (A)."]}
    empty = {"prompts": [], "responses": [], "label_sentences": []}
    added = {**rows, "task_correctness": [1], "accuracy_scores": [1]}
    nothing = {**empty, "task_correctness": [], "accuracy_scores": []}
    common = {"step_to_start_sampling": 0, "sample_at_start": 1, "use_only_correct": 0, "sampled": rows, "expert": empty}
    ingest = [
        {**common, "step": 1500, "sampled_from": "policy", "added": added},
        {**common, "step": 1500, "sample_interval": 500, "sampled_from": "policy", "added": added},
        {**common, "step": 1500, "sample_interval": 1000, "sampled_from": None, "added": nothing},
    ]
    logits = torch.randn(7, dtype=torch.float64)
    probs = logits.softmax(-1)
    keep, total = [], 0.0
    for i in probs.argsort(descending=True).tolist():
        if total < 0.8:
            keep.append(i)
        total += probs[i].item()
    keep.sort()
    filters = [{"logits": logits.tolist(), "temperature": 1.0, "top_k": 0, "top_p": 0.8, "kept_ids": keep,
                "probs": {str(i): (probs[i] / probs[keep].sum()).item() for i in keep}}]
    return {"tolerance": 1e-9, "silver_filter": [], "sampling_filters": filters, "min_length": [], "lr_schedule": [],
            "ingest": ingest}


def vera(folder):
    """A verifier that reads eight tokens."""
    words = ["<pad>", "</s>", "<unk>", "birds", "have", "wings", "stones", "and", "no", "they", "fly", "."]
    extra = ["<extra_id_2>", "<extra_id_1>", "<extra_id_0>"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words + extra)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", EOS)])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = T5Config(vocab_size=len(words) + 3, d_model=8, d_kv=4, d_ff=16, num_layers=2, num_heads=2, dropout_rate=0.0,
                      initializer_factor=0.5, architectures=["T5EncoderModel"])
    model = T5EncoderModel(config).eval()
    weight_row = len(words) + 2
    with torch.no_grad():
        model.shared.weight[weight_row - 1, 0], model.shared.weight[weight_row - 2, 0] = 0.3, 1.5
    config.save_pretrained(folder)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if "embed_tokens" not in name}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    texts = ["birds have wings .", "stones have no wings and they fly no more .", "birds and stones have wings and they fly ."]
    maximum, tensors = 8, {}
    ids = [tokenizer.encode(text).ids for text in texts]
    ids = [row if len(row) <= maximum else row[: maximum - 1] + [EOS] for row in ids]
    width = max(map(len, ids))
    padded = torch.tensor([row + [PAD] * (width - len(row)) for row in ids])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids])
    with torch.no_grad():
        states = model(input_ids=padded, attention_mask=mask).last_hidden_state
    last = [len(row) - 1 for row in ids]
    pooled = states[torch.arange(len(ids)), last]
    weight = model.shared.weight.detach()
    logit = pooled @ weight[weight_row] + weight[weight_row - 1, 0]
    tensors = {"v.input_ids": padded, "v.attention_mask": mask, "v.states": states, "v.pooled": pooled}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "reference.safetensors")
    batch = {"texts": texts, "input_ids": "v.input_ids", "attention_mask": "v.attention_mask", "last_index": last,
             "encoder_last_hidden": "v.states", "pooled": "v.pooled", "logit": logit.tolist(),
             "score_raw": logit.sigmoid().tolist(), "score_calibrated": (logit / 1.5).sigmoid().tolist(), "hidden": {}}
    distances = list(range(-20, 21))
    buckets = model.encoder.block[0].layer[0].SelfAttention._relative_position_bucket(
        torch.tensor(distances), bidirectional=True, num_buckets=32, max_distance=128).tolist()
    return {"format": 1, "name": "vera_short", "kind": "vera",
            "relative_position_buckets": {"from": distances[0], "to": distances[-1], "bidirectional": buckets},
            "vera": {"max_length": maximum, "batches": [batch]}}


def main(folder):
    folder = Path(folder)
    kinds = {
        "crystal/prompt_assembly": letters(),
        "crystal/sampling_filter": {"tolerance": {"relative": 1e-6, "absolute": 1e-9},
                                    "cases": [sampling(0), sampling(None), sampling(3)]},
        "crystal/choice_scoring_mean_nll": mean_nll(),
        "mario/quark_loss": quark_loss(),
        "mario/consistency": consistency(),
        "mario/evaluation": evaluation(),
        "mario/control_tokens": control_tokens(),
        "mario/data_pool": data_pool(),
        "mario/pipeline": pipeline(),
    }
    (folder / "models/vera_short").mkdir(parents=True, exist_ok=True)
    kinds["models/vera_short/cases"] = vera(folder / "models/vera_short")
    for name, content in kinds.items():
        path = folder / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
