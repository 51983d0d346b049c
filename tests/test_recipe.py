"""A recipe is read as meant, or refused with the key and what was probably meant."""

import os
import resource
import subprocess
import sys

import pytest
import tiny
import yaml
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused

from kava.backbones import loading
from kava.data import is_path, load_examples
from kava.reasoning.resolve import load_resolved, resolve, validate_resolved
from kava.recipe.load import load_recipe
from kava.recipe.schema import BackboneRecipe, Recipe, dump
from kava.system import assets

TEXT = """
method: kava
backbone: somewhere
data: {train: rows.jsonl}
train: {steps: 10, learning_rate: 1e-4}
"""


@pytest.fixture
def written(tmp_path):
    """Write a recipe and return its path."""

    def write(text=TEXT):
        file = tmp_path / "recipe.yaml"
        file.write_text(text, encoding="utf-8")
        return file

    return write


def refuses(file, code, key=None, *values, overrides=()):
    """The recipe is refused; returns the message, which has these values in it."""
    with refused(code, key) as caught:
        load_resolved(file, list(overrides))
    for value in values:
        assert value in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("text", ("1e-4", "1E-4", "1.e-4", "0.0001", ".1e-3", "+1e-4", "1.0e-04"))
def test_exponents_are_numbers_in_the_file_and_on_the_command_line(written, text):
    file = written(TEXT.replace("1e-4", text))
    assert load_resolved(file).train.learning_rate == 1e-4
    assert load_resolved(written(), [f"train.learning_rate={text}"]).train.learning_rate == 1e-4


def test_an_exponent_is_a_number_where_any_type_is_allowed(written):
    recipe = load_resolved(written(), ["data.options.rate=1e-4", "data.options.name='1e-4'"])
    assert recipe.data.options == {"rate": 1e-4, "name": "1e-4"}


def test_words_that_look_a_little_like_numbers_stay_words(written):
    for word in ("1e", "e5", "2e-x", "1-e4"):
        assert load_resolved(written(), [f"description={word}"]).description == word


@pytest.mark.parametrize(
    "wrong,right",
    (
        ("metod=kava", "method"),
        ("num_latent=3", "num_latents"),
        ("train.learning_rat=1", "learning_rate"),
        ("kv.eviction.lamda=0.5", "lambda"),
        ("kv.evicton=rkv", "eviction"),
        ("codi.wieght=1", "weight"),
    ),
)
def test_an_unknown_key_is_named_with_its_nearest(written, wrong, right):
    key = wrong.split("=")[0]
    refuses(written(), "recipe.unknown-key", key, f"'{key}'", f"'{right}'?", overrides=[wrong])


def test_an_unknown_key_like_no_other_lists_what_is_known(written):
    values = "'kv.zzz'", "weight, loss"
    refuses(written(), "recipe.unknown-key", "kv.zzz", *values, overrides=["kv.zzz=1"])


def test_a_key_given_twice(written):
    refuses(written(TEXT + "seed: 1\nseed: 2\n"), "recipe.key-twice", "seed", "'seed'", "line 7")
    twice = TEXT + "kv: {loss: l1, loss: mse}\n"
    refuses(written(twice), "recipe.key-twice", "loss", "'loss'")


@pytest.mark.parametrize("assignment", ("seed", "=3", "", "seed:3"))
def test_an_override_without_key_or_value(written, assignment):
    refuses(written(), "recipe.bad-override", assignment, f"'{assignment}'", overrides=[assignment])


def test_an_override_that_is_not_yaml(written):
    values = "'[1, 2'", "',' or ']'"
    refuses(written(), "recipe.bad-yaml", "lora.targets", *values, overrides=["lora.targets=[1, 2"])


@pytest.mark.parametrize(
    "value,code,values",
    (
        ("2024-13-45", "recipe.not-of-its-type", ("'2024-13-45'", "timestamp")),
        ("0b_", "recipe.not-of-its-type", ("'0b_'", "int")),
        ("!!int x", "recipe.not-of-its-type", ("'x'", "int")),
        ("!!int ''", "recipe.not-of-its-type", ("''", "int")),
        ("!!bool x", "recipe.not-of-its-type", ("'x'", "bool")),
        ("!!timestamp x", "recipe.not-of-its-type", ("'x'", "timestamp")),
        ("9" * 5000, "recipe.not-of-its-type", (f"'{'9' * 77}...'", "int")),
        ("a\0b", "recipe.bad-yaml", ("special characters",)),
        ("{[a]: 1}", "recipe.key-is-no-word", ()),
        ("{{a: 1}: 1}", "recipe.key-is-no-word", ()),
        ("[" * 3000 + "]" * 3000, "recipe.nested-too-deep", ("100",)),
    ),
)
def test_a_value_that_yaml_fails_at_is_one_line(written, value, code, values):
    of_the_command = refuses(
        written(), code, "description", *values, overrides=[f"description={value}"]
    )
    file = written(f"method: kava\n\ndescription: {value}\n")
    of_the_file = refuses(file, code, str(file), *values)
    for told in (of_the_command, of_the_file):
        assert "\n" not in told and len(told) < 400
    assert of_the_command.startswith("description: '")
    assert "recipe.yaml, line 3: " in of_the_file or "\0" in value


def test_a_key_of_a_file_that_is_a_list(written):
    file = written("method: kava\n? [a]\n: 1\n")
    refuses(file, "recipe.key-is-no-word", str(file), "recipe.yaml, line 2")


def test_what_is_nested_deep_can_be_saved(written):
    deep = "[" * 96 + "]" * 96
    recipe = load_resolved(written(), [f"data.options={{a: {deep}}}"])
    assert load_resolved(written(dump(recipe))) == recipe
    deeper = f"data.options={{a: [[[[{deep}]]]]}}"
    refuses(written(), "recipe.nested-too-deep", "data.options", overrides=[deeper])


def read_in_time(file, saved=False, seconds=30):
    """What reading a recipe says, in a process that has little time and memory."""
    script = (
        "import sys\nfrom kava.recipe.load import *\n"
        "try: load_recipe(sys.argv[1], saved=len(sys.argv) > 2)\n"
        "except KavaError as error: print(error.code, error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(file), *["saved"] * saved],
        capture_output=True, text=True, timeout=seconds,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (2_000_000_000,) * 2),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-1000:]
    assert len(done.stdout) < 2500 and done.stdout.count("\n") == 1
    return done.stdout


ALIASES = "method: [x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{under}' if under else 'x'] * 9)}]\n"
    for name, under in zip("abcdefghij", ("", *"abcdefghi"), strict=True)
)


@pytest.mark.processes
def test_a_few_bytes_of_aliases_are_refused_at_once(written):
    file = written(ALIASES)
    assert len(ALIASES) < 503
    for saved in (False, True):
        said = read_in_time(file, saved)
        assert said.startswith(f"recipe.alias {file}, line 2: ")
    for value in ("*a", "&a x", "[&a []]"):
        override = [f"description={value}"]
        refuses(written(), "recipe.alias", "description", overrides=override)
    assert load_resolved(written(), ["description='*a'"]).description == "*a"


@pytest.mark.processes
@pytest.mark.parametrize(
    "text,code",
    (
        ("a: " + "9" * 400_000 + "x", "recipe.missing-key"),
        ("a: " + ":1" * 400_000, "recipe.missing-key"),
        ("a: 1" + ":1" * 400_000, "recipe.missing-key"),
        ("a: !!int 1" + ":1" * 400_000, "recipe.not-of-its-type"),
        ("a: !!float 1" + ":1" * 400_000, "recipe.not-of-its-type"),
        ("a: 0x" + "f" * 400_000, "recipe.not-of-its-type"),
        ("a: [" + "x," * 400_000 + "]", "recipe.too-many-values"),
        ("".join(f"k{i}: 1\n" for i in range(4500)), "recipe.missing-key"),
        ("method: " + "x" * 900_000, "recipe.unknown-name"),
        ("x" * 900_000 + ": 1", "recipe.bad-yaml"),
        ("? " + "x" * 900_000 + "\n: 1", "recipe.missing-key"),
        ("a: x" + " " * 1_000_000, "recipe.too-large"),
    ),
    ids=lambda value: value[:12],
)  # fmt: skip
def test_a_recipe_that_takes_long_to_read_is_refused_soon(written, text, code):
    assert read_in_time(written(text)).startswith(code)


@pytest.mark.processes
def test_what_never_ends_or_begins_is_no_recipe(written, tmp_path):
    assert read_in_time("/dev/zero").startswith("recipe.not-a-file /dev/zero: ")
    os.mkfifo(tmp_path / "pipe")
    assert read_in_time(tmp_path / "pipe").startswith("recipe.not-a-file ")
    assert read_in_time(written("extends: /dev/zero\n")).startswith("recipe.extends-elsewhere ")
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    assert read_in_time(written("extends: zero.yaml\n")).startswith("system.no-such-file ")


@pytest.mark.parametrize("seed", ("1:30", "1:30:59", "-1:30", "'1:30'"))
def test_a_number_to_the_base_of_60_is_text(written, seed):
    refuses(written(TEXT + f"seed: {seed}\n"), "recipe.bad-value", "seed", seed.strip("'"))
    refuses(written(), "recipe.bad-value", "seed", overrides=[f"seed={seed}"])
    options = load_resolved(written(), [f"data.options={{at: {seed}}}"]).data.options
    assert options == {"at": seed.strip("'")}


def test_a_recipe_extends_those_near_it_and_those_that_ship(written, tmp_path):
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    base = written()
    for where in (folder, folder.parent, tmp_path):
        (where / "base.yaml").write_text(TEXT + "seed: 7\n")
    file = folder / "mine.yaml"
    for name in ("base.yaml", "../base.yaml", str(folder / "base.yaml")):
        file.write_text(f"extends: {name}\n")
        assert load_resolved(file).seed == 7
    file.write_text("extends: recipes/quickstart/kava.yaml\nseed: 8\n")
    assert load_resolved(file).seed == 8
    for name in ("../../base.yaml", str(base), str(tmp_path / "base.yaml")):
        file.write_text(f"extends: {name}\n")
        refuses(file, "recipe.extends-elsewhere", "extends", name[:60])  # long ones are cut
    for name in ("x" * 300 + ".yaml", "x/" * 600, '"a\\0"'):
        file.write_text(f"extends: {name}\n")
        refuses(file, "recipe.extends-elsewhere", "extends")


def test_recipes_that_extend_each_other_for_long(tmp_path):
    for number in range(12):
        (tmp_path / f"{number}.yaml").write_text(f"extends: {number + 1}.yaml\n")
    (tmp_path / "12.yaml").write_text(TEXT)
    refuses(tmp_path / "0.yaml", "recipe.extends-too-many", "extends")
    assert load_resolved(tmp_path / "2.yaml").method == "kava"


def test_the_recipe_of_a_run_or_a_checkpoint_extends_none(written, tmp_path, backbone, kava):
    (tmp_path / "base.yaml").write_text(TEXT)
    file = written("extends: base.yaml\n")
    assert load_resolved(file).method == "kava"
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    (tmp_path / "result.json").write_text('{"method": "kava", "scores": {}}')
    tiny.reasoner("llama", "kava").save_pretrained(tmp_path / "checkpoint")
    (tmp_path / "checkpoint" / "recipe.yaml").write_text("extends: ../base.yaml\n")
    for words in (
        ("watch", tmp_path, "--once"), ("table", tmp_path), ("ask", tmp_path, "w1"),
        (
            "train", tmp_path / "base.yaml", f"backbone={backbone}", "data.train=synthetic",
            "data.train_rows=4", "-o", tmp_path, "--resume",
        ),
    ):  # fmt: skip
        code, said = kava(*words)
        assert (code, said.code, said.key) == (2, "recipe.extends-in-run", "extends"), said


def test_a_long_value_is_shown_in_part(written):
    long = "x" * 5000
    for key in ("seed", "kv.loss", "lora.targets", "num_latents"):
        said = refuses(written(), "recipe.bad-value", key, overrides=[f"{key}={long}"])
        assert len(said) < 600
    said = refuses(written(), "recipe.bad-value", "seed", overrides=[f"seed=[{'[], ' * 3000}]"])
    assert len(said) < 600
    with refused("recipe.bad-value", "seed") as caught:
        validate_resolved({**yaml.safe_load(TEXT), "seed": 1 << 200}, "here")
    assert len(str(caught.value)) < 300
    many = written(TEXT + "".join(f"k{i}: 1\n" for i in range(500)))
    assert refuses(many, "recipe.unknown-key", "k0").endswith("; and 490 more")


def test_a_text_of_an_override_keeps_what_follows_a_hash(written):
    words = ["data.train=my data #1.jsonl", "backbone=models/Ann #1", "description=#1 of them"]
    recipe = load_recipe(written(), words)
    assert recipe.data.train == "my data #1.jsonl"
    assert (recipe.backbone, recipe.description) == ("models/Ann #1", "#1 of them")
    assert load_recipe(written(), ["data.train='a #1.jsonl'"]).data.train == "a #1.jsonl"
    assert load_recipe(written(), ["data.train=a#1.jsonl"]).data.train == "a#1.jsonl"


@pytest.mark.parametrize("value", ("100 # many", "'a' #1", "[a, b] # two", "true #"))
def test_another_value_of_an_override_does_not_end_at_a_hash(written, value):
    with refused("recipe.comment-in-value", "train.steps"):
        load_recipe(written(), [f"train.steps={value}"])


def test_an_override_below_a_value(written):
    refuses(written(), "recipe.not-a-section", "seed", overrides=["seed=1", "seed.deep=2"])


@pytest.mark.parametrize(
    "key,unknown", ((".seed", ""), ("train..steps", "train."), ("train.", "train."))
)
def test_an_override_with_an_empty_part(written, key, unknown):
    refuses(written(), "recipe.unknown-key", unknown, overrides=[f"{key}=1"])


def test_overrides_win_in_order_and_fill_new_sections(written):
    overrides = ["seed=1", "seed=2", "kv.eviction.name=cosine", "kv.weight=2", "lora.targets=[a]"]
    recipe = load_resolved(written(), overrides)
    assert (recipe.seed, recipe.kv.eviction.name, recipe.kv.weight) == (2, "cosine", 2)
    assert recipe.lora.targets == ["a"]


@pytest.mark.parametrize("lengths", (["train.epochs=2"], ["train.steps=null"]))
def test_exactly_one_of_steps_and_epochs(written, lengths):
    refuses(written(), "recipe.steps-or-epochs", "train.steps", overrides=lengths)


def test_epochs_alone_are_fine(written):
    recipe = load_resolved(written(), ["train.steps=null", "train.epochs=2"])
    assert (recipe.train.steps, recipe.train.epochs) == (None, 2)


def test_micro_batches_must_divide_the_batch(written):
    given, key = ["train.micro_batch_size=50"], "train.batch_size"
    refuses(written(), "recipe.uneven-batch", key, "128", "50", overrides=given)
    assert load_resolved(written(), ["train.micro_batch_size=32"]).train.micro_batch_size == 32


@pytest.mark.parametrize(
    "assignment,values",
    (
        ("train.learning_rate=fast", ("'fast'",)),
        ("kv.loss=l2", ("'l2'", "'smooth_l1'")),
        ("num_latents=0", ("(got 0)",)),
        ("kv.eviction.lambda=1.5", ("1", "(got 1.5)")),
        ("train.steps=2.5", ("(got 2.5)",)),
        ("adapter=none", ("'none'", "'lora'")),
        ("seed=-1", ("0", "(got -1)")),
        ("seed=4294967296", ("than 4294967296", "(got 4294967296)")),
        ("train.epochs=.inf", ("finite", "(got inf)")),
        ("train.epochs=1e308", ("1000000", "(got 1e+308)")),
        ("train.learning_rate=.inf", ("finite", "(got inf)")),
        ("train.weight_decay=.inf", ("finite", "(got inf)")),
        ("teacher_ce_weight=.inf", ("finite", "(got inf)")),
        ("kv.weight=.nan", ("finite", "(got nan)")),
        ("resources.memory_gb=.inf", ("finite", "(got inf)")),
    ),
)
def test_a_value_of_the_wrong_kind_is_named(written, assignment, values):
    key = assignment.partition("=")[0]
    refuses(written(), "recipe.bad-value", key, f"'{key}'", *values, overrides=[assignment])


@pytest.mark.parametrize(
    "assignment,key",
    (("lora.targets=3", "lora.targets"), ("data.allow_leaks=[a, {}]", "data.allow_leaks")),
)
def test_the_key_of_a_bad_value_is_one_of_the_recipe(written, assignment, key):
    refuses(written(), "recipe.bad-value", key, overrides=[assignment])


def test_a_missing_key_is_named(written):
    for line, key in (
        ("backbone: somewhere\n", "backbone"), ("learning_rate: 1e-4", "train.learning_rate"),
    ):  # fmt: skip
        refuses(written(TEXT.replace(line, "")), "recipe.missing-key", key, f"'{key}'")


def test_several_mistakes_are_told_at_once(written):
    both = ["metod=x", "num_latents=0"]
    said = refuses(written(), "recipe.bad-value", "num_latents", "'metod'", overrides=both)
    assert said.index("'num_latents'") < said.index("'metod'")  # code and key are of the first


def test_a_missing_file(tmp_path):
    for file in (str(tmp_path / "none.yaml"), "recipes/none.yaml"):
        refuses(file, "system.no-such-file", file, file)


def test_a_home_of_nobody_is_no_folder(written):
    path = "~nobody-here/x.yaml"
    refuses(path, "system.no-such-file", path)
    refuses(written(f"extends: {path}\n"), "system.no-such-file", path)
    with refused("system.no-such-file", path):
        assets.find_all(path)
    with refused("backbones.no-such-folder", path):
        loading.locate(path, None)
    assert is_path(path)
    with refused("data.no-file", path):
        load_examples(path)


def test_a_home_is_found(written, monkeypatch):
    file = written()
    monkeypatch.setenv("HOME", str(file.parent))
    assert load_resolved(f"~/{file.name}") == load_resolved(file)
    assert assets.find_all("~/*.yaml") == [file]


def test_a_folder_is_not_a_recipe(tmp_path):
    (tmp_path / "mine.yaml").write_text("")
    refuses(tmp_path, "recipe.is-folder", str(tmp_path), str(tmp_path), "mine.yaml")


def test_broken_yaml_names_file_and_line(written):
    file = written("method: kava\nbackbone: [a\n")
    refuses(file, "recipe.bad-yaml", str(file), "recipe.yaml", "line 3")


@pytest.mark.parametrize("text", ("", "kava", "- a\n- b\n"))
def test_what_is_not_a_mapping(written, text):
    file = written(text)
    refuses(file, "recipe.not-a-mapping", str(file), "recipe.yaml")


def test_text_that_is_not_utf8(written):
    file = written()
    file.write_bytes(b"method: \xff\xfe\n")
    refuses(file, "recipe.bad-yaml", str(file), "recipe.yaml")


def test_what_is_dumped_is_complete_and_loads_as_the_same(written):
    recipe = load_resolved(written(), ["kv.eviction.lambda=0.25", "description='ä: #1'"])
    text = dump(recipe)
    assert load_resolved(written(text)) == recipe
    assert yaml.safe_load(text)["kv"]["eviction"] == {
        "name": "rkv", "lambda": 0.25, "shared": "none",
    }  # fmt: skip
    assert set(yaml.safe_load(text)) == set(Recipe.model_fields)


@given(
    st.floats(1e-12, 1e3, allow_nan=False), st.floats(0, 1), st.text(max_size=20),
    st.sampled_from(["l1", "smooth_l1", "mse"]),
)  # fmt: skip
def test_any_recipe_survives_dump_and_load(tmp_path, rate, lam, description, loss):
    tree = {
        "method": "kava", "backbone": "b", "data": {"train": "t"}, "description": description,
        "kv": {"loss": loss, "eviction": {"lambda": lam}},
        "train": {"epochs": 1.5, "learning_rate": rate},
    }  # fmt: skip
    recipe = validate_resolved(tree, "here")
    file = tmp_path / "recipe.yaml"
    file.write_text(dump(recipe), encoding="utf-8")
    assert load_resolved(file) == recipe


def test_a_backbone_recipe_has_its_own_keys(written):
    file = written(
        "name: small\ndata: {train: t}\ntrain: {steps: 1, learning_rate: 1e-3}\n"
        "architecture: {hidden_size: 8, intermediate_size: 8, num_layers: 1,\n"
        "               num_heads: 2, num_kv_heads: 1}\n"
    )
    assert load_recipe(file, kind=BackboneRecipe).architecture.num_kv_heads == 1
    for wrong, code, value in (
        ("architecture.num_layer=2", "recipe.unknown-key", "'num_layers'?"),
        ("architecture.rope_theta=.inf", "recipe.bad-value", "finite"),
        ("seed=-1", "recipe.bad-value", "(got -1)"),
        ("seed=4294967296", "recipe.bad-value", "than 4294967296"),
    ):
        with refused(code, wrong.partition("=")[0]) as caught:
            load_recipe(file, [wrong], BackboneRecipe)
        assert value in str(caught.value)
    assert load_recipe(file, ["seed=4294967295"], BackboneRecipe).seed == 2**32 - 1


@pytest.mark.parametrize(
    "method,section",
    (
        ("pccot", "kv"), ("pccot", "latent_readout"), ("codi", "kv"), ("cot", "codi"),
        ("no_cot", "kv"), ("icot", "codi"), ("coconut", "codi"), ("lotus", "codi"),
    ),
)  # fmt: skip
def test_the_weight_of_a_loss_that_a_method_does_not_have_is_refused(written, method, section):
    given = [f"method={method}"] + ["codi.weight=0"] * (section != "codi")
    key, given_it = f"{section}.weight", [*given, f"{section}.weight=2"]
    values = f"{key} 2.0", f"'{method}'"
    refuses(written(), "reasoning.no-such-loss", key, *values, overrides=given_it)
    load_resolved(written(), [*given, f"{section}.weight=0"])


def test_a_method_sets_what_a_recipe_leaves_open(written):
    """A recipe is read as it is written; what its method sets is added under it, once."""
    tree = "method: codi\nbackbone: b\ndata: {train: t}\ntrain: {steps: 1, learning_rate: 1e-3}\n"
    read = load_recipe(written(tree))
    assert not read.is_resolved and (read.num_latents, read.codi.weight) == (24, 0)
    with pytest.raises(ValueError, match="not resolved"):
        dump(read)
    whole = resolve(read)
    assert (whole.num_latents, whole.codi.weight, whole.codi.loss) == (6, 20, "smooth_l1")
    assert resolve(whole) is whole
    own = resolve(load_recipe(written(tree + "num_latents: 9\ncodi: {weight: 3}\n")))
    assert (own.num_latents, own.codi.weight, own.codi.loss) == (9, 3, "smooth_l1")
