"""`kava bench`: what it counts against what runs, and against the equations. Nothing is timed."""

import itertools
import json
import math
import subprocess
import sys
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from refusals import refused
from rich.console import Console
from tiny import bare, reasoner, stepped
from tiny import batch as batch_of
from torch import nn

import kava
from kava.backbones import cache, structure
from kava.bench import flops, shapes, timing
from kava.bench.command import BenchSettings, bench_generate, bench_train, recipe_paths
from kava.bench.generate import Generation
from kava.bench.memory_command import bench_memory
from kava.bench.shapes import (
    Lengths,
    configuration,
    parse_range,
    random_reasoner,
    random_rows,
    reasoner_of_sizes,
)
from kava.bench.train import Training
from kava.evaluation.runner import time_alone
from kava.reasoning.resolve import load_resolved
from kava.recipe import registry
from kava.sweeps import lengths
from kava.system.environment import versions
from kava.system.files import check_writable

METHODS = registry.names("methods")
CPU = torch.device("cpu")
ROWS = [stepped(4, (3, 2, 4)), stepped(6, (2,), 1, "12"), stepped(3, (3, 3), 2)]
SHORT = Lengths(question=(5, 9), reasoning=(6, 6), answer=(7, 7))
TINY = (
    "llama:hidden_size=16,num_hidden_layers=2,intermediate_size=24,num_attention_heads=4,"
    "num_key_value_heads=2,vocab_size=40"
)


class Seen:
    """What runs: real columns and visible pairs of every pass, positions with logits, latents."""

    def __init__(self, monkeypatch, model):
        self.columns = self.pairs = self.labels = self.num_projected = 0
        extend, logits, project = structure.extend, structure.logits, model.projection.forward

        def watched(lm, kinds, context, embeds, mask, hidden_states=False):
            past = context.attention_mask
            for row in range(len(mask)):
                seen = int(past[row].sum())
                for real in mask[row].tolist():
                    seen += real
                    self.columns += real
                    self.pairs += seen * real
            return extend(lm, kinds, context, embeds, mask, hidden_states)

        def read(lm, hidden):
            self.labels += hidden.shape[:-1].numel()
            return logits(lm, hidden)

        def projects(hidden):
            self.num_projected += hidden.shape[:-1].numel()
            return project(hidden)

        monkeypatch.setattr(structure, "extend", watched)
        monkeypatch.setattr(structure, "logits", read)
        monkeypatch.setattr(model.projection, "forward", projects)


@pytest.mark.parametrize("epoch", (0.0, 1.5, math.inf))
@pytest.mark.parametrize("method", METHODS)
def test_the_least_is_what_runs_at_every_stage(method, epoch, monkeypatch):
    # No pass is made twice, no logit for nobody, in any method: the equations and the code agree.
    model = reasoner("llama", method)
    staged = model.apply_stage(batch_of(model, ROWS), epoch)
    least, seen = model.method.work(staged), Seen(monkeypatch, model)
    if least is None:
        pytest.skip(f"{method} does not say what it needs at the least")
    model(counts=model.method.counts(staged), **staged)
    assert (least.columns, least.pairs, least.labels) == (seen.columns, seen.pairs, seen.labels)
    if model.recipe.projection == "none":
        assert least.num_projected == 0
    else:  # pass 0 also projects the last latent's state, which is nobody's input
        assert 0 <= seen.num_projected - least.num_projected <= len(staged["question"])


@pytest.mark.parametrize("method", METHODS)
def test_the_least_of_thinking_is_what_runs(method, monkeypatch):
    model = reasoner("llama", method)
    batch = batch_of(model, ROWS)
    seen = Seen(monkeypatch, model)
    with torch.no_grad():
        model.method.think(model, batch["question"], batch["question_mask"])
    lengths = batch["question_mask"].sum(1)
    kept = 1 if method == "cot" else 0  # its last token is the prompt that writing begins with
    least = model.method.reasoning_work(lengths - kept, model.recipe.num_iterations)
    if least is None:
        pytest.skip(f"{method} does not say what it needs at the least")
    assert (least.columns, least.pairs) == (seen.columns, seen.pairs)


@pytest.mark.parametrize("adapter", ("full", "lora"))
@pytest.mark.parametrize("method", ("cot", "pccot", "codi", "kava"))
def test_a_step_needs_at_most_three_percent_more_than_the_least(method, adapter):
    # The shape and lengths that the predecessors' code was measured with.
    settings = [f"adapter={adapter}", "train.batch_size=2", "train.group_by_length=true"]
    recipe = load_resolved(f"recipes/bench/{method}.yaml", settings)
    record = Training.build(recipe, "small", Lengths(), CPU).record()
    assert record["token_forwards"] == record["token_forwards_least"]
    assert 1 <= record["flops_over_least"] <= 1.03


def test_labels_in_parts_take_no_product_more(monkeypatch):
    recipe = load_resolved("recipes/bench/cot.yaml", ["adapter=lora", "train.batch_size=2"])
    flops_of = {}
    for logits in (2**26, 10 * 2000):
        monkeypatch.setattr("kava.reasoning.losses.cross_entropy.LOGITS_AT_ONCE", logits)
        flops_of[logits] = Training.build(recipe, "small", Lengths(), CPU).record()["flops"]
    assert len(set(flops_of.values())) == 1


def test_counted_flops_are_those_of_the_products():
    inputs, weight = torch.randn(3, 5), torch.randn(5, 7, requires_grad=True)
    assert flops.count_flops(lambda: inputs @ weight) == 2 * 3 * 5 * 7
    # Attention of 2 rows, 4 heads of size 8, 3 queries, 6 keys: two products, then five.
    query, keys, values = (torch.randn(2, 4, n, 8, requires_grad=True) for n in (3, 6, 6))
    mask = torch.ones(2, 1, 3, 6, dtype=torch.bool)

    def attend():
        return nn.functional.scaled_dot_product_attention(query, keys, values, mask)

    product = 2 * 2 * 4 * 3 * 6 * 8
    assert flops.count_flops(attend) == 2 * product
    assert flops.count_flops(lambda: attend().sum().backward()) == 7 * product


@pytest.mark.parametrize("adapter", ("full", "lora"))
def test_the_cost_of_a_column_and_a_label_is_that_of_a_plain_model(adapter):
    settings = [f"adapter={adapter}", "lora.r=4", "lora.dropout=0"]
    recipe = load_resolved("recipes/bench/cot.yaml", settings)
    model = random_reasoner(recipe, TINY, CPU)
    cost, embeds = flops.cost(model, training=True), torch.randn(1, 6, 16, requires_grad=True)
    products = {"q": 16 * 16, "k": 16 * 8, "v": 16 * 8, "o": 16 * 16, "mlp": 3 * 16 * 24}
    adapted = {"q": 4 * 32, "k": 4 * 24, "v": 4 * 24, "o": 4 * 32}
    frozen, trained = (0, sum(products.values())) if adapter == "full" else (
        sum(products.values()), sum(adapted.values())
    )  # fmt: skip
    assert cost.column == 2 * 2 * (2 * frozen + 3 * trained)

    def run():
        model.lm.base_model(
            inputs_embeds=embeds, use_cache=False
        ).last_hidden_state.sum().backward()

    # transformers 5.17 makes the angles of the rotation by a matrix product.
    angles = flops.count_flops(
        lambda: model.lm.base_model.rotary_emb(embeds, torch.arange(6)[None])
    )
    # All six queries see all six keys where the kernel works on whole rectangles.
    assert flops.count_flops(run) == 6 * cost.column + 36 * cost.pair + angles
    hidden = torch.randn(3, 16, requires_grad=True)
    seen = flops.count_flops(lambda: model.logits(hidden).sum().backward())
    assert seen == 3 * cost.label


def test_an_answer_costs_what_runs_and_holds_the_cache_that_is_told():
    for method in ("cot", "no_cot", "codi", "kava"):
        recipe = load_resolved(f"recipes/bench/{method}.yaml", ["num_latents=6"])
        one = Generation.build(random_reasoner(recipe, "small", CPU), Lengths(), 2)
        record = one.record([1.0, 1.0], [2.0, 4.0, 3.0], 1e9)
        assert 1 <= record["flops_over_least"] < 1.05, method
        assert record["flops_prefill"] <= 1.05 * record["flops_prefill_least"]
        assert (record["ms_per_question"], record["questions_per_second"]) == (1500, 0.67)
        kept: list = []
        generate = one.reasoner.lm.generate

        def keep(*args, past_key_values, kept=kept, generate=generate, **kwargs):
            kept.append(past_key_values)
            return generate(*args, past_key_values=past_key_values, **kwargs)

        one.reasoner.lm.generate = keep
        one.generate()
        assert cache.size_in_bytes(kept[0]) == record["cache_bytes"], method


def test_pieces_take_turns_after_the_warm_up():
    order = []
    pieces = {name: lambda name=name: order.append(name) for name in "ab"}
    told = []
    seconds = timing.time_interleaved(
        pieces, repeats=3, warm_up=2, device=CPU, on_round=told.append
    )
    assert order == ["a", "b"] * 5 and told == [1, 2, 3, 4, 5]
    assert [len(seconds[name]) for name in "ab"] == [3, 3]


def test_spread_is_in_milliseconds_and_ratios_go_round_by_round():
    assert timing.spread([0.001, 0.003, 0.002]) == {
        "median": 2.0, "quartile_1": 1.5, "quartile_3": 2.5,
    }  # fmt: skip
    assert timing.ratio([1.0, 2.0, 9.0], [2.0, 2.0, 3.0])["median"] == 1.0


def test_the_time_of_one_question_is_the_median_after_a_warm_up(monkeypatch):
    pairs = ((1, took) for took in (9, 1, 4, 2, 8))  # seconds before, and of, each question
    ticks = itertools.accumulate(itertools.chain.from_iterable(pairs))
    monkeypatch.setattr("time.perf_counter", lambda: next(ticks))
    asked = SimpleNamespace(device=CPU, think=lambda *_: None, answer=lambda *_: None)
    assert time_alone(asked, list("abcd"), 1) == 3000


def test_rows_have_the_lengths_asked_for_and_are_the_same_again():
    recipe = load_resolved("recipes/bench/cot.yaml", [])
    model = random_reasoner(recipe, TINY, CPU)
    rows = random_rows(model, SHORT, 40)
    assert {len(row.question) for row in rows} == {5, 6, 7, 8, 9}
    assert {(len(row.steps), len(row.answer)) for row in rows} == {(6, 7)}
    assert rows[0].step_of == [0, 0, 1, 1, 2, 2]
    assert rows == random_rows(model, SHORT, 40)
    with refused("bench.answer-too-short", "answer") as told:
        random_rows(model, Lengths(answer=(5, 5)), 1)
    assert " 6 " in str(told.value)


REFUSED, FORM = "bench.shape-refused", "bench.size-not-written-so"


@pytest.mark.parametrize(
    "shape,code,key,says",
    (
        ("lama", "bench.unknown-shape", "lama", " small, llama-3.2-1b"),
        ("llama:hidden_size=17,num_attention_heads=4", REFUSED, None, ""),
        ("llama:num_attention_heads=0,hidden_size=32", REFUSED, None, "ZeroDivisionError"),
        ("llama:hidden_size=0", REFUSED, None, "ZeroDivisionError"),
        ("llama:hidden_act=foo", REFUSED, None, "KeyError: 'foo'"),
        ("llama:num_hidden_layers=0", "bench.no-layers", "llama", ""),
        ("llama:num_attention_heads=4,num_key_value_heads=3", "bench.heads-not-a-multiple",
         "num_attention_heads", ""),
        ("llama:num_hidden_layer=1", "bench.unknown-size", "num_hidden_layer",
         "'num_hidden_layers'"),
        ("gpt2:rope_theta=1e4", "bench.unknown-size", "rope_theta", "'gpt2'"),
        ("llama:hidden_size=[1", "recipe.bad-yaml", "hidden_size", "'[1'"),
        ("llama:hidden_size=2024-13-45", "recipe.not-of-its-type", "hidden_size", "'2024-13-45'"),
        ("llama:", FORM, "llama:", ""),
        ("llama:hidden_size", FORM, "llama:hidden_size", ""),
        ("llama:hidden_size=32,", FORM, "llama:hidden_size=32,", ""),
        ("bert:hidden_size=32", REFUSED, None, "not a multiple"),  # in transformers' words
        ("bert:hidden_size=48", "bench.not-causal", "bert", ""),
        ("mamba:hidden_size=32", "bench.not-causal", "mamba", ""),
        ("falcon:hidden_size=32,num_attention_heads=4", REFUSED, None, "KeyError: 'kava'"),
        ("t5:d_model=32", "backbones.encoder-decoder", None, ""),
        ("nothing:hidden_size=16", REFUSED, None, ""),
        ("{tmp}", REFUSED, None, ""),
    ),
)  # fmt: skip
def test_a_shape_that_is_not_possible_is_one_line(shape, code, key, says, tmp_path):
    (tmp_path / "config.json").write_text("{")
    shape = shape.format(tmp=tmp_path)
    with refused(code, shape if code == REFUSED else key) as raised:
        configuration(shape)
    told = str(raised.value)
    assert f"shape '{shape}'" in told and says in told and "\n" not in told


EXPERTS = (
    "mixtral:hidden_size=32,num_hidden_layers=2,intermediate_size=64,num_attention_heads=4,"
    "num_key_value_heads=2,vocab_size=300,num_local_experts=4"
)


KAVA = "recipes/llama1b_aug/kava.yaml"


@pytest.mark.parametrize("command", ["train", "generate"])
def test_experts_are_not_left_out_of_the_flops(kava, command, tmp_path, monkeypatch):
    """Their weights are in no linear layer; without them the least would be a fifth."""
    monkeypatch.delattr("kava.bench.command.time_interleaved")  # nothing is timed for nothing
    output = tmp_path / "out.json"
    one = ("--repeats", 1, "--set", "train.batch_size=1", "train.micro_batch_size=1")
    code, said = kava("bench", command, KAVA, "--shape", EXPERTS, "-o", output, *one)
    assert code == 2 and not output.exists()
    assert "FLOPs of this mixtral cannot be counted: layers.0.mlp" in " ".join(said.split())


def test_names_of_a_shape_are_all_that_transformers_reads():
    assert configuration("gpt2:hidden_size=24,n_head=4,num_hidden_layers=1").n_embd == 24
    assert configuration("qwen2:head_dim=6,num_hidden_layers=1").head_dim == 6
    for rope in ("rope_theta=5e4", "rope_parameters={rope_theta: 5e4}"):
        config = configuration(f"llama:num_hidden_layers=1,{rope}")
        assert config.rope_parameters["rope_theta"] == 50_000


def test_a_shape_of_any_family_here(family, tmp_path):
    config = bare(family).config
    config.save_pretrained(tmp_path)
    assert configuration(str(tmp_path)).model_type == config.model_type


def test_a_shipped_backbone_has_its_shape_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert configuration("checkpoints/quickstart/backbone").model_type == "llama"


def test_sizes_alone_hold_nothing_that_a_method_refuses():
    """What lay in the memory before: NaN here, which `pre_rope` found to be no rotation of ours."""
    wanted = load_resolved("recipes/quickstart/kava.yaml")
    assert wanted.kv.keys == "pre_rope"
    torch.use_deterministic_algorithms(True)  # fills what is empty with NaN
    try:
        found = reasoner_of_sizes(wanted, "checkpoints/quickstart/backbone", torch.float32)
    finally:
        torch.use_deterministic_algorithms(False)
    assert not any(weight.any() for weight in found.lm.model.layers.parameters())


def test_published_shapes_have_their_own_sizes():
    config = configuration("llama-3.2-1b")
    assert (config.hidden_size, config.num_hidden_layers, config.vocab_size) == (2048, 16, 128256)
    assert configuration("meta-llama/Llama-3.2-1B-Instruct").hidden_size == 2048
    assert shapes.SHAPES.keys() == {"small", "llama-3.2-1b", "llama-3.2-3b", "qwen2.5-0.5b"}


@pytest.mark.parametrize("text", ("", "a", "9:5", "1:", "1:2:3", "-3"))
def test_a_length_is_a_number_or_two(text):
    with refused("bench.length-not-written-so", text):
        parse_range(text)


def test_a_question_and_a_batch_are_not_empty():
    with refused("bench.question-too-short", "question"):
        Lengths(question=(0, 3))
    plan = BenchSettings(TINY, SHORT, repeats=1, warm_up=0, output=None)
    for sizes in ([0], [2, -1]):
        with refused("bench.not-above-0", "--batch"):
            bench_generate(["recipes/bench/cot.yaml"], [], plan, sizes, Console(quiet=True))


def test_recipes_are_told_apart_by_their_folders(tmp_path):
    files = [tmp_path / place / "q" / "x.yaml" for place in ("a", "b")]
    for file, method in zip(files, ("cot", "no_cot"), strict=True):
        file.parent.mkdir(parents=True)
        file.write_text(f"extends: recipes/bench/{method}.yaml\n")
    given = [*map(str, files), str(files[0].parent / "../q/x.yaml"), "recipes/bench/cot.yaml"]
    console = Console(file=StringIO(), soft_wrap=True)
    assert recipe_paths(given, console) == {"a/q/x": given[0], "b/q/x": given[1], "cot": given[3]}
    assert console.file.getvalue() == f"{given[2]}: given twice; it is measured once\n"
    plan = BenchSettings(TINY, SHORT, repeats=1, warm_up=0, output=None)
    settings = ["train.batch_size=1"]
    told = bench_train(given[:2], settings, plan, Console(quiet=True))
    assert [told["recipes"][name]["method"] for name in told["rows"]] == ["cot", "no_cot"]
    told = bench_memory(given[:2], settings, TINY, SHORT, [1], "cpu", None, Console(quiet=True))
    assert told["rows"].keys() == {"a/q/x", "b/q/x"}


@pytest.mark.parametrize("command", ("train", "generate", "memory"))
@pytest.mark.parametrize("place", ("{tmp}", "{tmp}/file/x.json", "/proc/x.json", "{long}.json"))
def test_a_place_that_cannot_be_written_is_refused_before(kava, command, place, tmp_path):
    """The recipe is not there either, which nobody gets to see."""
    (tmp_path / "file").touch()
    place = place.format(tmp=tmp_path, long=tmp_path / ("x" * 300))
    if place.startswith("/proc") and not Path("/proc").is_dir():
        pytest.skip("no folder here that nobody writes to")
    status, said = kava("bench", command, "no.yaml", "-o", place)
    what = "not-written" if place.startswith("/proc") else "not-writable"
    assert (status, said.code, said.key) == (2, f"system.{what}", place)
    assert said.count("\n") == 1 and [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_place_that_can_be_written_is_left_as_it_is(tmp_path):
    for place in (tmp_path / "x.json", tmp_path / "new/folder/x.json"):
        check_writable(place)
    assert not list(tmp_path.iterdir())
    (tmp_path / "x.json").write_text("before")
    check_writable(tmp_path / "x.json")
    assert (tmp_path / "x.json").read_text() == "before"


def test_commands_write_what_they_measured(tmp_path):
    plan = BenchSettings(TINY, SHORT, repeats=2, warm_up=0, output=tmp_path / "train.json")
    recipes = [f"recipes/bench/{method}.yaml" for method in ("cot", "kava")]
    settings = ["train.batch_size=4", "train.micro_batch_size=2", "num_latents=3"]
    console = Console(quiet=True)
    bench_train(recipes, settings, plan, console)
    told = json.loads(plan.output.read_text())
    assert told["rows"].keys() == {"cot", "kava"} and told["versions"]["torch"]
    row = told["rows"]["kava"]
    assert row["rows"] == 4 and row["micro_batches"] == 2 and row["repeats"] == 2
    assert row["flops"] >= row["flops_least"] > 0 and row["peak_memory"]["bytes"] > 0
    plan = BenchSettings(TINY, SHORT, repeats=1, warm_up=0, output=tmp_path / "generate.json")
    bench_generate(recipes, ["num_latents=3"], plan, [1, 3], console)
    rows = json.loads(plan.output.read_text())["rows"]
    assert [row["batch_size"] for row in rows["kava"]] == [1, 3]
    with refused("bench.settings-of-a-run", "checkpoints/quickstart/kava"):
        bench_generate(["checkpoints/quickstart/kava"], [], plan, [1], console)


@pytest.mark.processes
def test_it_does_without_the_packages_for_rows_figures_and_answers(tmp_path):
    """As on a machine that lacks them; a name that is None in `sys.modules` cannot be imported."""
    lacking = "datasets", "pandas", "matplotlib", "math_verify"
    start = f"import sys; sys.modules |= dict.fromkeys({lacking})"
    plan = f"BenchSettings({TINY!r}, Lengths((5, 9), (6, 6), (7, 7)), 1, 0, None)"
    call = f"bench_train(['recipes/bench/kava.yaml'], ['train.batch_size=1'], {plan}, Console())"
    imports = "from kava.bench.command import Console, Lengths, BenchSettings, bench_train"
    words = [sys.executable, "-c", "\n".join((start, imports, call))]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and "kava" in done.stdout, done.stderr
    found = versions("torch", "no-such-package")
    assert found == {"kava": kava.__version__, "torch": version("torch")}


def test_a_pattern_that_the_shell_left_is_that_of_shipped_recipes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan = BenchSettings(TINY, SHORT, repeats=1, warm_up=0, output=None)
    settings = ["train.batch_size=2"]
    told = bench_train(["recipes/bench/*cot.yaml"], settings, plan, Console(quiet=True))
    assert told["rows"].keys() == {"cot", "no_cot", "pccot"}


def test_examples_of_real_lengths_are_new_in_each_step():
    recipe = load_resolved("recipes/bench/kava.yaml", ["train.batch_size=4"])
    training, real, shapes = Training.build(recipe, TINY, SHORT, CPU), Lengths(source="gsm8k"), []
    for seed in (1, 2, 1):
        training.renew(real, seed)
        (batch,) = training.micro_batches
        shapes.append({name: batch[name].shape for name in ("question", "steps")})
    assert shapes[0] == shapes[2] != shapes[1]
    rows = random_rows(training.reasoner, real, 2000)
    means = [sum(len(getattr(r, part)) for r in rows) / 2000 for part in ("question", "steps")]
    counted = json.loads(lengths.COUNTS.read_text())[lengths.NAME]
    assert sum(number for *_, number in counted) == 9915
    expected = [sum(one[i] * one[2] for one in counted) / 9915 for i in (0, 1)]
    # a third of a chain of thought is its last step, which the recipe drops
    assert means == pytest.approx([expected[0], expected[1] * 2 / 3], rel=0.05)


def test_each_round_has_new_examples_of_real_lengths(monkeypatch):
    seeds, renew = [], Training.renew

    def watched(training, lengths, seed):
        seeds.append(seed)
        renew(training, lengths, seed)

    monkeypatch.setattr(Training, "renew", watched)
    settings = ["train.batch_size=2"]
    plan = BenchSettings(TINY, Lengths(source="gsm8k"), repeats=2, warm_up=1, output=None)
    told = bench_train(["recipes/bench/cot.yaml"], settings, plan, Console(quiet=True))
    assert seeds == [0, 1, 2] and told["lengths"]["source"] == "gsm8k"


def test_each_round_has_new_questions_of_real_lengths(monkeypatch):
    shapes, renew = [], Generation.renew

    def watched(generation, lengths, seed):
        renew(generation, lengths, seed)
        shapes.append((seed, generation.question.shape, generation.new_tokens))

    monkeypatch.setattr(Generation, "renew", watched)
    plan = BenchSettings(TINY, Lengths(source="gsm8k"), repeats=2, warm_up=1, output=None)
    bench_generate(["recipes/bench/cot.yaml"], [], plan, [2], Console(quiet=True))
    assert [seed for seed, *_ in shapes] == [0, 1, 2]
    assert len({tokens for *_, tokens in shapes}) > 1, "chains of thought are long and short"


@pytest.mark.parametrize("merge", [False, True])
def test_answers_are_timed_with_the_adapter_merged_where_asked(merge, kava, tmp_path):
    words = ("bench", "generate", "recipes/bench/kava.yaml", "--set", "adapter=lora", "lora.r=4",
             "--shape", TINY, "--batch", 1, "--repeats", 1, "--warm-up", 0)  # fmt: skip
    status, said = kava(*words, *["--merge"] * merge, "-o", tmp_path / "made.json")
    assert status == 0, said
    told = json.loads((tmp_path / "made.json").read_text())
    assert told["merged"] == {"kava": merge}


def test_real_lengths_and_given_ones_are_not_mixed(kava):
    words = ("bench", "train", "recipes/bench/cot.yaml", "--lengths", "gsm8k", "--reasoning", 9)
    status, said = kava(*words)
    assert status == 2 and "--reasoning cannot be used with --lengths gsm8k" in said
    status, said = kava("bench", "memory", "recipes/bench/cot.yaml", "--lengths", "gsm9k")
    assert status == 2 and "'gsm8k'" in said


def test_micro_batches_give_the_gradient_of_the_whole():
    gradients = []
    for micro in (4, 2):
        settings = ["train.batch_size=4", f"train.micro_batch_size={micro}"]
        recipe = load_resolved("recipes/bench/cot.yaml", settings)
        training = Training.build(recipe, TINY, SHORT, CPU)
        training.gradients()
        gradients.append([w.grad for w in training.reasoner.parameters() if w.grad is not None])
    for whole, parts in zip(*gradients, strict=True):
        torch.testing.assert_close(whole, parts, atol=1e-6, rtol=1e-4)


RESULTS = Path(__file__).resolve().parent.parent / "results" / "bench"
OURS = ("pccot", "codi", "kava")


@pytest.mark.skipif(not RESULTS.is_dir(), reason="part of a checkout only")
def test_the_pages_say_what_was_measured():
    def read(name):
        return json.loads((RESULTS / f"{name}.json").read_text("utf-8"))

    def shares(name):
        step = read(name)["results"]["step, full"]
        return {name: f"{step[name]['time_ratio']['median']:.2f}" for name in OURS}

    share, slower = shares("predecessors"), shares("predecessors_slow")
    grouped = read("train_grouped")["rows"]
    assert max(grouped[name]["flops_over_least"] for name in share) <= 1.025
    served, attacked = read("serve")["summary"], read("serve_hostile")["summary"]
    soak, memory = read("serve")["saturation"], attacked["resident_mb"]
    beside = read("serve_beside")["beside"]
    said = {
        "docs/scale.md": (
            f"`pccot` takes {share['pccot']} of the time",
            f"`codi` takes {share['codi']} of CODI's",
            f"`kava` with both distillation losses takes {share['kava']} of PCCoT's",
            f"{slower['pccot']}, {slower['codi']} and {slower['kava']} on a day when",
            "within 2.5 %",
        ),
        "docs/serving.md": (
            f"{served['many_clients_per_second']:.0f} answers per second with 32 clients and "
            f"{served['one_client_per_second']:.0f} with one client",
            f"{soak['answers']:,} answers, {soak['per_second']:.0f} per second, "
            "and none was wrong or lost",
            f"memory rose by {served['memory_rise_mb']} MB",
            f"that makes {served['answers']:,} answers",
            f"{attacked['requests']:,} requests, "
            f"of which {attacked['sane_questions']} were valid questions",
            f"Memory rose by at most {math.ceil(memory['peak'] - memory['before'])} MB",
            f"for at most {beside['batches']['most']} batches",
            f"{beside['seconds']['median']:.1f} seconds (the median of {beside['questions']} "
            f"questions; {read('serve_beside')['alone']['seconds']['median']:.1f} seconds without",
        ),
    }  # fmt: skip
    for page, texts in said.items():
        text = " ".join((RESULTS.parent.parent / page).read_text("utf-8").split())
        assert all(told in text for told in texts), [told for told in texts if told not in text]
    runs = (*read("serve")["one"], *read("serve")["many"], soak)
    assert served["answers"] == sum(run["answers"] for run in runs) > soak["answers"]
    assert attacked["by_status"].keys().isdisjoint(map(str, range(500, 600)))
    assert read("serve_hostile")["by_kind"]["sane"] == {"200": attacked["sane_questions"]}
    assert served["wrong"] == served["lost"] == attacked["wrong"] == 0
