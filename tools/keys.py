"""What each recipe key is for, in a line, for the reference page. A test holds it complete."""

from __future__ import annotations

#: Of a training (`kava train`).
TRAINING = {
    "method": "one of [the methods](pieces.md#methods)",
    "method_options": "keys of that method alone; see the end of this page",
    "backbone": "a folder, a finished run of `cot`, or a name on the Hub",
    "revision": "commit, tag or branch of a backbone on the Hub",
    "family": "the backbone's `model_type`, for `--smoke`",
    "seed": "of new weights, the order of rows, and whatever is drawn",
    "adapter": "LoRA on a frozen backbone, or all weights",
    "num_latents": "M",
    "num_iterations": "T",
    "projection": "P, between a state and the next latent",
    "projection_dim": "inner width of P; the hidden size if null",
    "drop_last_step": "leave the last written step out of the reasoning",
    "short_traces": "slots that a short trace does not fill: left out of L_KV, or zeros",
    "teacher_ce_weight": "w_t, the weight of the teacher's cross-entropy",
    "description": "for people: `kava recipes` shows it, and else the file's first line",
    "lora.r": "rank",
    "lora.alpha": "scale: the adapter counts alpha / r",
    "lora.dropout": "before the adapter",
    "lora.targets": "names of linear layers; if null, the family's attention projections",
    "codi.weight": "α₁, of L_CODI; 0 leaves it out",
    "codi.loss": "distance of two states",
    "codi.layerwise_std": "divide by each layer's own deviation, else by one over all layers",
    "codi.include_embeddings": "compare the embeddings as a layer too",
    "kv.weight": "α₂, of L_KV; 0 leaves it out",
    "kv.loss": "distance of two keys, of two values",
    "kv.layerwise_std": "divide by each layer's own deviation, else by one over all layers",
    "kv.supervise": "the latents of the last pass, or of all T + 1",
    "kv.keys": "compare keys after their rotation, or before it",
    "kv.answer": "compare the answer's keys and values too",
    "kv.projection": "a map of the student's keys and values before the comparison",
    "kv.reduction": "what the mean is over",
    "kv.eviction.name": "one of [the compressors](pieces.md#evictions)",
    "kv.eviction.lambda": "λ: 1 is importance alone, 0 redundancy alone",
    "latent_readout.weight": "of the cross-entropy of each latent with its token; 0 leaves it out",
    "latent_readout.width": "c, latents for each step; if null, one run of tokens over all steps",
    "latent_readout.target": "the latent's own token, or the one after it",
    "eval.every": "steps between two validations; only at the end if null",
    "eval.batch_size": "questions answered together",
    "eval.max_new_tokens": "longest answer",
}

#: Of a backbone made from nothing (`kava pretrain`).
BACKBONE = {
    "name": "of the run folder, `runs/NAME`",
    "seed": "of the weights, the order of rows, and whatever is drawn",
    "architecture.family": "its `model_type` in transformers",
    "architecture.hidden_size": "d",
    "architecture.intermediate_size": "width of the feed-forward layers",
    "architecture.num_layers": "L",
    "architecture.num_heads": "query heads",
    "architecture.num_kv_heads": "H, key/value heads",
    "architecture.max_positions": "longest sequence",
    "architecture.rope_theta": "base of the rotary embedding",
    "architecture.initializer_range": "standard deviation of new weights",
    "architecture.tie_embeddings": "one table for input and output",
    "vocabulary.size": "at most",
    "vocabulary.digits": "a token for each digit, or for frequent numbers",
    "eval.every": "steps between two validations; only at the end if null",
    "eval.batch_size": "questions answered together",
    "eval.max_new_tokens": "longest reasoning and answer",
    "description": "for people: `kava recipes` shows it, and else the file's first line",
}

#: Of both.
ROWS_AND_STEPS = {
    "data.train": "a data set of kava, a file, or a name on the Hub",
    "data.validation": "likewise; no validation if null",
    "data.train_rows": "only the first rows; all if null, and how many where rows are made",
    "data.validation_rows": "only the first rows",
    "data.options": "keyword arguments of the data set",
    "data.leak_check": "tasks whose questions must not be trained on",
    "data.leak_files": "local copies of these tasks' rows: `{TASK: FILE}`",
    "data.leak_stop": "what stops the training: equal questions, or equal up to their numbers",
    "data.allow_leaks": "ids of test rows, or tasks, that are let through",
    "train.steps": "length in optimiser steps",
    "train.epochs": "length in passes over the rows",
    "train.batch_size": "rows of a step, all devices and micro-batches together",
    "train.micro_batch_size": "rows that are in memory at once; `batch_size` if null",
    "train.learning_rate": "its peak",
    "train.weight_decay": "AdamW's",
    "train.adam_beta2": "AdamW's second decay",
    "train.schedule": "how the learning rate falls after the warmup",
    "train.warmup": "share of the steps in which the learning rate rises",
    "train.clip": "largest norm of the gradient",
    "train.precision": "`auto` is bf16 on a GPU and fp32 on a CPU",
    "train.gradient_checkpointing": "make activations anew in the backward pass: less memory, "
    "a third more time; the same gradients",
    "train.compile": "torch.compile for the layers: faster steps once that is done; "
    "dropout draws other numbers",
    "train.group_by_length": "let rows of like length share a batch: fewer pads, in another order",
    "train.log_every": "steps between two lines of `metrics.jsonl`; first and last step have one",
    "train.save_every": "steps between two checkpoints to resume from; none if null",
    "train.report_to": "`tensorboard`, `trackio`, `wandb`",
    "resources.nodes": "of a job of SLURM",
    "resources.gpus": "of each node; 0 trains on its CPUs",
    "resources.processes": "on each node; if null one for each GPU, or one",
    "resources.cpus": "of each process",
    "resources.memory_gb": "of each process, main memory",
    "resources.minutes": "that a job may take; what is not done by then goes on in the next",
}

#: `method_options`, by method.
OPTIONS = {
    "reset_optimizer": "forget AdamW's moments when a stage begins",
    "epochs_per_stage": "how long a stage lasts",
    "latents_per_stage": "latents that take the place of one step",
    "max_stage": "stages with latents and written steps; one more follows without steps",
    "uniform_prob": "share of rows that are trained in a stage drawn at random",
    "tokens_per_epoch": "written tokens removed in an epoch",
    "smoothing": "λ of how many more are removed at random; none if null",
    "remove_all_beyond": "once this many are removed, all are",
}


def told(kind: str, key: str) -> str:
    """What a key is for; empty where nobody has said it. `kind`: `Recipe` or `BackboneRecipe`."""
    if key.startswith("method_options."):
        return OPTIONS.get(key.removeprefix("method_options."), "")
    own = TRAINING if kind == "Recipe" else BACKBONE
    return own.get(key) or ROWS_AND_STEPS.get(key, "")
