"""Every recipe parses, opens with what its reader needs to know, and states costs that the cost model confirms."""

import re
import shlex
from dataclasses import asdict, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from vitdistill.data.images.augment import Augment
from vitdistill.methods.g2sd import G2SD
from vitdistill.methods.mae import MAE
from vitdistill.methods.maskedkd import MaskedKD
from vitdistill.methods.supervised import Supervised
from vitdistill.methods.tinymim import TinyMIM
from vitdistill.models.autoencoder import MaskedAutoencoder
from vitdistill.models.backbone import Backbone
from vitdistill.models.build import build
from vitdistill.models.families.linear_only import linear_only
from vitdistill.models.surgery.attention_heads import head_count
from vitdistill.models.surgery.dist_token import with_dist_token
from vitdistill.tokens.keep import keep_count
from vitdistill.training.optim import make_optimizer, make_schedules, plan_groups
from vitdistill.training.settings import Optim
from vitdistill.verbs.chain import read_chain
from vitdistill.verbs.parser import check_yaml, parse, parse_config
from vitdistill.verbs.signatures import options_of
from vitdistill.verbs.table import verb

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
CHAINS = [path for path in RECIPES if "steps" in yaml.safe_load(path.read_text())]
SWEEPS = [path for path in RECIPES if path.stem == "sweep"]
RUNS = [path for path in RECIPES if path not in (*CHAINS, *SWEEPS)]
READY = ROOT / "recipes" / "maskedkd" / "ready_for_masks.yaml"
LINEAR = [path for path in RECIPES if path.parent.name == "linear_only"]
PAPER = [*(path for path in RECIPES if path.parent.name == "maskedkd" and path != READY), *LINEAR]
TINYMIM = [path for path in RUNS if path.parent.name == "tinymim" and "_from_" in path.stem]
MAES = [path for path in RUNS if path.parent.name == "mae" and "finetune" not in path.stem]
TUNED = [path for path in RUNS if path.stem.endswith("_finetune")]
VIDEO = [path for path in RUNS if path.parent.name == "mvd"]
MVDS = [path for path in VIDEO if "_from_" in path.stem]
VIDEOMAES = [path for path in VIDEO if path.stem.startswith("videomae")]
ACTIONS = [path for path in VIDEO if "_finetune_" in path.stem]
KEYS = ("command", "hardware", "time", "score")
# One row of the table in a header: option, patches seen, accuracy, PFLOPs; "-" where the paper prints none.
ROW = re.compile(r"^\s*--keep (\S+)\s+(\d+) of (\d+)\s+([\d.]+)\s+(\d+|-)$", re.MULTILINE)

# The paper's cells of this teacher are a common factor below the count, most likely a slip in the number of images.
SLIPS = {"convvit_base_patch16_224": 1_231_167 / 1_281_167}


def recipe(paths: list[Path]) -> Any:
    return pytest.mark.parametrize("path", paths, ids=lambda path: f"{path.parent.name}/{path.stem}")


def header(path: Path) -> str:
    """The opening comment without its marks, continued lines joined."""
    lines = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        lines.append(line[1:].strip())
    return re.sub(r"\s*\\\n\s*", " ", "\n".join(lines))


def stated(path: Path, key: str) -> str:
    found = re.search(rf"^{key}:\s+(\S.*)$", header(path), re.MULTILINE)
    assert found, f"the header of {path} lacks a line '{key}:'"
    return found[1]


@cache
def teacher_of(name: str) -> Backbone:
    """A teacher without weights."""
    return build(name, meta=True)


def parsed(command: str) -> tuple[str, dict[str, Any]]:
    """Verb and values of a command line, read as the command itself reads it."""
    program, name, *arguments = shlex.split(command)
    assert program == "vitdistill"
    return name, plain_groups(parse(name, arguments))


def plain_groups(values: dict[str, Any]) -> dict[str, Any]:
    """Groups of options as the mappings that a recipe writes."""
    return {key: asdict(value) if is_dataclass(value) else value for key, value in values.items()}  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    """Header commands name recipes relative to the repository."""
    monkeypatch.chdir(ROOT)


def test_there_are_recipes() -> None:
    assert len(PAPER) >= 8 and len(RECIPES) > len(PAPER)
    assert (len(MAES), len(TINYMIM), len(TUNED), len(CHAINS)) == (2, 3, 5, 4)
    assert (len(MVDS), len(VIDEOMAES), len(ACTIONS)) == (6, 3, 10)


@recipe(RECIPES)
def test_header_says_what_a_reader_needs(path: Path) -> None:
    for key in KEYS:
        assert stated(path, key)
    assert header(path).splitlines()[0].endswith(".")


def holds(got: Any, wanted: Any) -> bool:
    """Whether what was parsed is what a file says; of a group of options, all that the file says of it."""
    if not isinstance(wanted, dict):
        return bool(got == wanted)
    return all(name in got and holds(listed(got[name]), value) for name, value in wanted.items())


@recipe(RUNS)
def test_command_of_the_header_runs_this_file(path: Path) -> None:
    check_yaml(path)
    command = stated(path, "command")
    assert f"--config {path.relative_to(ROOT)} " in command
    _, values = parsed(command)
    for key, value in yaml.safe_load(path.read_text()).items():
        got = listed(values[key])
        assert holds(got, value), key
    assert values["out"].startswith("runs/")
    Augment(**values["augment"]).resolved()


def listed(value: Any) -> Any:
    """Tuples as YAML writes them."""
    if isinstance(value, dict):
        return {key: listed(part) for key, part in value.items()}
    return list(value) if isinstance(value, tuple) else value


@recipe(SWEEPS)
def test_command_of_a_sweep_runs_this_file(path: Path) -> None:
    name, values = parsed(stated(path, "command"))
    assert name == "sweep" and values["study"] == str(path.relative_to(ROOT)) and values["out"].startswith("runs/")


@recipe([path for path in RECIPES if "cost:" in path.read_text()])
def test_cost_command_is_about_the_same_training(path: Path) -> None:
    _, training = parsed(stated(path, "command"))
    name, cost = parsed(stated(path, "cost"))
    assert name == "cost"
    epochs = 1 if path.parent.name == "audio" else training["epochs"]  # the paper counts one epoch of sound
    assert (cost["student"], cost["epochs"]) == (training["student"], epochs)
    if path in PAPER:
        assert (cost["teacher"], cost["keep"]) == (training["teacher"], training["keep"])
        assert cost["images"] == 1_281_167


@recipe(PAPER)
def test_published_cost_is_what_the_cost_command_says(path: Path) -> None:
    _, options = parsed(stated(path, "cost"))
    rows = ROW.findall(header(path))
    teacher = teacher_of(options["teacher"])
    published, slip = {}, SLIPS.get(options["teacher"], 1.0)
    for keep, count, patches, _, pflops in rows:
        assert int(patches) == teacher.grid.count
        assert keep_count(keep, teacher.grid.count) == int(count)
        if pflops != "-":
            published[int(count)] = float(pflops)
            counted = teacher.macs(int(count)).total * options["epochs"] * options["images"] / 1e15
            assert slip * counted == pytest.approx(float(pflops), rel=0.003)
    said = verb("cost")(**{**options, "student": None, "linear_only": False, "json": True})["teacher_pflops"]
    assert slip * said == pytest.approx(published[options["keep"]], rel=0.003)


@recipe(PAPER)
def test_score_is_that_of_the_row_trained(path: Path) -> None:
    _, training = parsed(stated(path, "command"))
    score = {int(count): top1 for _, count, _, top1, _ in ROW.findall(header(path))}[training["keep"]]
    assert stated(path, "score").startswith(f"{score}% top-1, published")


@recipe(PAPER)
def test_networks_exist_and_have_the_same_classes(path: Path) -> None:
    _, training = parsed(stated(path, "command"))
    student = build(training["student"], args=training["student_args"], num_classes=1000, meta=True)
    teacher = teacher_of(training["teacher"])
    assert training["teacher_args"] is None
    assert student.num_classes == 1000
    assert teacher.num_classes == (512 if training["teacher_text"] else 1000)
    assert teacher.maskable


@recipe(PAPER)
def test_global_batch_is_that_of_the_papers(path: Path) -> None:
    _, training = parsed(stated(path, "command"))
    assert global_batch(training) == 1024


def global_batch(training: dict[str, Any]) -> int:
    """On the eight GPUs that the headers name."""
    return int(8 * training["batch_size"] * training["optim"]["accumulate"])


@recipe(LINEAR)
def test_linear_classifiers_are_trained_as_dinos_are(path: Path) -> None:
    _, training = parsed(stated(path, "command"))
    optim, augment = training["optim"], Augment(**training["augment"]).resolved()
    assert training["linear_only"] and training["pretrained"] and training["epochs"] == 100
    assert (optim["name"], optim["weight_decay"], optim["warmup_epochs"], optim["min_lr"]) == ("momentum", 0, 0, 0)
    assert optim["lr"] / optim["lr_batch"] == 1e-3 / 256
    assert (augment.scale, augment.hflip, augment.crop_pct, augment.smoothing) == (0.08, 0.5, 0.875, 0.0)
    net = linear_only(build(training["student"], meta=True), 1000).net
    assert net.features == training["linear_features"]  # what auto would take


def test_a_teacher_is_made_ready_for_masks_gently() -> None:
    """In a few epochs on half of the patches, more slowly than fine-tuning; and nobody has published it."""
    name, tuned = parsed(stated(READY, "command"))
    assert name == "finetune" and (tuned["patch_drop"], tuned["new_head"]) == (0.5, False) and tuned["epochs"] <= 5
    default = options_of("finetune")["optim"].default
    assert tuned["optim"]["lr"] / tuned["optim"]["lr_batch"] < default.lr / default.lr_batch
    assert not Augment(**tuned["augment"]).mixes
    Supervised(teacher_of(tuned["model"]), patch_drop=tuned["patch_drop"])
    assert "measured by us" in stated(READY, "score") and "ours" in stated(READY, "score")
    then = re.search(r"vitdistill maskedkd .*", header(READY))
    assert then
    _, distilled = parsed(then[0])
    assert distilled["teacher"] == tuned["out"] and distilled["keep"] in (tuned["patch_drop"], "0.5")


# --- MAE and TinyMIM ---------------------------------------------------------------------------------------------


@recipe([*MAES, *TINYMIM])
def test_pre_training_has_the_papers_batch_and_rate(path: Path) -> None:
    _, training = parsed(stated(path, "command"))
    optim = training["optim"]
    assert global_batch(training) == 4096
    assert optim["lr"] * global_batch(training) / optim["lr_batch"] == pytest.approx(2.4e-3)
    assert training["augment"]["recipe"] == "pretrain"
    assert "after fine-tuning, published" in stated(path, "score")


@recipe(TUNED)
def test_fine_tuning_has_the_papers_batch_and_a_model_that_recipes_make(path: Path) -> None:
    name, training = parsed(stated(path, "command"))
    assert name == "finetune" and global_batch(training) == 1024
    assert training["augment"]["recipe"] == "finetune"
    assert encoder(training["model"]).num_classes == 0
    assert re.match(r"[\d.]+% top-1, published", stated(path, "score"))


@recipe([*MAES, *TINYMIM, *TUNED])
def test_recipes_named_in_a_header_exist(path: Path) -> None:
    named = re.findall(r"recipes/[\w/]+\.yaml", header(path))
    assert named and all((ROOT / name).is_file() for name in named)


@recipe(MAES)
def test_mae_fits_its_encoder(path: Path) -> None:
    _, training = parsed(stated(path, "command"))
    student = encoder(training["student"])
    method = MAE(student, mask_ratio=training["mask_ratio"], decoder_width=training["decoder_width"])
    assert method.visible == student.grid.count // 4


@pytest.mark.parametrize(("stem", "heads", "last"), [("vit_b", 12, 16), ("vit_s", 6, 16), ("vit_t", 6, 16)])
def test_last_block_gets_the_heads_of_the_teacher(stem: str, heads: int, last: int) -> None:
    path = next(path for path in TINYMIM if path.stem.startswith(stem))
    student = distilled(path).student
    assert [head_count(student, block) for block in range(student.depth)] == [heads] * 11 + [last]


def distilled(path: Path) -> TinyMIM:
    """A TinyMIM recipe's networks, without weights, as the method puts them together."""
    _, options = parsed(stated(path, "command"))
    student = build(options["student"], args=options["student_args"], num_classes=0, meta=True)
    return TinyMIM(
        student,
        encoder(options["teacher"]),
        relations=options["relations"],
        teacher_block=options["teacher_block"],
        align_heads=options["align_heads"],
    )


def encoder(spec: str) -> Backbone:
    """A network by name, or the student of the recipe whose header writes the run."""
    if not spec.startswith("runs/"):
        return teacher_of(spec)
    path = next(path for path in [*MAES, *TINYMIM] if stated(path, "command").endswith(f"--out {spec}"))
    if path in TINYMIM:
        return distilled(path).student
    return build(parsed(stated(path, "command"))[1]["student"], num_classes=0, meta=True)


# --- AST ---------------------------------------------------------------------------------------------------------

AST_B, AST_S = (ROOT / "recipes" / "audio" / f"{name}.yaml" for name in ("ast_base_esc50", "ast_small_from_ast_base"))


@recipe([AST_B, AST_S])
def test_sound_has_the_authors_optimizer_and_schedule(path: Path) -> None:
    """Adam, whose weight decay is part of the gradient; from the sixth epoch on 0.85 of the rate of the one before."""
    _, training = parsed(stated(path, "command"))
    optim = Optim(**training["optim"])
    peak = {AST_B: 1e-5, AST_S: 1e-4}[path]
    assert (training["epochs"], training["batch_size"], training["precision"]) == (25, 48, "16-mixed")
    assert training["drop_path"] == 0 and optim.layer_decay is None and Augment(**training["augment"]).recipe == "sound"
    method = Supervised(build("ast_tiny", args={"embed_dim": 24, "depth": 1, "num_heads": 3, "img_size": [16, 16]}))
    optimizer = make_optimizer(method, plan_groups(method, optim), optim, training["batch_size"])
    assert type(optimizer) is torch.optim.Adam and optimizer.defaults["betas"] == (0.95, 0.999)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 5e-7}
    steps = 34  # of an epoch: the last batch has 16 clips
    (schedule,) = make_schedules(optimizer, optim, training["epochs"], steps)
    for epoch in range(1, training["epochs"] + 1):
        for step in (0, steps - 1):
            schedule.step_update((epoch - 1) * steps + step)
            assert optimizer.param_groups[0]["lr"] == pytest.approx(peak * 0.85 ** max(0, epoch - 5)), (epoch, step)


def test_sound_is_distilled_at_the_published_cost_from_the_teacher_beside_it() -> None:
    _, training = parsed(stated(AST_S, "command"))
    _, tuned = parsed(stated(AST_B, "command"))
    assert training["teacher"] == tuned["out"] and training["pretrained"] and tuned["new_head"]
    _, options = parsed(stated(AST_S, "cost"))
    assert (options["teacher"], options["keep"]) == (tuned["model"].partition("@")[0], training["keep"])
    assert (options["epochs"], options["images"]) == (1, 1600)
    teacher = teacher_of(options["teacher"])
    rows = re.findall(r"^\s*--keep (\S+)\s+(\d+) of (\d+)\s+([\d.]+)\s+([\d.]+)$", header(AST_S), re.MULTILINE)
    assert [float(row[-1]) for row in rows] == [92.8, 75.9, 44.0]
    for keep, count, patches, _, published in rows:
        assert int(patches) == teacher.grid.count and keep_count(keep, teacher.grid.count) == int(count)
        counted = teacher.macs(int(count)).total * 1600 / 1e12
        assert counted == pytest.approx(float(published), rel=0.003)
    assert stated(AST_S, "score").startswith(f"{rows[2][3]}% top-1")


# --- G2SD --------------------------------------------------------------------------------------------------------

GENERIC, SPECIFIC = (ROOT / "recipes" / "g2sd" / f"vit_s_{name}.yaml" for name in ("from_mae_b", "specific"))


def test_generic_stage_of_g2sd_has_the_papers_settings() -> None:
    name, training = parsed(stated(GENERIC, "command"))
    optim = training["optim"]
    assert (name, global_batch(training), training["epochs"]) == ("g2sd", 4096, 300)
    assert optim["lr"] * global_batch(training) / optim["lr_batch"] == pytest.approx(2.4e-3)
    student = build(training["student"], num_classes=0, meta=True)
    with torch.device("meta"):
        mae = MAE(teacher_of(training["teacher"].partition("@")[0]))
        names = ("teacher_block", "supervise", "mask_ratio", "decoder_width", "decoder_depth", "decoder_heads")
        network = MaskedAutoencoder(mae.student, mae.decoder)
        method = G2SD(student, network, **{name: training[name] for name in names})
        plain = G2SD(build(training["student"], num_classes=0, meta=True), network)
    assert method.targets["hidden"].block == plain.targets["hidden"].block == 3 and method.visible == 49
    assert {n: p.shape for n, p in method.named_parameters()} == {n: p.shape for n, p in plain.named_parameters()}


def test_specific_stage_of_g2sd_goes_on_with_it_and_costs_what_is_published() -> None:
    name, training = parsed(stated(SPECIFIC, "command"))
    assert (name, global_batch(training), training["epochs"]) == ("maskedkd", 1024, 200)
    assert training["student"] == parsed(stated(GENERIC, "command"))[1]["out"]
    tuned = ROOT / "recipes" / "mae" / "vit_b_finetune.yaml"
    assert training["teacher"] == parsed(stated(tuned, "command"))[1]["out"]
    pooled = {"global_pool": "avg", "fc_norm": True}
    teacher = build("vit_base_patch16_224.mae", args=pooled, num_classes=1000, meta=True)
    rows = {
        int(count): (keep_count(keep, 196), float(pflops))
        for keep, count, _, _, pflops in ROW.findall(header(SPECIFIC))
    }
    assert {count: pflops for count, (_, pflops) in rows.items()} == {196: 4505, 144: 3287}
    for count, (kept, published) in rows.items():
        assert kept == count
        counted = teacher.macs(count).total * training["epochs"] * 1_281_167 / 1e15
        assert counted == pytest.approx(published, rel=0.003)
    student = build("deit_small_patch16_224", num_classes=1000, meta=True)
    method = MaskedKD(with_dist_token(student, fresh_head=True), teacher, keep=training["keep"], distillation="hard")
    assert method.kept_patches(0.0) == 144 and method.weights == {"kd": 0.5}
    _, one = method.passes(0.0)
    assert one.macs * 200 * 1_281_167 / 1e15 == pytest.approx(3287, rel=0.003)


# --- MVD ---------------------------------------------------------------------------------------------------------


@recipe([*MVDS, *VIDEOMAES])
def test_video_pre_training_has_the_papers_batch_and_rate(path: Path) -> None:
    _, training = parsed(stated(path, "command"))
    optim = training["optim"]
    assert global_batch(training) == (512 if path in MVDS and path.stem[4] in "lh" else 1024)
    assert optim["lr"] / optim["lr_batch"] == pytest.approx(1.5e-4 / 256)
    floor = (1e-4 if training["epochs"] == 400 else 1e-5) * global_batch(training) / 256
    assert optim["min_lr"] == pytest.approx(floor if path in MVDS else 1e-5)
    assert (training["mask_ratio"], training["mask"], training["stride"]) == (0.9, "tube", 4)
    assert training["augment"]["recipe"] == "pretrain"


@recipe(MVDS)
def test_teachers_of_a_video_student_fit(path: Path) -> None:
    """Same grid of patches, and the video teacher is the run of a recipe."""
    _, training = parsed(stated(path, "command"))
    student = build(training["student"], num_classes=0, meta=True)
    image = build(training["image_teacher"], args=training["image_teacher_args"], num_classes=0, meta=True)
    assert (image.grid.h, image.grid.w) == (student.grid.h, student.grid.w)
    source = next(path for path in VIDEOMAES if stated(path, "command").endswith(f"--out {training['video_teacher']}"))
    video = build(parsed(stated(source, "command"))[1]["student"], num_classes=0, meta=True)
    assert video.grid == student.grid
    assert training["decoder"].items() >= DECODERS[path.stem[4]].items()


DECODERS = {
    "s": {"width": 384, "depth": 2, "heads": 6},
    "b": {"width": 768, "depth": 2, "heads": 12},
    "l": {"width": 512, "depth": 4, "heads": 8},
    "h": {"width": 640, "depth": 8, "heads": 8},
}


@recipe(ACTIONS)
def test_action_recognition_starts_from_a_recipe_and_is_tested_with_the_papers_views(path: Path) -> None:
    name, training = parsed(stated(path, "command"))
    assert name == "finetune" and any(
        stated(source, "command").endswith(f"--out {training['model']}") for source in MVDS
    )
    motion = path.stem.endswith("ssv2")
    assert training["sampling"] == ("uniform" if motion else "dense")
    assert training["augment"]["hflip"] == (0 if motion else 0.5) and training["augment"]["repeats"] == 2
    # Two clips of each video are two samples of the batch, and an epoch is as many samples as there are videos.
    assert global_batch(training) == 256 and training["optim"]["lr_batch"] == 512
    passes = re.search(r"are (\d+) passes over the videos", header(path))
    assert passes and training["epochs"] == 2 * int(passes[1])
    name, test = parsed(stated(path, "test"))
    assert name == "evaluate" and test["model"] == training["out"]
    assert (test["clips"], test["crops"]) == (2 if motion else 5, 3)
    assert re.match(r"[\d.]+% top-1 .* published", stated(path, "score"))


# --- chains ------------------------------------------------------------------------------------------------------


@recipe(CHAINS)
def test_command_of_a_chain_runs_this_file(path: Path) -> None:
    name, values = parsed(stated(path, "command"))
    assert name == "chain"
    assert values["recipe"] == str(path.relative_to(ROOT)) and values["out"].startswith("runs/")


@recipe(CHAINS)
def test_every_step_of_a_chain_parses(path: Path) -> None:
    _, values = parsed(stated(path, "command"))
    for step in read_chain(path).values():
        given = {"data": values["data"], "out": "runs/step", **step}
        assert given["data"]
        parse_config(given.pop("verb"), given)["augment"].resolved()


@recipe([path for path in CHAINS if path.stem == "chain"])
def test_chain_goes_from_the_teacher_to_a_fine_tuned_student(path: Path) -> None:
    steps = read_chain(path)
    assert [step["verb"] for step in steps.values() if step["verb"] != "finetune"].count("tinymim") >= 2
    assert steps["tiny"]["teacher"] == "{small}" and steps["tiny-tuned"]["model"] == "{tiny}"


def test_chain_of_tinymim_differs_from_its_recipes_in_the_models_only() -> None:
    """Runs by hand, recipe after recipe, and the chain are the same training."""
    steps = read_chain(ROOT / "recipes" / "tinymim" / "chain.yaml")
    assert len(steps) == 6
    written = yaml.safe_load((ROOT / "recipes" / "tinymim" / "chain.yaml").read_text())["steps"]
    for name, step in steps.items():
        own = yaml.safe_load((ROOT / written[name]["config"]).read_text())
        changed = {key for key in step.keys() | own.keys() if step.get(key) != own.get(key)}
        assert changed <= {"verb", "teacher", "model"}
