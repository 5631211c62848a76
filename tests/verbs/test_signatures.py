"""Options read from source are those of the real functions and classes; reading, help and refusals load no torch."""

import inspect
import json
import subprocess
import sys
import textwrap
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pytest

from vitdistill.cli import main
from vitdistill.errors import UserError
from vitdistill.methods.mae import MAE
from vitdistill.methods.maskedkd import MaskedKD
from vitdistill.methods.mvd import MVD
from vitdistill.methods.selection.ranked import Ranked
from vitdistill.methods.tinymim import TinyMIM
from vitdistill.methods.videomae import VideoMAE
from vitdistill.verbs.arguments import Training
from vitdistill.verbs.job import trains
from vitdistill.verbs.messages import refusal
from vitdistill.verbs.needs import ABOVE_0, GIVEN, needs
from vitdistill.verbs.parser import parse, parse_config
from vitdistill.verbs.signatures import REQUIRED, options_of, signature_of, text_type
from vitdistill.verbs.source import OnlyInPython, Source, arguments_in
from vitdistill.verbs.table import TRAINING, VERBS, function_of, module_of, verb

# Constructors that the `**options` of a verb go to: MaskedKD hands its own on to its selector.
METHODS = {
    "maskedkd": (MaskedKD, Ranked),
    "tinymim": (TinyMIM,),
    "mae": (MAE,),
    "videomae": (VideoMAE,),
    "mvd": (MVD,),
}
BASE = ["--student", "digits_vit_small", "--data", "digits", "--out", "runs/x"]


# --- what is read is what there is -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in VERBS if not hasattr(verb(name), "rebuild")])
def test_options_of_a_plain_verb_are_its_parameters(name: str) -> None:
    real = inspect.signature(verb(name)).parameters
    read = options_of(name)
    assert set(read) == set(real)
    for option in read.values():
        assert option.default == real[option.name].default, option.name
        assert option.positional is (real[option.name].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD)
        assert option.type == text_type(real[option.name].annotation)[0], option.name


@pytest.mark.parametrize("name", METHODS)
def test_options_of_a_training_verb_are_those_of_its_method(name: str) -> None:
    real = keyword_only(name)
    handed_on = {option.name: option for option in options_of(name).values() if option.handed_on}
    assert handed_on and handed_on.keys() <= real.keys()
    for option in handed_on.values():
        assert option.default == real[option.name].default, option.name
        python = get_args(text_type(real[option.name].annotation)[0]) or (text_type(real[option.name].annotation)[0],)
        assert set(get_args(option.type) or (option.type,)) <= set(python), (
            option.name
        )  # which may take objects besides
    texts = [arguments_in(inspect.getdoc(each.__init__) or "") for each in METHODS[name]]
    for option in handed_on.values():
        assert option.help in [text.get(option.name) for text in texts], option.name


def keyword_only(name: str) -> dict[str, inspect.Parameter]:
    """The keyword-only arguments of a verb's constructors."""
    found: dict[str, inspect.Parameter] = {}
    for each in reversed(METHODS[name]):
        found |= {p.name: p for p in inspect.signature(each.__init__).parameters.values() if p.kind is p.KEYWORD_ONLY}
    return found


@pytest.mark.parametrize("name", METHODS)
def test_what_a_verb_sets_itself_is_no_option_of_it(name: str) -> None:
    left = keyword_only(name).keys() - options_of(name).keys()
    assert left == ({"smoothing"} if name == "maskedkd" else set())


@pytest.mark.parametrize("name", TRAINING)
def test_training_verbs_take_the_shared_options(name: str) -> None:
    shared = {"out", "epochs", "batch_size", "augment", "optim", "loader", "precision", "compile", "seed", "resume"}
    assert shared | {"overwrite", "trainer"} <= set(options_of(name))
    assert options_of(name)["out"].default is REQUIRED
    assert inspect.signature(verb(name)).parameters.keys() == options_of(name).keys()


def test_defaults_of_a_verb_win_over_the_shared_ones() -> None:
    assert Training(data="a", out="b").epochs == 300
    assert [options_of(name)["epochs"].default for name in ("mae", "mvd", "finetune", "maskedkd")] == [
        800,
        400,
        100,
        300,
    ]
    assert options_of("videomae")["drop_path"].default == 0.0 and options_of("mvd")["drop_path"].default == 0.1
    assert options_of("tinymim")["optim"].default.warmup_epochs == 15
    assert options_of("mae")["augment"].default.recipe == "pretrain"


def test_the_docstring_in_python_lists_every_option() -> None:
    text = inspect.getdoc(verb("maskedkd")) or ""
    assert text.startswith("Distil a teacher") and "Returns:" in text
    assert arguments_in(text) == {name: option.help for name, option in options_of("maskedkd").items()}


def test_module_objects_are_no_options_of_the_command_line() -> None:
    assert options_of("maskedkd")["student"].type is str
    assert options_of("maskedkd")["teacher"].type == str | None
    assert options_of("maskedkd")["keep"].type == int | float | str  # a KeepSchedule is what that text becomes
    assert "Criterion" not in str(options_of("maskedkd")["criterion"].type)


def test_reading_runs_nothing() -> None:
    source = Source("vitdistill.methods.selection.ranked")
    assert "Ranked" in source and get_origin(source["Keep"]) is Annotated
    assert source["Ranked"] is source["Teacher"] is source["torch"].Tensor is OnlyInPython


# --- without torch -----------------------------------------------------------------------------------------------


def outcomes(commands: list[list[str]]) -> list[dict[str, Any]]:
    """What each command of a fresh process prints and returns, and which heavy modules it has loaded by then."""
    code = """
        import contextlib, io, json, sys
        from vitdistill.cli import main
        results = []
        for words in json.loads(sys.argv[1]):
            out, err = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                try:
                    status = main(words)
                except SystemExit as stopped:
                    status = stopped.code
            heavy = [name for name in ("torch", "numpy", "jaxtyping", "timm", "lightning") if name in sys.modules]
            results.append({"status": status, "out": out.getvalue(), "err": err.getvalue(), "heavy": heavy})
        print(json.dumps(results))
    """
    words = [sys.executable, "-c", textwrap.dedent(code), json.dumps(commands)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_help_of_every_verb_loads_no_torch() -> None:
    for name, result in zip(VERBS, outcomes([[name, "--help"] for name in VERBS]), strict=True):
        assert result["status"] == 0 and f"vitdistill {name}" in result["out"], name
        assert result["heavy"] == [], name


def test_unknown_options_and_values_of_every_verb_load_no_torch() -> None:
    commands = [[name, "--no_such_option", "1"] for name in VERBS]
    for name, result in zip(VERBS, outcomes(commands), strict=True):
        assert result["status"] == 2 and result["heavy"] == [], name
        assert "There is no option --no_such_option" in result["err"] or "required" in result["err"], name


def test_what_text_decides_loads_no_torch(tmp_path: Any) -> None:
    (tmp_path / "occupied").mkdir()
    (tmp_path / "occupied" / "mine.txt").write_text("")
    (tmp_path / "twice.yaml").write_text("keep: 0.5\nkeep: 0.6\n")
    student = ["--student", "digits_vit_small", "--data", "digits"]
    base = [*student, "--out", str(tmp_path / "run")]
    cases = {
        "--epochs must be a whole number; got 'many'": ["supervised", *base, "--epochs", "many"],
        "--out must be a file that ends in .onnx": ["export", "nosuch", "--format", "onnx", "--out", "x.pt"],
        "epochs must be at least 1": ["supervised", *base, "--epochs", "0"],
        "--augment.scale must be a number or null; got '[0.6, 1.0]'": ["mae", *base, "--augment.scale", "[0.6,1.0]"],
        "mixup -1.0": ["maskedkd", *base, "--alpha", "0", "--augment.mixup", "-1"],
        "--linear_only true needs a student with trained weights; got digits_vit_small": [
            *("maskedkd", *base, "--teacher", "digits-teacher", "--linear_only", "true")
        ],
        "A template must have one {} for the name of a class; got 'a photo'": [
            *("text-embeddings", "clip", "--classes", "imagenet-1k", "--template", "a photo", "--out", "x.safetensors")
        ],
        "optim.lr must be positive": ["mae", *base, "--optim.lr", "0"],
        "keep must be a finite number; got nan": ["maskedkd", *base, "--keep", "nan"],
        "keep must be a positive number": ["maskedkd", *base, "--keep", "-3"],
        "keep must be a number": ["cost", "--teacher", "deit_tiny_patch16_224", "--keep", "half"],
        "relations must be some of": ["tinymim", *base, "--teacher", "digits-mae", "--relations", "qk+v"],
        "--network has no effect unless --criterion is network or network+random. Leave it out": [
            *["maskedkd", *base, "--network", "digits-teacher"],
        ],
        "alpha must lie in [0, 1]; got 2": ["maskedkd", *base, "--alpha", "2"],
        "tau must be positive; got 0": ["maskedkd", *base, "--tau", "0"],
        "--terms.manifold.rows must be at least 2; got 0": [
            *["maskedkd", *base, "--distill", "manifold", "--terms.manifold.rows", "0"],
        ],
        "--terms.attention.temperature must be positive; got -1": [
            *["maskedkd", *base, "--distill", "attention", "--terms.attention.temperature", "-1"],
        ],
        "loggers must be some of tensorboard, csv, wandb, mlflow; got 'wandv'. Did you mean 'wandb'": [
            *["mae", *base, "--loggers", "csv,wandv"],
        ],
        "--trainer.logger is set by vitdistill. Use --loggers": ["mae", *base, "--trainer.logger", "wandb"],
        "--loader.balance has no effect in training without labels": ["mae", *base, "--loader.balance", "true"],
        "out must end in .csv; got 'x.txt'": ["check", "digits", "--out", "x.txt"],
        "Only labelled images can be mixed": ["mae", *base, "--augment.recipe", "deit"],
        "got 'deit_smal_patch16_224'. Did you mean 'deit_small_patch16_224'": [
            *["cost", "--teacher", "deit_smal_patch16_224"],
        ],
        "got 'digits_vit_smal'. Did you mean 'digits_vit_small'": ["mae", *base, "--student", "digits_vit_smal"],
        "got 'vit_bse_patch16_224.mae'": ["knn", "vit_bse_patch16_224.mae", "--data", "digits"],
        "duplicate key 'keep' (line 2 of": ["maskedkd", "--config", str(tmp_path / "twice.yaml")],
        "must be an existing folder or a bundled source": ["mae", "--data", "digit", "--student", "x", "--out", "y"],
        "got 'digit'. Did you mean 'digits'": ["knn", "digits-teacher", "--data=digit"],
        "must be new or empty": ["supervised", *student, "--out", str(tmp_path / "occupied")],
        "contains files that no run wrote (mine.txt)": [
            *["supervised", *student, "--out", str(tmp_path / "occupied"), "--overwrite"],
        ],
        "The weights file must exist; got gone.safetensors": ["mae", *base, "--init", "gone.safetensors"],
        "transformers saved; got gone (no folder)": [
            *["text-embeddings", "gone", "--classes", "imagenet-1k", "--out", "x.safetensors"],
        ],
        "drop_path must lie in [0, 1); got 2.0": ["supervised", *base, "--drop_path", "2"],
        "There must be a run to resume": ["supervised", *base, "--resume"],
        "A run directory holds run.json or config.yaml": ["resume", str(tmp_path / "none")],
        "got nosuch (nothing there)": ["export", "nosuch"],
        "got '1.5'": ["evaluate", "digits-teacher", "--keep", "0.5,1.5"],
        "criterion must be one or several of": ["evaluate", "digits-teacher", "--keep", "0.5", "--criterion", "chance"],
        "The criterion student needs a student": [
            *["evaluate", "digits-teacher", "--keep", "0.5,1.0", "--criterion", "random,student"],
        ],
        "--student has no effect unless --criterion names student": [
            *["evaluate", "digits-teacher", "--keep", "0.5", "--student", "digits_vit_small"],
        ],
        "must be a mapping": ["chain", write(tmp_path / "chain.yaml", "- a\n"), "--out", str(tmp_path)],
    }
    for words, result in zip(cases, outcomes(list(cases.values())), strict=True):
        assert result["status"] == 2 and words in result["err"], (words, result)
        assert result["heavy"] == [], words


def write(path: Any, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_unknown_models_are_refused_without_the_network(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """timm knows its names and tags itself; only weights that exist are ever asked for."""
    asked: list[Any] = []

    def refused(*address: Any, **_: Any) -> None:
        asked.append(address)
        raise AssertionError("the network was asked")

    for function in ("socket.connect", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(f"socket.{function}", refused)
    base = ["maskedkd", "--student", "digits_vit_small", "--data", "digits", "--out", "runs/never"]
    expected = {
        "deit_smal_patch16_224": "Did you mean 'deit_small_patch16_224'",
        "deit_small_patch16_224.nonsense": "timm has no weights 'nonsense' of deit_small_patch16_224",
        "vit_base_patch16_224.maee": "timm has no weights 'maee'",
    }
    for teacher, words in expected.items():
        assert main([*base, "--teacher", teacher]) == 2
        assert words in capsys.readouterr().err and not asked


# --- messages ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "words", "message"),
    [
        ("supervised", [*BASE, "--image_size", "big"], "--image_size must be a whole number or null; got 'big'"),
        ("supervised", [*BASE, "--optim.lr", "fast"], "--optim.lr must be a number; got 'fast'"),
        ("supervised", [*BASE, "--optim.betas", "1"], "--optim.betas must be a list of numbers or null; got '1'"),
        (
            "supervised",
            [*BASE, "--optim.schedule", "cosin"],
            "--optim.schedule must be cosine, constant, step, multistep, poly or wsd; got 'cosin'. Did you mean 'cosi",
        ),
        ("supervised", [*BASE, "--epochs"], "--epochs needs a value"),
        ("supervised", [*BASE, "--compile", "maybe"], "--compile must be true or false; got 'maybe'"),
        (
            "supervised",
            [*BASE, "--student_args", "3"],
            "--student_args must be a mapping, such as --student_args.name value or null; got '3'",
        ),
        ("evaluate", ["x", "--sampling", "dens"], "--sampling must be dense, uniform or null; got 'dens'"),
        ("evaluate", ["x", "--crops", "2"], "--crops must be 1 or 3; got '2'"),
        ("knn", ["x", "--k", "few"], "--k must be a whole number or a list of whole numbers; got 'few'"),
        ("bench", ["--keep", "x"], "--keep must be a number or a list of numbers; got 'x'"),
        (
            "mvd",
            [*BASE, "--decoder", "big"],
            "--decoder must be given field by field, such as --decoder.width; got 'big'",
        ),
        ("report", [], "--runs is required"),
    ],
)
def test_refused_values_are_one_plain_line(verb: str, words: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        parse(verb, words)
    assert str(error.value).startswith(message)


def test_unknown_keys_of_a_configuration_name_near_ones() -> None:
    base = {"student": "x", "data": "digits", "out": "y"}
    with pytest.raises(UserError, match="There is no option kepe. Did you mean '--keep'"):
        parse_config("maskedkd", {**base, "kepe": 0.5})
    with pytest.raises(UserError, match="There is no option lrr. Did you mean '--optim.lr'"):
        parse_config("maskedkd", {**base, "optim": {"lrr": 1}})


def test_a_complaint_that_is_not_understood_is_passed_on() -> None:
    assert str(refusal("Something\n  new", "maskedkd")) == "Something new"


# --- what has no effect ------------------------------------------------------------------------------------------


def test_needs_are_checked_and_said() -> None:
    one = needs("network", criterion=("network", "network+random"))
    assert one.words == "--criterion is network or network+random"
    assert one.met({"criterion": "network"}) and not one.met({"criterion": "student"})
    two = needs("weight", teacher=GIVEN, bootstrap=GIVEN)
    assert two.words == "--teacher or --bootstrap is given"
    assert two.met({"teacher": None, "bootstrap": 0.5}) and not two.met({"teacher": None, "bootstrap": None})
    assert needs("text", alpha=ABOVE_0).words == "--alpha is above 0"
    assert not needs("text", alpha=ABOVE_0).met({"alpha": 0.0})


def test_the_default_that_is_compared_with_is_that_of_the_signature(tmp_path: Any) -> None:
    """Giving the default itself is no error, whatever it is; another value is."""
    share = options_of("maskedkd")["random_share"].default
    options: dict[str, Any] = {"student": "digits_vit_small", "data": "nowhere", "out": str(tmp_path / "x")}
    with pytest.raises(UserError, match="--data must be"):
        verb("maskedkd")(**options, random_share=share)
    with pytest.raises(UserError, match="--random_share has no effect unless --criterion is network"):
        verb("maskedkd")(**options, random_share=share / 2)


def test_a_verb_is_called_with_its_own_options_only() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'kep'"):
        verb("maskedkd")(student="x", data="digits", out="y", kep=1)
    with pytest.raises(TypeError, match="missing a required argument: 'data'"):
        verb("maskedkd")(student="x", out="y")


def test_every_verb_has_a_module_of_its_name() -> None:
    for name in VERBS:
        assert hasattr(import_module(module_of(name)), function_of(name))
    assert "finetune" in TRAINING and "evaluate" not in TRAINING
    assert trains.__module__ == "vitdistill.verbs.job"
    assert signature_of("finetune").parameters["model"].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD


def test_a_rising_schedule_of_merging_is_no_number_in_base_60(tmp_path: Path) -> None:
    assert parse("cost", ["--teacher", "digits-teacher", "--teacher_merge", "8:1"])["teacher_merge"] == "8:1"
    file = tmp_path / "cost.yaml"
    for written in ('"8:1"', "8:1"):
        file.write_text(f"teacher: digits-teacher\nteacher_merge: {written}\n")
        assert parse("cost", ["--config", str(file)])["teacher_merge"] == "8:1"
