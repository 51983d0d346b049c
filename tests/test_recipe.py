"""A recipe is read as meant, or refused with the key and what was probably meant."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kava.backbones import loading
from kava.data import is_file, load_examples
from kava.errors import KavaError
from kava.reasoning.resolve import load_resolved, validate_resolved
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


def refuses(file, *words, overrides=()):
    with pytest.raises(KavaError) as caught:
        load_resolved(file, list(overrides))
    for word in words:
        assert word in str(caught.value)


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
    refuses(written(), wrong.split("=")[0], f"did you mean '{right}'?", overrides=[wrong])


def test_an_unknown_key_like_no_other_lists_what_is_known(written):
    refuses(written(), "'kv.zzz'", "known here: weight, loss", overrides=["kv.zzz=1"])


def test_a_key_given_twice(written):
    refuses(written(TEXT + "seed: 1\nseed: 2\n"), "'seed' is given twice", "line 7")
    refuses(written(TEXT + "kv: {loss: l1, loss: mse}\n"), "'loss' is given twice")


@pytest.mark.parametrize("assignment", ("seed", "=3", "", "seed:3"))
def test_an_override_without_key_or_value(written, assignment):
    refuses(written(), "key=value", overrides=[assignment])


def test_an_override_that_is_not_yaml(written):
    words = "lora.targets: '[1, 2' is not a valid YAML value: expected ',' or ']'"
    refuses(written(), words, overrides=["lora.targets=[1, 2"])


@pytest.mark.parametrize(
    "value,says",
    (
        ("2024-13-45", "'2024-13-45' is no timestamp; in quotes it is text"),
        ("0b_", "'0b_' is no int"),
        ("!!int x", "'x' is no int"),
        ("!!int ''", "'' is no int"),
        ("!!bool x", "'x' is no bool"),
        ("!!timestamp x", "'x' is no timestamp"),
        ("9" * 5000, f"'{'9' * 77}...' is no int"),
        ("a\0b", "special characters are not allowed"),
        ("{[a]: 1}", "a key is one word, this is a list or a mapping"),
        ("{{a: 1}: 1}", "a key is one word, this is a list or a mapping"),
        ("[" * 3000 + "]" * 3000, "nested more than 100 deep"),
    ),
)
def test_a_value_that_yaml_fails_at_is_one_line(written, value, says):
    with pytest.raises(KavaError) as of_the_command:
        load_resolved(written(), [f"description={value}"])
    with pytest.raises(KavaError) as of_the_file:
        load_resolved(written(f"method: kava\n\ndescription: {value}\n"))
    for told in (str(of_the_command.value), str(of_the_file.value)):
        assert says in told and "\n" not in told and len(told) < 400
    assert str(of_the_command.value).startswith("description: '")
    assert "recipe.yaml, line 3: " in str(of_the_file.value) or "\0" in value


def test_a_key_of_a_file_that_is_a_list(written):
    refuses(written("method: kava\n? [a]\n: 1\n"), "recipe.yaml, line 2: not valid YAML: a key is")


def test_what_is_nested_deep_can_be_saved(written):
    deep = "[" * 96 + "]" * 96
    recipe = load_resolved(written(), [f"data.options={{a: {deep}}}"])
    assert load_resolved(written(dump(recipe))) == recipe
    refuses(written(), "nested", overrides=[f"data.options={{a: [[[[{deep}]]]]}}"])


def test_an_override_below_a_value(written):
    refuses(written(), "'seed' holds a value", overrides=["seed=1", "seed.deep=2"])


@pytest.mark.parametrize("key", (".seed", "train..steps", "train."))
def test_an_override_with_an_empty_part(written, key):
    refuses(written(), "unknown key", overrides=[f"{key}=1"])


def test_overrides_win_in_order_and_fill_new_sections(written):
    overrides = ["seed=1", "seed=2", "kv.eviction.name=cosine", "kv.weight=2", "lora.targets=[a]"]
    recipe = load_resolved(written(), overrides)
    assert (recipe.seed, recipe.kv.eviction.name, recipe.kv.weight) == (2, "cosine", 2)
    assert recipe.lora.targets == ["a"]


@pytest.mark.parametrize("lengths", (["train.epochs=2"], ["train.steps=null"]))
def test_exactly_one_of_steps_and_epochs(written, lengths):
    refuses(written(), "exactly one of train.steps and train.epochs", overrides=lengths)


def test_epochs_alone_are_fine(written):
    recipe = load_resolved(written(), ["train.steps=null", "train.epochs=2"])
    assert (recipe.train.steps, recipe.train.epochs) == (None, 2)


def test_micro_batches_must_divide_the_batch(written):
    refuses(written(), "128", "50", overrides=["train.micro_batch_size=50"])
    assert load_resolved(written(), ["train.micro_batch_size=32"]).train.accumulation == 4
    assert load_resolved(written()).train.accumulation == 1


@pytest.mark.parametrize(
    "assignment,words",
    (
        ("train.learning_rate=fast", ("train.learning_rate", "fast")),
        ("kv.loss=l2", ("kv.loss", "l2", "smooth_l1")),
        ("num_latents=0", ("num_latents", "0")),
        ("kv.eviction.lambda=1.5", ("kv.eviction.lambda", "1.5")),
        ("train.steps=2.5", ("train.steps", "2.5")),
        ("adapter=none", ("adapter", "none")),
        ("seed=-1", ("'seed'", "greater than or equal to 0")),
        ("seed=4294967296", ("'seed'", "less than 4294967296")),
        ("train.epochs=.inf", ("train.epochs", "finite number (got inf)")),
        ("train.epochs=1e308", ("train.epochs", "less than or equal to 1000000 (got 1e+308)")),
        ("train.learning_rate=.inf", ("train.learning_rate", "finite number")),
        ("train.weight_decay=.inf", ("train.weight_decay", "finite number")),
        ("teacher_ce_weight=.inf", ("teacher_ce_weight", "finite number")),
        ("kv.weight=.nan", ("kv.weight", "finite number (got nan)")),
        ("resources.memory_gb=.inf", ("resources.memory_gb", "finite number")),
    ),
)
def test_a_value_of_the_wrong_kind_is_named(written, assignment, words):
    refuses(written(), *words, overrides=[assignment])


def test_a_missing_key_is_named(written):
    refuses(written(TEXT.replace("backbone: somewhere\n", "")), "'backbone' is missing")
    refuses(written(TEXT.replace("learning_rate: 1e-4", "")), "'train.learning_rate' is missing")


def test_several_mistakes_are_told_at_once(written):
    refuses(written(), "metod", "num_latents", overrides=["metod=x", "num_latents=0"])


def test_a_missing_file(tmp_path):
    refuses(tmp_path / "none.yaml", "none.yaml", "no such file")
    refuses("recipes/none.yaml", "recipes/none.yaml", "no such file")


def test_a_home_of_nobody_is_no_folder(written):
    path = "~nobody-here/x.yaml"
    refuses(path, f"{path}: no such file or folder")
    refuses(written(f"extends: {path}\n"), f"{path}: no such file or folder")
    with pytest.raises(KavaError, match=f"{path}: no such file or folder"):
        assets.find_all(path)
    with pytest.raises(KavaError, match=f"backbone: {path}: no such folder"):
        loading.locate(path, None)
    assert is_file(path)
    with pytest.raises(KavaError, match=f"{path}: no such file"):
        load_examples(path)


def test_a_home_is_found(written, monkeypatch):
    file = written()
    monkeypatch.setenv("HOME", str(file.parent))
    assert load_resolved(f"~/{file.name}") == load_resolved(file)
    assert assets.find_all("~/*.yaml") == [file]


def test_a_folder_is_not_a_recipe(tmp_path):
    (tmp_path / "mine.yaml").write_text("")
    refuses(tmp_path, str(tmp_path), "is a folder; give a recipe", "it holds mine.yaml")


def test_broken_yaml_names_file_and_line(written):
    refuses(written("method: kava\nbackbone: [a\n"), "recipe.yaml", "line 3", "not valid YAML")


@pytest.mark.parametrize("text", ("", "kava", "- a\n- b\n"))
def test_what_is_not_a_mapping(written, text):
    refuses(written(text), "recipe.yaml", "mapping")


def test_text_that_is_not_utf8(written):
    file = written()
    file.write_bytes(b"method: \xff\xfe\n")
    refuses(file, "recipe.yaml", "not valid YAML")


def test_what_is_dumped_is_complete_and_loads_as_the_same(written):
    recipe = load_resolved(written(), ["kv.eviction.lambda=0.25", "description='ä: #1'"])
    text = dump(recipe)
    assert load_resolved(written(text)) == recipe
    assert yaml.safe_load(text)["kv"]["eviction"] == {"name": "rkv", "lambda": 0.25}
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
    for wrong, says in (
        ("architecture.num_layer=2", r"architecture.num_layer'; did you mean 'num_layers'"),
        ("architecture.rope_theta=.inf", r"architecture.rope_theta': Input should be a finite"),
        ("seed=-1", r"'seed': Input should be greater"),
        ("seed=4294967296", r"'seed': Input should be less"),
    ):
        with pytest.raises(KavaError, match=says):
            load_recipe(file, [wrong], BackboneRecipe)
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
    words = f"{section}.weight 2.0: method '{method}' has no such loss; leave it at 0"
    refuses(written(), words, overrides=[*given, f"{section}.weight=2"])
    load_resolved(written(), [*given, f"{section}.weight=0"])
