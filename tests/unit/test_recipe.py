"""A recipe is what it says, and everything else is refused with its field, line and nearest name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from qvec_deploy.errors import RecipeError, StorageError
from qvec_deploy.recipe import load_recipe

MINIMAL = """version: 1
name: mine
receiver:
  checkpoint: weights/receiver.safetensors
  model: vit_base_patch16_224
lambda: 0
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def place(text: str) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return place


def _refusal(path: Path, *overrides: str) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    return caught.value


def test_defaults_are_filled_in(write: Callable[[str], Path]) -> None:
    recipe = load_recipe(write(MINIMAL))
    assert (recipe.lam, recipe.quantize.bits, recipe.quantize.granularity) == (0.0, 3, "channel")
    assert (recipe.target.runtime, recipe.target.lowering, recipe.quantize.skip) == ("onnxruntime", "int4", ("head",))
    assert recipe.evaluate is None


def test_a_resolved_recipe_loads_as_itself(write: Callable[[str], Path], pico_recipe: Callable[..., Path]) -> None:
    recipe = load_recipe(pico_recipe(variants=[{"name": "two", "set": {"quantize.bits": 2}}]))
    again = load_recipe(write(yaml.safe_dump(recipe.as_dict())))
    assert again.as_dict() == recipe.as_dict()


def test_paths_are_relative_to_the_recipe(write: Callable[[str], Path]) -> None:
    path = write(MINIMAL)
    recipe = load_recipe(path)
    assert recipe.locate("weights/a.pt") == str(path.parent / "weights/a.pt")
    assert recipe.locate("/weights/a.pt") == "/weights/a.pt"
    assert recipe.locate("hf://org/repo/a.pt") == "hf://org/repo/a.pt"
    assert recipe.with_overrides({"quantize.bits": 2}, name="v").locate("a") == str(path.parent / "a")


@pytest.mark.parametrize(
    ("text", "field", "line", "near"),
    [
        (MINIMAL + "quantise: {bits: 3}\n", "quantise", 7, "quantize"),
        (MINIMAL + "quantize:\n  bit: 3\n", "quantize.bit", 8, "bits"),
        (MINIMAL.replace("lambda", "lamda"), "lamda", 6, "lambda"),
        (MINIMAL + "target: {lowerin: int4}\n", "target.lowerin", 7, "lowering"),
        (MINIMAL + "variants:\n  - nam: a\n    set: {}\n", "variants.0.nam", 8, "name"),
    ],
)
def test_unknown_fields_name_line_and_nearest(
    write: Callable[[str], Path], text: str, field: str, line: int, near: str
) -> None:
    error = _refusal(write(text))
    assert f"recipe.yaml:{line}: {field}: no such field" in error.message
    assert f"did you mean `{near}`?" in error.hint


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (MINIMAL + "quantize: {bits: '3'}\n", "quantize.bits: Input should be a valid integer"),
        (MINIMAL + "quantize: {bits: 9}\n", "9 bits cannot be packed"),
        (MINIMAL + "quantize: {granularity: row}\n", "quantize.granularity"),
        (MINIMAL + "quantize: {granularity: group}\n", "group_size 0"),
        (MINIMAL + "quantize: {method: mse, clip: 0.5}\n", "searches the clip ratio itself"),
        (MINIMAL + "quantize: {bits: 32}\n", "lowering `float` goes with bits 16 or 32"),
        (MINIMAL + "target: {lowering: float}\n", "lowering `float` goes with bits 16 or 32"),
        (MINIMAL + "target: {threads: 0}\n", "target.threads"),
        (
            MINIMAL + "target: {calibrator: percentile}\n",
            "target.calibrator: percentile is for tensorrt, tensorrt-rtx, not for onnxruntime",
        ),
        (
            MINIMAL + "target: {runtime: tensorrt, preprocessing: in_graph}\n",
            "target.preprocessing: in_graph is for onnxruntime, not for tensorrt",
        ),
        (MINIMAL + "target: {batch_sizes: []}\n", "target.batch_sizes"),
        (MINIMAL + "measure: {blocks: 1}\n", "measure.blocks"),
        (MINIMAL + "evaluate: {split: test}\n", "evaluate.dataset: this field is needed"),
        (MINIMAL.replace("lambda: 0", "lambda: 1"), "needs a `vector`"),
        (MINIMAL.replace("lambda: 0", "lambda: .nan"), "lambda"),
        (MINIMAL.replace("version: 1", "version: 2"), "version"),
        (MINIMAL.replace("lambda", "lam"), "lam: no such field"),  # its name in Python, not in YAML
        (MINIMAL.replace("name: mine", "name: 2024-99-99"), "not valid YAML: month must be"),
        (MINIMAL.replace("name: mine", f"name: {'9' * 5000}"), "not valid YAML"),
        (MINIMAL + f"measure: {'[' * 900}{']' * 900}\n", "not valid YAML"),
        (MINIMAL + "measure: {blocks: .inf}\n", "measure.blocks: Input should be a valid integer"),
        (MINIMAL + "variants: [{name: a, set: {quantize.bit: 2}}]\n", "recipe.yaml:7: variant a: quantize.bit"),
        (MINIMAL + "variants: [{name: a, set: {quantize.method: []}}]\n", "variant a: quantize.method"),
        (MINIMAL + "variants: [{name: a, set: {name: b}}]\n", "`name` belongs to the whole recipe"),
        (MINIMAL + "variants: [{name: a, set: {evaluate.limit: 2}}]\n", "`evaluate.limit` belongs to the whole"),
        (MINIMAL + "variants: [{name: a, set: {measure: {}}}]\n", "`measure` belongs to the whole recipe"),
        (MINIMAL + "variants: [{name: a, set: {target.batch_sizes: [2]}}]\n", "`target.batch_sizes` belongs"),
        (MINIMAL.replace("name: mine", "name: a/b"), "name"),
        (MINIMAL + "vector: {}\n", "one of `files`, `folder` and `donors`"),
        (MINIMAL + "vector: {files: [a], donors: [{fp: a, qat: b}]}\n", "one of `files`, `folder` and `donors`"),
        (MINIMAL + "vector: {files: [a, b], weights: [1.0]}\n", "1 weights for 2 vectors"),
        (MINIMAL + "vector: {files: [a, a]}\n", "named twice"),
        (MINIMAL + "vector: {donors: [{fp: a, qat: b}]}\n", "`scheme` states the grid"),
        (MINIMAL + "vector: {files: [a], control: {kind: shuffled, seed: 1}}\n", "vector.control.kind"),
        (MINIMAL + "variants: [{name: float, set: {}}]\n", "names of variants must differ"),
        (MINIMAL + "variants: [{name: a, set: {}}, {name: a, set: {}}]\n", "names of variants must differ"),
        (MINIMAL + "name: again\n", "`name` appears twice"),
        (MINIMAL + "measure: &m {blocks: 3}\ntarget: *m\n", "aliases"),
        (MINIMAL + "evaluate: {dataset: 2020-01-01}\n", "not plain YAML"),
        ("a: [\n", "not valid YAML"),
        ("a: \0\n", "not valid YAML"),
        ("a: 1\n---\nb: 1\n", "not valid YAML"),
        ("", "is not a recipe"),
        ("- a\n", "is not a recipe"),
    ],
)
def test_refusals(write: Callable[[str], Path], text: str, says: str) -> None:
    error = _refusal(write(text))
    assert says in error.message
    assert "recipe.yaml" in error.message and error.hint


@pytest.mark.parametrize("value", ["null", "{a: 1}", "[1.5]", "[true]", ".nan"])
def test_a_model_argument_is_refused_in_one_line(write: Callable[[str], Path], value: str) -> None:
    text = MINIMAL.replace("lambda:", f"  model_args:\n    img_size: {value}\nlambda:")
    message = _refusal(write(text)).message
    assert message.endswith("recipe.yaml:7: receiver.model_args.img_size: " + message.split(": ")[-1])
    assert "\n" not in message and "a list of whole numbers" in message


@pytest.mark.parametrize("value", ["224", "0.5", "true", "avg", "[32, 32]"])
def test_model_arguments(write: Callable[[str], Path], value: str) -> None:
    text = MINIMAL.replace("lambda:", f"  model_args:\n    some: {value}\nlambda:")
    got = load_recipe(write(text)).receiver.model_args["some"]
    assert got == yaml.safe_load(value) and type(got) is type(yaml.safe_load(value))


def test_a_variants_fields_are_checked_when_the_recipe_is_read(write: Callable[[str], Path]) -> None:
    error = _refusal(write(MINIMAL + "variants: [{name: two, set: {quantize.bit: 2}}]\n"))
    assert "variant two: quantize.bit: no such field" in error.message


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="does not exist"):
        load_recipe(tmp_path / "absent.yaml")
    with pytest.raises(StorageError, match="not a file"):
        load_recipe(tmp_path)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    assert "UTF-8" in _refusal(binary).message
    large = tmp_path / "large.yaml"
    large.write_bytes(b"#" * (1 << 20) + b"#")
    assert "another file" in _refusal(large).hint


def test_overrides(write: Callable[[str], Path]) -> None:
    path = write(MINIMAL)
    recipe = load_recipe(path, ["quantize.bits=2", "target.batch_sizes=[1, 8]", "name=other"])
    assert (recipe.quantize.bits, recipe.target.batch_sizes, recipe.name) == (2, (1, 8), "other")
    assert "has no value" in _refusal(path, "quantize.bits").message
    assert _refusal(path, "quantize.bits=[").message.startswith("--set quantize.bits=[: not valid YAML")
    assert "not valid YAML" in _refusal(path, "name=2024-99-99").message
    assert "not valid YAML" in _refusal(path, f"name={'[' * 2000}").message
    assert "did you mean `lowering`?" in _refusal(path, "target.lowreing=int8").hint


def test_what_an_override_got_wrong_is_not_blamed_on_the_file(write: Callable[[str], Path]) -> None:
    path = write(MINIMAL + "quantize:\n  bits: 3\n  skip: [head, 7]\n")
    assert "recipe.yaml:9: quantize.skip.1" in _refusal(path, "quantize.bits=2").message
    message = _refusal(path, "quantize.bits=two", "quantize.skip=[fc1]").message
    assert message.startswith("--set quantize.bits=two: quantize.bits: ") and "recipe.yaml" not in message
    assert _refusal(path, "quantize={bits: 2.5}").message.startswith("--set quantize={bits: 2.5}: quantize.bits: ")


def test_candidates_are_baselines_variants_and_the_recipe(pico_recipe: Callable[..., Path]) -> None:
    variants = [{"name": "one", "set": {"quantize.method": "mse", "lambda": 0, "vector": None}}]
    candidates = load_recipe(pico_recipe(variants=variants)).candidates()
    assert [c.name for c in candidates] == ["float", "ptq", "one", "pico"]
    assert [c.lam for c in candidates] == [0.0, 0.0, 0.0, 1.0]
    assert [c.quantize.bits for c in candidates] == [32, 3, 3, 3]
    assert candidates[0].target.lowering == "float" and candidates[3].variants == ()


def test_plain_ptq_and_float_have_fewer_baselines(write: Callable[[str], Path]) -> None:
    assert [c.name for c in load_recipe(write(MINIMAL)).candidates()] == ["float", "mine"]
    text = MINIMAL + "quantize: {bits: 32}\ntarget: {lowering: float}\n"
    assert [c.name for c in load_recipe(write(text)).candidates()] == ["mine"]


def test_a_float_recipe_keeps_its_variants(write: Callable[[str], Path]) -> None:
    text = MINIMAL + "quantize: {bits: 32}\ntarget: {lowering: float}\n"
    text += "variants: [{name: small, set: {quantize.bits: 4, target.lowering: int4}}]\n"
    candidates = load_recipe(write(text)).candidates()
    assert [(c.name, c.quantize.bits) for c in candidates] == [("small", 4), ("mine", 32)]


def test_a_baselines_name_is_taken(pico_recipe: Callable[..., Path]) -> None:
    recipe: Any = load_recipe(pico_recipe(name="ptq"))
    with pytest.raises(RecipeError, match="name of a baseline"):
        recipe.candidates()


VAL = {"dataset": "folder", "split": "val"}
SELECTING = {"lambda": None, "images": {"dataset": "tiny/realdigits", "split": "val"}}


def test_a_lambda_that_nobody_gave_is_selected(pico_recipe: Callable[..., Path]) -> None:
    recipe = load_recipe(pico_recipe(**SELECTING))
    assert recipe.lam is None
    assert recipe.select is not None
    assert recipe.select.by == "label_free"
    assert load_recipe(pico_recipe(**{"lambda": None})).select == recipe.select  # on generated images
    assert load_recipe(pico_recipe(images=SELECTING["images"])).select is None


def test_without_a_vector_a_recipe_is_plain_ptq(write: Callable[[str], Path], pico_recipe: Callable[..., Path]) -> None:
    for recipe in (
        load_recipe(write(MINIMAL.replace("lambda: 0\n", ""))),
        load_recipe(pico_recipe(**{"lambda": None}, vector=None)),
        load_recipe(pico_recipe(**SELECTING, vector=None)),
    ):
        assert (recipe.lam, recipe.select) == (0.0, None)


def test_a_float_engine_has_no_lambda_to_select(pico_recipe: Callable[..., Path]) -> None:
    quantize, target = {"bits": 32}, {"lowering": "float"}
    recipe = load_recipe(pico_recipe(**{"lambda": None}, quantize=quantize, target=target))
    assert (recipe.lam, recipe.select) == (0.0, None)


@pytest.mark.parametrize("settings", [{}, {"lambda": None}])
def test_a_variant_without_the_vector_is_plain_ptq(pico_recipe: Callable[..., Path], settings: dict[str, Any]) -> None:
    variants = [{"name": "plain", "set": {"vector": None}}]
    plain = load_recipe(pico_recipe(**settings, variants=variants)).candidates()[-2]
    assert (plain.name, plain.lam, plain.select, plain.vector) == ("plain", 0.0, None, None)


def test_a_variant_that_brings_a_vector_says_its_lambda(pico_recipe: Callable[..., Path]) -> None:
    def variants(**more: Any) -> list[dict[str, Any]]:
        return [{"name": "patched", "set": {"vector": {"files": ["a"]}, **more}}]

    refused = _refusal(pico_recipe(**{"lambda": None}, vector=None, variants=variants()))
    assert "variant patched: its `vector` needs a `lambda`" in refused.message
    recipe = load_recipe(pico_recipe(**{"lambda": None}, vector=None, variants=variants(**{"lambda": 1.0})))
    assert recipe.candidates()[-2].lam == 1.0


@pytest.mark.parametrize("name", ["cpu_3bit", "edge_3bit"])
def test_a_starter_takes_gptaq_and_has_the_vector_beside_it(name: str) -> None:
    recipe = load_recipe(Path(__file__).parents[2] / "recipes" / f"{name}.yaml")
    assert (recipe.lam, recipe.quantize.method, recipe.quantize.calibration.on) == (0.0, "gptaq", None)
    vector = next(candidate for candidate in recipe.candidates() if candidate.name == "vector")
    assert vector.lam == 1.0 and vector.vector is not None
    assert vector.quantize.scheme() == vector.vector.scheme.scheme()  # it helps on its own grid only


def test_a_word_is_short_for_select(pico_recipe: Callable[..., Path]) -> None:
    recipe = load_recipe(pico_recipe(**SELECTING, select="best"))
    assert recipe.select is not None
    assert recipe.select.by == "best"


def test_a_resolved_recipe_has_numbers(pico_recipe: Callable[..., Path]) -> None:
    recipe = load_recipe(pico_recipe(**SELECTING))
    with pytest.raises(RecipeError, match="lambda is not selected yet"):
        _ = recipe.patch_scale
    resolved = recipe.resolved(0.5, (1.0,))
    assert (resolved.patch_scale, resolved.select) == (0.5, None)
    assert resolved.vector is not None
    assert resolved.vector.weights == (1.0,)


@pytest.mark.parametrize(
    ("overrides", "fragment"),
    [
        ({"select": "label_free"}, "give `lambda` or `select`, not both"),
        ({"lambda": None, "select": "label_free", "vector": None}, "a selected lambda needs a `vector`"),
        ({"vector__weights": [2.0]}, "weights must add up to 1"),
        (
            {"images": {"dataset": "folder", "root": "x/", "split": "val"}, "evaluate": {**VAL, "root": "./x"}},
            "`images` are the images of `evaluate`",
        ),
        (
            {
                "quantize__method": "gptaq",
                "quantize__calibration": {"on": "dataset", "dataset": "folder", "root": "x", "split": "val"},
                "evaluate": {**VAL, "root": "x"},
            },
            "`quantize.calibration` are the images of `evaluate`",
        ),
        (
            {**SELECTING, "select": "best", "variants": [{"name": "gptaq", "set": {"lambda": 0.0}}]},
            "names of variants must differ",
        ),
        (
            {**SELECTING, "select": "best", "quantize__method": "gptq", "quantize__calibration": {"on": "moments"}},
            "moments are not enough for gptaq",
        ),
        ({"lambda": None, "select": "labelled"}, "needs the block `images`, with labels"),
        ({**SELECTING, "select": {"methods": ["mse"]}}, "`methods` is for `by: best`"),
        ({**SELECTING, "select": {"by": "best", "methods": ["mse", "mse"]}}, "a method is named twice"),
        ({**SELECTING, "select": {"donors": "ridge"}, "vector__weights": [1.0]}, "finds the weights itself"),
        (
            {
                "lambda": None,
                "select": "labelled",
                "images": {"dataset": "tiny/realdigits", "split": "test"},
                "evaluate": {"dataset": "tiny/realdigits"},
            },
            "`images` are the images of `evaluate`",
        ),
        ({"gates": {"beats": ["lambda0"]}}, "add the block `evaluate`"),
        ({"gates": {"beats": ["ptk"]}, "evaluate": {"dataset": "tiny/realdigits"}}, "`ptk` is none of"),
        ({"quantize__grid": "mse"}, "method `rtn` is a grid itself"),
        ({"quantize__calibration": {"on": "generated"}}, "method `rtn` looks at no images"),
        (
            {"quantize__method": "gptaq", "quantize__calibration": {"on": "moments"}},
            "not enough for method `gptaq`",
        ),
        ({"quantize__method": "gptaq", "quantize__calibration": {"on": "images"}}, "needs the block `images`"),
        ({"quantize__method": "gptaq", "quantize__calibration": {"on": "dataset"}}, "`dataset` goes with"),
        ({"variants": [{"name": "v", "set": {"select": "best"}}]}, "belongs to the whole recipe"),
    ],
)
def test_contradictions_about_selection_are_refused(
    pico_recipe: Callable[..., Path], overrides: dict[str, Any], fragment: str
) -> None:
    assert fragment in _refusal(pico_recipe(**overrides)).message


def test_a_rival_method_of_the_gates_is_a_candidate(pico_recipe: Callable[..., Path]) -> None:
    gates = {"beats": ["lambda0", "mse"]}
    recipe = load_recipe(pico_recipe(gates=gates, evaluate={"dataset": "tiny/realdigits"}))
    by_name = {candidate.name: candidate for candidate in recipe.candidates()}
    assert list(by_name) == ["float", "ptq", "mse", "pico"]
    assert (by_name["mse"].lam, by_name["mse"].quantize.method) == (0.0, "mse")


def test_calibrated_methods_have_a_grid(pico_recipe: Callable[..., Path]) -> None:
    scheme = load_recipe(pico_recipe(quantize__method="gptaq")).quantize.scheme()
    assert scheme is not None
    assert scheme.method == "mse"
    scheme = load_recipe(
        pico_recipe(quantize__method="gptq", quantize__grid="rtn", quantize__clip=0.5)
    ).quantize.scheme()
    assert scheme is not None
    assert (scheme.method, scheme.clip) == ("rtn", 0.5)


def test_a_folder_of_vectors_is_its_files(pico_recipe: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "zoo").mkdir()
    for name in ("b.safetensors", "a.safetensors", "notes.txt"):
        (tmp_path / "zoo" / name).touch()
    recipe = load_recipe(pico_recipe(vector={"folder": "zoo"}))
    assert recipe.vector is not None
    assert recipe.vector.files == ("zoo/a.safetensors", "zoo/b.safetensors")
    assert recipe.vector.folder is None


def test_pinned_hashes_are_one_a_file_and_those_of_its_files(pico_recipe: Callable[..., Path]) -> None:
    pin = "ab" * 32
    recipe = load_recipe(pico_recipe(receiver__sha256=pin, vector__sha256=[pin]))
    assert recipe.vector is not None
    assert (recipe.receiver.sha256, recipe.vector.sha256) == (pin, (pin,))
    other = recipe.with_overrides({"vector.files": ["b", "c"], "receiver.checkpoint": "d"}, name="other")
    assert other.vector is not None
    assert (other.receiver.sha256, other.vector.sha256) == (None, ())
    assert "2 values of `sha256` for 1 files" in _refusal(pico_recipe(vector__sha256=[pin, pin])).message
    assert "receiver.sha256" in _refusal(pico_recipe(receiver__sha256="ab")).message


def test_a_folder_without_vectors_is_refused(pico_recipe: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "holds no vector" in _refusal(pico_recipe(vector={"folder": "empty"})).message
    with pytest.raises(StorageError, match="nowhere"):
        load_recipe(pico_recipe(vector={"folder": "nowhere"}))
    assert "name one of the two" in _refusal(pico_recipe(vector={"folder": "empty", "files": ["a"]})).message


def test_best_is_planned_under_the_names_of_its_methods(pico_recipe: Callable[..., Path]) -> None:
    recipe = load_recipe(pico_recipe(**SELECTING, select="best", name="gptaq"))
    names = [candidate.name for candidate in recipe.candidates()]
    assert names == ["float", "rtn", "rtn_patched", "gptaq", "gptaq_patched"]
    assert [c.quantize.method for c in recipe.candidates()[1:]] == ["rtn", "rtn", "gptaq", "gptaq"]


def test_best_needs_no_vector(pico_recipe: Callable[..., Path]) -> None:
    recipe = load_recipe(pico_recipe(**{"lambda": None}, select="best", vector=None))
    assert [candidate.name for candidate in recipe.candidates()] == ["float", "rtn", "gptaq"]


def test_a_variant_with_other_vectors_has_weights_of_its_own(pico_recipe: Callable[..., Path]) -> None:
    variants = [{"name": "one", "set": {"vector.files": ["a"]}}]
    recipe = load_recipe(pico_recipe(vector={"files": ["a", "b"], "weights": [0.3, 0.7]}, variants=variants))
    one = recipe.candidates()[-2]
    assert one.vector is not None
    assert one.vector.mixing() == (1.0,)


def test_a_level_alone_is_no_gate(pico_recipe: Callable[..., Path]) -> None:
    assert not load_recipe(pico_recipe(gates={"level": 0.01})).gates.asked
    assert load_recipe(pico_recipe(gates={"min_speedup": 1.0})).gates.asked


def test_a_variant_of_another_method_has_none_of_its_settings(pico_recipe: Callable[..., Path]) -> None:
    """Its own grid and calibration belong to the method that was left."""
    quantize = {"bits": 3, "method": "gptaq", "grid": "mse", "calibration": {"on": "generated", "count": 8}}
    variants = [{"name": "rounded", "set": {"quantize.method": "rtn"}}]
    recipe = load_recipe(pico_recipe(quantize=quantize, vector=None, variants=variants, **{"lambda": None}))
    (rounded,) = [candidate for candidate in recipe.candidates() if candidate.name == "rounded"]
    assert rounded.quantize.grid is None and rounded.quantize.calibration.on is None
    assert recipe.shipping(recipe).variants == recipe.variants
