"""The workloads of this package as one writes them with transformers, timed like `workload` and with the same output.

    python workload.py --bench gen_greedy_8 --model t5-small --threads 2

With --paced it says "ready" after the warm-up, then does one repeat for each line on standard input and prints its
seconds; the result comes at the end of the input. So two programs can take turns.

A new workload is a function in WORKLOADS: it gets a Setting and returns what one repeat does, its rows and its tokens.
One that has a loop of its own, as a trainer has, goes into LOOPS and returns that loop: it gets an iterator, and a repeat
lasts from one item to the next.
"""

import argparse
import copy
import json
import os
import re
import statistics
import sys
import tempfile
import time

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import torch
import torch.nn.functional as F
import transformers

SOURCE, NEW, RESPONSE = 128, 64, 32


def t5(d_model, d_ff, layers, heads, **more):
    return dict(d_model=d_model, d_kv=64, d_ff=d_ff, num_layers=layers, num_heads=heads, vocab_size=32128, **more)


def llama(hidden, intermediate, layers, heads, vocab_size=32000, shared=None, tied=False, theta=10000.0):
    return dict(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=shared or heads,
        vocab_size=vocab_size,
        tie_word_embeddings=tied,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
    )


MODELS = {
    "t5-mini": t5(256, 1024, 2, 4),
    "t5-small": t5(512, 2048, 6, 8),
    "t5-base": t5(768, 3072, 12, 12),
    "t5-large": t5(1024, 4096, 24, 16),
    "flan-t5-base": t5(768, 2048, 12, 12, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "llama-mini": llama(256, 688, 2, 4),
    "llama-60m": llama(512, 1376, 8, 8),
    "llama-1b": llama(2048, 8192, 16, 32, vocab_size=128256, shared=8, tied=True, theta=500000.0),
}


class Setting:
    def __init__(self, arguments):
        self.arguments = arguments
        self.device = torch.device("cuda" if arguments.cuda else "cpu")
        self.dtype = torch.bfloat16 if arguments.dtype == "bf16" else torch.float32
        self.parameters = 0
        self.size = MODELS[arguments.model]
        # Whether prompt and target are read in one row.
        self.one_row = "hidden_size" in self.size
        self.target = 128 if self.one_row else 64

    def build(self, training=False, dropout=0.1):
        if self.one_row:
            model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**self.size))
        else:
            config = transformers.T5Config(
                **self.size, dropout_rate=dropout, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1
            )
            model = transformers.T5ForConditionalGeneration(config)
            if not config.tie_word_embeddings:
                model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
        model = model.to(self.device, self.dtype).train(training)
        self.parameters = sum(p.numel() for p in model.parameters())
        return model

    def rows(self, default):
        return self.arguments.batch or default

    def ids(self, rows, tokens):
        return torch.randint(3, self.size["vocab_size"], (rows, tokens), device=self.device)

    def precision(self):
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.arguments.dtype == "amp")


def sft(setting, dropout=0.1, mixed=False):
    """Trainer's step without the Trainer: the model's own loss, clipping, torch.optim.AdamW as it comes. Rows of mixed lengths
    are padded to the longest, as a data collator does."""
    rows = setting.rows(8)
    model = setting.build(training=True, dropout=dropout)
    lengths = [(SOURCE, setting.target)] * rows
    if mixed:
        lengths = [(SOURCE * (i % 8 + 1) // 8, setting.target * (i * 5 % 8 + 1) // 8) for i in range(rows)]
    tokens = sum(map(sum, lengths))
    pad = torch.nn.utils.rnn.pad_sequence
    if setting.one_row:
        all_ids = [setting.ids(1, sum(length))[0] for length in lengths]
        ids, labels = pad(all_ids, batch_first=True), pad(all_ids, batch_first=True, padding_value=-100)
        masked = [sum(length) for length in lengths]
    else:
        ids = pad([setting.ids(1, source)[0] for source, _ in lengths], batch_first=True)
        targets = [setting.ids(1, target)[0] for _, target in lengths]
        labels = pad(targets, batch_first=True, padding_value=-100)
        masked = [source for source, _ in lengths]
    mask = pad([torch.ones_like(ids[0, :length]) for length in masked], batch_first=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.01)

    def repeat():
        optimizer.zero_grad(set_to_none=True)
        with setting.precision():
            loss = model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return repeat, rows, tokens


def adam(setting):
    model = setting.build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.01)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    return optimizer.step, 1, setting.parameters


def without_end(model):
    """No end token, so that every row has the same number of tokens."""
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    if model.config.is_encoder_decoder:
        model.generation_config.decoder_start_token_id = 0
    return model


def generation(setting, rows, length=NEW, given=SOURCE, **how):
    model = without_end(setting.build())
    rows = setting.rows(rows)
    ids = setting.ids(rows, given)
    mask = torch.ones_like(ids)
    before = given if setting.one_row else 1

    def repeat():
        with torch.inference_mode(), setting.precision():
            written = model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=length, num_beams=1, use_cache=True, **how
            )
        assert written.shape == (rows, before + length), written.shape

    return repeat, rows, rows * length


def prefill(setting):
    """The prompts are read, and the first token is chosen."""
    repeat, rows, _ = generation(setting, 8, 1, do_sample=False)
    return repeat, rows, rows * SOURCE


def decode(setting, rows):
    """As many tokens as a prompt has, behind a single one: steps and nothing else."""
    return generation(setting, rows, SOURCE, given=1, do_sample=False)


def greedy(setting, rows):
    return generation(setting, rows, do_sample=False)


def top_p(setting, rows):
    return generation(setting, rows, do_sample=True, temperature=0.7, top_p=0.9, top_k=0)


CRYSTAL = dict(do_sample=True, temperature=0.7, top_k=50)


def rollout(setting, rows):
    return generation(setting, rows, RESPONSE, **CRYSTAL)


def label_output(model, ids, labels, **options):
    """The model's output, its logits those of the labels: a decoder-only model reads them behind the prompt, and projects only
    what is asked for."""
    if model.config.is_encoder_decoder:
        inputs = F.pad(labels, (1, 0))[:, :-1]
        mask = torch.ones_like(ids)
        return model(input_ids=ids, attention_mask=mask, decoder_input_ids=inputs, use_cache=False, **options)
    rows = torch.cat([ids, labels], 1)
    kept = labels.shape[1] + 1
    output = model(
        input_ids=rows, attention_mask=torch.ones_like(rows), use_cache=False, logits_to_keep=kept, **options
    )
    output.logits = output.logits[:, :-1]
    return output


def label_log_probs(model, ids, labels):
    """Log-probability of every label: forward with labels' inputs, log-softmax over the vocabulary, gather."""
    logits = label_output(model, ids, labels).logits
    return logits.float().log_softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)


def score(setting):
    rows = setting.rows(32)
    model = setting.build()
    ids, labels = setting.ids(rows, SOURCE), setting.ids(rows, setting.target)

    def repeat():
        with torch.inference_mode(), setting.precision():
            label_log_probs(model, ids, labels).sum(-1)

    return repeat, rows, rows * (SOURCE + setting.target)


def choices(setting, length):
    """Every (question, choice) is a row of its own, as one usually batches it: the prompt is read once per choice."""
    questions, count = setting.rows(8), 4
    model = setting.build()
    ids = setting.ids(questions, SOURCE).repeat_interleave(count, 0)
    labels = setting.ids(questions * count, length)

    def repeat():
        with torch.inference_mode(), setting.precision():
            label_log_probs(model, ids, labels).view(questions, count, length).sum(-1)

    return repeat, questions, questions * count * (SOURCE + length)


class Learner:
    """A policy with a value head, and the policy that it started from."""

    def __init__(self, setting):
        self.setting = setting
        self.model = without_end(setting.build())
        self.reference = copy.deepcopy(self.model).requires_grad_(False)
        self.head = torch.nn.Linear(self.model.config.hidden_size, 1).to(setting.device)
        self.parameters = [*self.model.parameters(), *self.head.parameters()]
        setting.parameters = sum(p.numel() for p in self.parameters)
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-5, weight_decay=0.01)

    def scores(self, ids, responses):
        """Log-probability and value of every token."""
        with self.setting.precision():
            output = label_output(self.model, ids, responses, output_hidden_states=True)
            if self.setting.one_row:
                states = output.hidden_states[-1][:, -responses.shape[1] - 1 : -1]
            else:
                states = output.decoder_hidden_states[-1]
            values = self.head(states.float()).squeeze(-1).float()
        log_probs = output.logits.float().log_softmax(-1)
        return log_probs.gather(-1, responses.unsqueeze(-1)).squeeze(-1), values

    def update(self, ids, responses, rewards, passes):
        with torch.no_grad():
            old_log_probs, old_values = self.scores(ids, responses)
            with self.setting.precision():
                reference = label_log_probs(self.reference, ids, responses)
            token_rewards = -0.2 * (old_log_probs - reference)
            token_rewards[:, -1] += rewards
            advantages, following = [], 0.0
            for t in reversed(range(responses.shape[1])):
                next_values = old_values[:, t + 1] if t + 1 < responses.shape[1] else 0.0
                following = token_rewards[:, t] + next_values - old_values[:, t] + 0.95 * following
                advantages.append(following)
            advantages = torch.stack(advantages[::-1], dim=1)
            returns = advantages + old_values
            variance, mean = torch.var_mean(advantages, correction=0)
            advantages = (advantages - mean) * torch.rsqrt(variance + 1e-8)

        for _ in range(passes):
            self.optimizer.zero_grad(set_to_none=True)
            log_probs, values = self.scores(ids, responses)
            ratio = (log_probs - old_log_probs).exp()
            policy_loss = torch.max(-advantages * ratio, -advantages * ratio.clamp(0.8, 1.2)).mean()
            clipped = torch.clamp(values, old_values - 0.2, old_values + 0.2)
            value_loss = 0.5 * torch.max((values - returns) ** 2, (clipped - returns) ** 2).mean()
            (policy_loss + value_loss).backward()
            torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimizer.step()

    def respond(self, ids):
        with torch.inference_mode(), self.setting.precision():
            written = self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=RESPONSE,
                num_beams=1,
                use_cache=True,
                **CRYSTAL,
            )
        # A tensor of inference mode cannot be trained on.
        return written[:, -RESPONSE:].clone()

    def worth(self, ids, choices):
        """How far the first choice's first-token logit is ahead of the others."""
        with torch.no_grad(), self.setting.precision():
            # Which label stands there changes nothing.
            logits = label_output(self.model, ids, ids[:, :1]).logits
        scores = logits[:, 0].float().gather(-1, choices)
        return 0.5 * (scores[:, 0] - scores[:, 1:].max(-1).values).tanh()


def ppo(setting):
    rows = setting.rows(8)
    learner = Learner(setting)
    ids, responses = setting.ids(rows, SOURCE), setting.ids(rows, setting.target)
    rewards = torch.arange(rows, device=setting.device).sin()
    return lambda: learner.update(ids, responses, rewards, 2), rows, rows * (SOURCE + setting.target)


def ppo_step(setting):
    """Responses are drawn, the policy judges what they do for its own answers, and four passes over them."""
    rows = setting.rows(8)
    learner = Learner(setting)
    ids, choices = setting.ids(rows, SOURCE), setting.ids(rows, 4)

    def repeat():
        responses = learner.respond(ids)
        rewards = learner.worth(torch.cat([ids, responses], 1), choices) - learner.worth(ids, choices)
        learner.update(ids, responses, rewards, 4)

    return repeat, rows, rows * (SOURCE + RESPONSE)


def pairs(setting, count):
    """Prompts, and chosen and rejected completions below each other, as TRL batches them: every prompt is there twice."""
    ids = setting.ids(count, SOURCE).repeat(2, 1)
    return ids, setting.ids(2 * count, setting.target)


def completion_log_probs(model, ids, labels):
    """Sums over completions. Token by token as TRL's `selective_log_softmax`: no log-softmax of all logits."""
    logits = label_output(model, ids, labels).logits.float()
    chosen = logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    return (chosen - torch.stack([row.logsumexp(-1) for row in logits])).sum(-1)


def score_pairs(setting):
    count = setting.rows(16)
    model = setting.build()
    ids, labels = pairs(setting, count)

    def repeat():
        with torch.inference_mode(), setting.precision():
            completion_log_probs(model, ids, labels).tolist()

    return repeat, count, 2 * count * (SOURCE + setting.target)


def dpo(setting):
    """A step as TRL's trainer takes it, without the trainer: dropout off, a copy of the policy as reference."""
    count = setting.rows(4)
    model = setting.build()
    reference = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.01)
    ids, labels = pairs(setting, count)

    def repeat():
        optimizer.zero_grad(set_to_none=True)
        with setting.precision():
            with torch.no_grad():
                held_at = completion_log_probs(reference, ids, labels)
            ratios = completion_log_probs(model, ids, labels) - held_at
            loss = -F.logsigmoid(0.1 * (ratios[:count] - ratios[count:])).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return repeat, count, 2 * count * (SOURCE + setting.target)


def texts(ids):
    """A word for each id."""
    return ["".join(f" w{id}" for id in row) for row in ids.tolist()]


def word_tokenizer(size):
    """Reads the words of `texts`."""
    import tokenizers

    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"w{id}": id for id in range(3, size)}}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<unk>", eos_token="</s>"
    )


def dpo_trainer(setting):
    """TRL's trainer as it comes, but at the rate, decay and precision of the other workloads, without activation checkpointing
    and with a record of every step."""
    try:
        import datasets
        import trl
    except ImportError as error:
        sys.exit(f"dpo_trainer needs the packages of benches/python/requirements.txt: {error}")
    if not setting.one_row:
        sys.exit("dpo_trainer is no workload of a T5: TRL's trainer takes decoder-only models only")
    datasets.disable_progress_bars()
    count, length = setting.rows(4), SOURCE + setting.target
    model = setting.build(training=True)
    reference = copy.deepcopy(model)
    folder = tempfile.TemporaryDirectory()
    arguments = trl.DPOConfig(
        output_dir=folder.name,
        per_device_train_batch_size=count,
        max_steps=10**9,
        learning_rate=1e-5,
        weight_decay=0.01,
        max_grad_norm=1.0,
        lr_scheduler_type="constant",
        beta=0.1,
        loss_type=["sigmoid"],
        activation_checkpointing=False,
        bf16=setting.arguments.dtype == "amp",
        use_cpu=not setting.arguments.cuda,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    # The trainer puts an end token behind every completion.
    lengths = dict(prompt=SOURCE, chosen=setting.target - 1, rejected=setting.target - 1)
    columns = {name: texts(setting.ids(64 * count, tokens)) for name, tokens in lengths.items()}
    trainer = trl.DPOTrainer(
        model=model,
        ref_model=reference,
        args=arguments,
        train_dataset=datasets.Dataset.from_dict(columns),
        processing_class=word_tokenizer(setting.size["vocab_size"]),
    )
    # It prints every record on standard output, which is for our seconds.
    trainer.remove_callback(transformers.PrinterCallback)

    # Nothing is cut, filled up or added.
    def check(module, _, inputs):
        assert inputs["input_ids"].shape == (2 * count, length), inputs["input_ids"].shape
        assert inputs["attention_mask"].all()
        assert (inputs["labels"] >= 0).sum() == 2 * count * setting.target

    for module in (model, reference):
        module.register_forward_pre_hook(check, with_kwargs=True)

    def loop(turns):
        class Paced(transformers.TrainerCallback):
            def on_train_begin(self, args, state, control, **_):
                control.should_training_stop = not next(turns, False)

            on_step_end = on_train_begin

        trainer.add_callback(Paced())
        trainer.train()
        folder.cleanup()

    return loop, count, 2 * count * length


WORKLOADS = {
    "sft": sft,
    "sft_no_dropout": lambda setting: sft(setting, dropout=0.0),
    "sft_mixed": lambda setting: sft(setting, mixed=True),
    "adam": adam,
    "prefill": prefill,
    "decode_1": lambda setting: decode(setting, 1),
    "decode_8": lambda setting: decode(setting, 8),
    "decode_32": lambda setting: decode(setting, 32),
    "gen_greedy_8": lambda setting: greedy(setting, 8),
    "gen_greedy_32": lambda setting: greedy(setting, 32),
    "gen_top_p_8": lambda setting: top_p(setting, 8),
    "gen_top_p_32": lambda setting: top_p(setting, 32),
    "rollout_8": lambda setting: rollout(setting, 8),
    "rollout_32": lambda setting: rollout(setting, 32),
    "ppo": ppo,
    "ppo_step": ppo_step,
    "score": score,
    "score_pairs": score_pairs,
    "dpo": dpo,
    "choices_2": lambda setting: choices(setting, 2),
    "choices_16": lambda setting: choices(setting, 16),
}
# It records logits in any case.
LOOPS = {"dpo_trainer": dpo_trainer, "dpo_trainer_logits": dpo_trainer}


def peak_rss_mib():
    with open("/proc/self/status") as status:
        return int(re.search(r"VmHWM:\s+(\d+)", status.read()).group(1)) // 1024


def matmul_gflops(dtype, device):
    n, best = (8192 if device.type == "cuda" else 2048), float("inf")
    matrix = torch.randn(n, n, device=device, dtype=dtype)
    for _ in range(6):
        start = time.perf_counter()
        matrix @ matrix
        synchronise(device)
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best / 1e9


def synchronise(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bench", required=True, choices=[*WORKLOADS, *LOOPS])
    parser.add_argument("--model", default="t5-small", choices=MODELS)
    parser.add_argument("--dtype", default="fp32", choices=["fp32", "bf16", "amp"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cuda", action="store_true")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--paced", action="store_true")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    setting = Setting(arguments)
    before = peak_rss_mib()
    secs = []

    def turns():
        for _ in range(arguments.warmup):
            yield True
            synchronise(setting.device)
        if arguments.paced:
            print("ready", flush=True)
        for _ in sys.stdin if arguments.paced else range(arguments.repeats):
            start = time.perf_counter()
            yield True
            synchronise(setting.device)
            secs.append(time.perf_counter() - start)
            if arguments.paced:
                print(f"{secs[-1]:.6f}", flush=True)

    if arguments.bench in LOOPS:
        loop, rows, tokens = LOOPS[arguments.bench](setting)
        loop(turns())
    else:
        repeat, rows, tokens = WORKLOADS[arguments.bench](setting)
        for _ in turns():
            repeat()
    median, peak = statistics.median(secs), peak_rss_mib()
    kind = torch.float32 if arguments.dtype == "fp32" else torch.bfloat16
    result = {
        "bench": arguments.bench,
        "model": arguments.model,
        "parameters": setting.parameters,
        "device": setting.device.type,
        "dtype": arguments.dtype,
        "threads": arguments.threads,
        "batch": rows,
        "tokens": tokens,
        "dropout": 0.1 if arguments.bench == "sft" and not setting.one_row else 0.0,
        "warmup": arguments.warmup,
        "repeats": len(secs),
        "median_s": round(median, 5),
        "min_s": round(min(secs), 5),
        "max_s": round(max(secs), 5),
        "tokens_per_s": round(tokens / median, 1),
        "rss_before_model_mib": before,
        "peak_rss_mib": peak,
        "matmul_gflops": round(matmul_gflops(kind, setting.device)),
        "load_average": round(os.getloadavg()[0], 2),
        "program": f"transformers {transformers.__version__}, torch {torch.__version__}",
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
