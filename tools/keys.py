"""What each recipe key is for, in a line, for the reference page. A test holds it complete."""

from __future__ import annotations

#: Of a training (`kava train`).
TRAINING = {
    "method": "one of [the methods](pieces.md#methods)",
    "method_options": "keys of that method alone; see the end of this page",
    "backbone": "a folder, a finished run of `cot`, or a name on the Hub",
    "revision": "commit, tag or branch of a backbone on the Hub",
    "family": "the backbone's `model_type`, for `--smoke`",
    "seed": "random seed of new weights, the order of examples, and all sampling",
    "adapter": "LoRA on a frozen backbone, or all weights",
    "num_latents": "M, the number of latent tokens",
    "num_iterations": "T, the number of Jacobi iterations",
    "random_iterations": "least and largest T that a training draws for each step; T if null",
    "max_iterations": "the most iterations of an answer with T `auto`",
    "tolerance": "relative change of a latent's input that counts as none, with T `auto`",
    "projection": "P, the projection from a hidden state to the next latent input",
    "projection_dim": "inner width of P; the hidden size if null",
    "latent_update": "replace the inputs of the latents by P(h), or add it to them",
    "drop_last_step": "leave the last step out of the chain of thought",
    "short_traces": "slots that a short chain of thought does not fill: masked in L_KV, or zeros",
    "teacher_ce_weight": "w_t, the weight of the teacher's cross-entropy",
    "description": "description shown by `kava recipes`; by default the first line of the file",
    "lora.r": "rank of the adapter",
    "lora.alpha": "the adapter is scaled by alpha / r",
    "lora.dropout": "dropout probability of the adapter's input",
    "lora.targets": "names of linear layers; if null, the family's attention projections",
    "codi.weight": "α₁, the weight of L_CODI; 0 disables it",
    "codi.loss": "distance between two hidden states",
    "codi.layerwise_std": "divide by each layer's own standard deviation, or by that of all layers",
    "codi.include_embeddings": "compare the embeddings as an additional layer",
    "codi.position": "compare states at the last token before the answer, or at the last token of "
    "the answer prompt",
    "kv.weight": "α₂, the weight of L_KV; 0 disables it",
    "kv.loss": "distance between two keys or two values",
    "kv.layerwise_std": "divide by each layer's own standard deviation, or by that of all layers",
    "kv.supervise": "supervise the latents of the last forward pass, or of all T + 1",
    "kv.keys": "compare keys after or before the rotary embedding",
    "kv.answer": "also compare the keys and values of the answer",
    "kv.projection": "learned map of the student's keys and values before the comparison",
    "kv.reduction": "what the mean is taken over",
    "kv.eviction.name": "one of [the compressors](pieces.md#evictions)",
    "kv.eviction.shared": "keep the same tokens in all layers and heads, by the mean or the "
    "largest of their scores",
    "kv.eviction.lambda": "λ: 1 uses importance only, 0 redundancy only",
    "latent_readout.weight": "weight of each latent's cross-entropy with its token; 0 disables it",
    "latent_readout.width": "c, the latents of each step; if null, all steps form one sequence",
    "latent_readout.target": "predict the latent's own token, at the latent or (`slot`) before it, "
    "or the next token",
    "multiplex.weight": "β, the weight of each latent's divergence from its span; 0 disables it",
    "multiplex.tau": "τ, the temperature of what a latent predicts",
    "multiplex.decay": "weight of a token relative to the one before it in its span",
    "multiplex.target": "read the position before the latent, or the latent itself",
    "eval.every": "steps between two validations; only at the end if null",
    "eval.batch_size": "number of questions per batch",
    "eval.max_new_tokens": "maximum number of new tokens of an answer",
}

#: Of a backbone trained from scratch (`kava pretrain`).
BACKBONE = {
    "name": "name of the run folder, `runs/NAME`",
    "seed": "random seed of the weights, the order of examples, and all sampling",
    "architecture.family": "its `model_type` in transformers",
    "architecture.hidden_size": "d, the hidden size",
    "architecture.intermediate_size": "width of the feed-forward layers",
    "architecture.num_layers": "L, the number of layers",
    "architecture.num_heads": "number of query heads",
    "architecture.num_kv_heads": "H, the number of key/value heads",
    "architecture.max_positions": "maximum sequence length",
    "architecture.rope_theta": "base of the rotary embedding",
    "architecture.initializer_range": "standard deviation of new weights",
    "architecture.tie_embeddings": "share the input and output embeddings",
    "vocabulary.size": "maximum number of tokens",
    "vocabulary.digits": "one token for each digit, or also for frequent numbers",
    "eval.every": "steps between two validations; only at the end if null",
    "eval.batch_size": "number of questions per batch",
    "eval.max_new_tokens": "maximum number of new tokens of chain of thought and answer",
    "description": "description shown by `kava recipes`; by default the first line of the file",
}

#: Of both.
ROWS_AND_STEPS = {
    "data.train": "a data set of kava, a file, or a name on the Hub",
    "data.validation": "the same for validation; no validation if null",
    "data.train_rows": "use only the first rows; all if null. Generated data: how many rows",
    "data.validation_rows": "use only the first rows",
    "data.options": "keyword arguments of the data set",
    "data.leak_check": "tasks whose questions must not be trained on",
    "data.leak_files": "local copies of the rows of these tasks: `{TASK: FILE}`",
    "data.leak_stop": "stop at equal questions, or at questions equal up to their numbers",
    "data.too_long": "stop at training examples beyond the backbone's positions, or leave them out",
    "data.overlap": "stop at validation questions among the training examples, or drop these",
    "data.allow_leaks": "ids of test rows, or whole tasks, to ignore in the check",
    "train.steps": "number of optimizer steps",
    "train.epochs": "number of epochs",
    "train.batch_size": "global batch size: examples per step over all devices and micro-batches",
    "train.micro_batch_size": "examples per forward pass on one device; if null, `batch_size`, or "
    "what fits into the memory of a GPU",
    "train.learning_rate": "peak learning rate",
    "train.weight_decay": "weight decay of AdamW",
    "train.adam_beta2": "beta2 of AdamW",
    "train.schedule": "learning-rate schedule after the warmup",
    "train.warmup": "fraction of the steps used for warmup",
    "train.clip": "maximum gradient norm",
    "train.precision": "`auto` is bf16 on a GPU and fp32 on a CPU",
    "train.gradient_checkpointing": "recompute activations in the backward pass: less memory, "
    "about a third more time, the same gradients",
    "train.compile": "torch.compile for the layers: faster steps after compilation; dropout uses "
    "different random numbers",
    "train.group_by_length": "batch examples of similar length: less padding, in a different order",
    "train.log_every": "steps between lines of `metrics.jsonl`; first and last are always logged",
    "train.save_every": "steps between two checkpoints to resume from; none if null",
    "train.report_to": "`tensorboard`, `trackio`, `wandb`",
    "resources.nodes": "nodes per SLURM job",
    "resources.gpus": "GPUs per node; 0 trains on CPUs",
    "resources.processes": "processes per node; if null, one for each GPU, or one",
    "resources.cpus": "CPUs per process",
    "resources.memory_gb": "main memory per process",
    "resources.minutes": "wall-clock limit per job in minutes; requeued if exceeded",
}

#: `method_options`, by method.
OPTIONS = {
    "reset_optimizer": "reset the optimizer state when a stage begins",
    "epochs_per_stage": "epochs per stage",
    "latents_per_stage": "latents that replace one step",
    "max_stage": "stages with latents and remaining steps; one more stage follows without steps",
    "uniform_prob": "fraction of the examples trained in a randomly drawn stage",
    "tokens_per_epoch": "chain-of-thought tokens removed per epoch",
    "smoothing": "λ of the number of additional tokens removed at random; none if null",
    "readout_after": "supervise each block of latents after all passes, or from its own pass on",
    "window": "passes in which each block of latents is computed; all if null",
    "stop": "end the latents with the last step",
    "step_weight": "weight of the decoder's cross-entropy",
    "remove_all_beyond": "remove all tokens after this many have been removed",
}


def told(kind: str, key: str) -> str:
    """What a key is for; empty where nobody has said it. `kind`: `Recipe` or `BackboneRecipe`."""
    if key.startswith("method_options."):
        return OPTIONS.get(key.removeprefix("method_options."), "")
    own = TRAINING if kind == "Recipe" else BACKBONE
    return own.get(key) or ROWS_AND_STEPS.get(key, "")
