"""AVA's csv formats, label maps, and key frames as clips with boxes."""

import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vitdistill.data.actions.annotations import open_actions
from vitdistill.data.actions.ava import (
    Numbers,
    Rows,
    read_detections,
    read_excluded,
    read_labels,
    read_truth,
    write_predictions,
)
from vitdistill.data.actions.files import ActionFiles
from vitdistill.data.actions.key_frames import KeyFrames, KeyFrameTransform, Movies, around
from vitdistill.data.clips.sampling import Sampling
from vitdistill.data.loader import make_loader
from vitdistill.data.order import EpochBatchSampler, EvalBatchSampler
from vitdistill.errors import UserError

TRUTH = """a,0902,0.1,0.2,0.5,0.8,12,0
a,0902,0.1,0.2,0.5,0.8,17,0
a,0902,0.5,0.2,0.9,0.8,12,1
a,0903,,,,,,
b,0902
b,0904,0.0,0.0,1.0,1.0,3,4
"""
HEAD = "video_id,middle_frame_timestamp,x1,y1,x2,y2,action_id,person_id\n"
IDS = [3, 12, 17]
TIMES: Any = {"start": 900.0, "frame_rate": 4.0}


@pytest.fixture
def write(tmp_path: Path):
    """`write(text)` makes a file of it."""

    def make(text: str, name: str = "file.csv") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return make


@pytest.fixture
def movies(tmp_path: Path) -> Movies:
    """Two movies from second 900 on, as folders of frames at 4 per second; frame k has the brightness 5 * k."""
    for video in ("a", "b"):
        (tmp_path / "frames" / video).mkdir(parents=True)
        for number in range(24):
            picture = np.full((20, 40, 3), 5 * number, dtype=np.uint8)
            picture[:, :20, 0] = 255  # the left half is red
            Image.fromarray(picture).save(tmp_path / "frames" / video / f"{video}_{number + 1:06d}.png")
    return Movies(tmp_path / "frames", start=900, frame_rate=4)


# --- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "head",
    [
        "",
        "\nvideo_id,middle_frame_timestamp,x1,y1,x2,y2,action_id,person_id\n",
        "video_id,middle_frame_timestamp,x1,y1,x2,y2,action_id,person_id\n",
        "\ufeff",
    ],
)
def test_annotations_keep_their_order_and_number_the_key_frames(write, head: str) -> None:
    numbers: Numbers = {}
    rows = read_truth(write(head + TRUTH), numbers)
    assert numbers == {("a", 902): 0, ("b", 904): 1}
    assert rows.frame.tolist() == [0, 0, 0, 1] and rows.action.tolist() == [12, 17, 12, 3]
    assert rows.box[2].tolist() == [0.5, 0.2, 0.9, 0.8] and rows.score.tolist() == [1.0] * 4
    assert read_truth(write("b,904,0,0,1,1,5\nc,1,0,0,1,1,5\n"), numbers).frame.tolist() == [1, 2]


def test_detections_have_a_score_in_the_last_column(write) -> None:
    numbers: Numbers = {("a", 902): 0}
    text = "a,0902,0.1,0.2,0.5,0.8,,0.995\na,902,0,0,1,1,0.8\na,903,-0.01,0,1.02,1,12,0.79\n\n"
    rows = read_detections(write(text), numbers, 0.8)
    assert rows.frame.tolist() == [0, 0] and rows.score.tolist() == [0.995, 0.8] and rows.action.tolist() == [0, 0]
    assert len(read_detections(write(text), numbers, 0.0)) == 3


def test_excluded_key_frames(write) -> None:
    assert read_excluded(write("a,0902\nb,1000\n")) == {("a", 902), ("b", 1000)}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "map.pbtxt",
            'item {\n  name: "bend/bow (at the waist)"\n  id: 1\n}\nitem {\n  name: "b \\"c\\""\n  id: 80\n}\n',
        ),
        (
            "map.pbtxt",
            'label { name: "b \\"c\\"" label_id: 80 }\nlabel { name: "bend/bow (at the waist)" label_id: 1 }',
        ),
        ("map.pbtxt", '# 60 of 80\nitem { name: "bend/bow (at the waist)" id: 1 } item { name: "b \\"c\\"" id: 80 }'),
        ("map.csv", 'label_id,label_name,label_type\n1,bend/bow (at the waist),P\n80,"b ""c""",P\n'),
        ("map.csv", '1,bend/bow (at the waist)\n80,"b ""c"""'),
    ],
)
def test_label_maps(write, name: str, text: str) -> None:
    assert read_labels(write(text, name)) == {1: "bend/bow (at the waist)", 80: 'b "c"'}
    assert list(read_labels(write(text, name))) == [1, 80]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("map.pbtxt", "", "got .*map.pbtxt with none"),
        ("map.pbtxt", 'item { name: "a" }', "must have a name and an id"),
        ("map.pbtxt", 'item { name: "a" id: 2 } item { name: "b" id: 2 }', "the id 2 not once"),
        ("map.pbtxt", 'item { name: "a" id: 0 }', "below 1"),
        ("map.pbtxt", 'item { name: "a" id: 1 } item { name: "b"', r"must be whole; got 'item \{ name: \"b\"'"),
        ("map.csv", "1,a\ntwo,b", "line 2: 'two,b'"),
    ],
)
def test_bad_label_maps_are_named(write, name: str, text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_labels(write(text, name))
    with pytest.raises(UserError, match="nowhere"):
        read_labels(f"nowhere{Path(name).suffix}")


@pytest.mark.parametrize(
    "line",
    [
        "a,902,0.1,0.2,0.5,0.8",  # no action
        "a,902,0.1,0.2,0.5,0.8,0,1",  # actions count from 1
        "a,902,0.1,0.2,0.5,0.8,1.5,1",
        "a,902,0.5,0.2,0.1,0.8,1,1",  # x1 > x2
        "a,902,10,20,50,80,1,1",  # pixels
        "a,902,nan,0.2,0.5,0.8,1,1",
        "a,902.5,0.1,0.2,0.5,0.8,1,1",
        "a,902,0.1,0.2,0.5,,1,1",
        ",902,0.1,0.2,0.5,0.8,1,1",
        "a,902,0.1,0.2,0.5,0.8,1,1,1",
        "a",
    ],
)
def test_malformed_rows_name_file_and_line(write, line: str) -> None:
    with pytest.raises(UserError, match=r"Every line of .*file.csv must be video_id.*line 7: '") as error:
        read_truth(write(TRUTH + line), {})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("line", ["a,902,0,0,1,1", "a,902,0,0,1,1,,1.5", "a,902,0,0,1,1,,", "a,902,0,0,1,1,,1,1"])
def test_malformed_detections_name_file_and_line(write, line: str) -> None:
    with pytest.raises(UserError, match="line 2"):
        read_detections(write(f"a,902,0,0,1,1,,0.9\n{line}\n"), {}, 0.8)


def test_actions_outside_the_label_map_are_refused(write) -> None:
    with pytest.raises(UserError, match=r"must be in the label map; got action id 17\..*\(line 2 of .*file.csv\)"):
        read_truth(write(TRUTH), {}, {12: "sit", 3: "dance"})


def test_predictions_are_read_back_as_they_were(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    box = np.sort(rng.random((5, 2, 2)), axis=1).reshape(5, 4).astype(np.float32).astype(np.float64)
    score = rng.random(5).astype(np.float32).astype(np.float64)
    rows = Rows(np.array([0, 0, 1, 1, 1]), box, np.array([1, 2, 1, 2, 80]), score)
    names = {0: ("-video_1", 902), 1: ('b, "c" caf\udce9', 1000)}  # a name in Latin-1, as it is read
    write_predictions(tmp_path / "out.csv", rows, names)
    assert (tmp_path / "out.csv").read_bytes().startswith(b"-video_1,0902,")
    numbers: Numbers = {}
    again = read_detections(tmp_path / "out.csv", numbers, 0.0)
    assert list(numbers) == list(names.values()) and again.frame.tolist() == rows.frame.tolist()
    assert np.array_equal(again.box.astype(np.float32), box.astype(np.float32))
    assert np.array_equal(again.score.astype(np.float32), score.astype(np.float32))


# --- key frames ----------------------------------------------------------------------------------------------------


def key_frames(write, movies: Movies, text: str = TRUTH) -> KeyFrames:
    numbers: Numbers = {}
    rows = read_truth(write(text), numbers)
    return KeyFrames(rows, list(numbers), movies, IDS, annotated=True)


def test_a_box_with_several_actions_is_one_box(write, movies: Movies) -> None:
    frames = key_frames(write, movies)
    assert len(frames) == 2 and frames.most_boxes == 2 and frames.offsets.tolist() == [0, 2, 3]
    assert frames.actions is not None and frames.actions.tolist() == [
        [False, True, True],
        [False, True, False],
        [True, False, False],
    ]
    assert frames.path(0).endswith("a at 902 s") and frames.labels is None
    assert pickle.loads(pickle.dumps(frames)).path(1) == frames.path(1)


def test_a_second_is_the_nearest_frame(tmp_path: Path, write) -> None:
    (tmp_path / "a").mkdir()
    for number in range(100):
        Image.new("RGB", (8, 8)).save(tmp_path / "a" / f"{number:03d}.png")
    movies = Movies(tmp_path, start=900, frame_rate=29.97)
    frames = key_frames(write, movies, "a,0901,0,0,1,1,3,0\na,0902,0,0,1,1,3,0\n")
    assert [frames.load(index)[0].number for index in range(2)] == [30, 60]  # of 29.97 and 59.94


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"frame_rate": 0.0}, "--actions.frame_rate must be above 0; got 0.0"),
        ({"frame_rate": math.inf}, "--actions.frame_rate must be above 0; got inf"),
        ({"start": math.nan}, "--actions.start must be a second of the movie; got nan"),
    ],
)
def test_times_that_cannot_be(options: dict[str, float], words: str) -> None:
    with pytest.raises(UserError, match=words):
        ActionFiles(**options)


def test_the_clip_is_centred_on_the_key_frame() -> None:
    assert around(20, Sampling(frames=4, stride=2), 100) == [16, 18, 20, 22]
    assert around(1, Sampling(frames=4, stride=2), 4) == [0, 0, 1, 3]
    assert around(9, Sampling(frames=1, stride=4), 10) == [9]


def test_whole_frames_become_squares_and_boxes_stay_shares(write, movies: Movies) -> None:
    frames = key_frames(write, movies)
    clip, target = KeyFrameTransform((16, 16), Sampling(frames=4, stride=1), 3)(frames.load(0)[0])
    assert clip.shape == (3, 4, 16, 16) and clip.dtype == torch.uint8
    assert clip[2, :, 8, 8].tolist() == [30, 35, 40, 45]  # second 902 is frame 8
    assert (clip[0, :, :, :7] == 255).all() and (clip[0, :, :, 9:] < 60).all()
    expected = [[0.1, 0.2, 0.5, 0.8, 0, 1, 1], [0.5, 0.2, 0.9, 0.8, 0, 1, 0]]
    assert torch.equal(target[:2], torch.tensor(expected)) and target[2].isnan().all()


def test_a_flip_moves_pixels_and_boxes_together(write, movies: Movies) -> None:
    frame = key_frames(write, movies).load(0)[0]
    plain, boxes = KeyFrameTransform((16, 16), Sampling(frames=2, stride=1), 3)(frame)
    flipped, turned = KeyFrameTransform((16, 16), Sampling(frames=2, stride=1), 3, hflip=1.0)(frame)
    assert torch.equal(flipped, plain.flip(-1))
    assert torch.allclose(turned[0, :4], torch.tensor([0.5, 0.2, 0.9, 0.8])) and turned[2].isnan().all()
    assert torch.equal(turned[:, 4:].nan_to_num(9), boxes[:, 4:].nan_to_num(9))


def test_batches_carry_boxes(write, movies: Movies) -> None:
    frames = key_frames(write, movies)
    transform = KeyFrameTransform((8, 8), Sampling(frames=2, stride=1), frames.most_boxes, hflip=0.5)
    (batch,) = make_loader(frames, transform, EpochBatchSampler(2, 2, seed=0), seed=0)
    assert batch.images.shape == (2, 3, 2, 8, 8) and batch.targets.shape == (2, 2, 7)
    assert batch.targets.dtype == torch.float32 and not batch.skipped
    (again,) = make_loader(frames, transform, EpochBatchSampler(2, 2, seed=0), seed=0)
    assert torch.equal(batch.targets.nan_to_num(9), again.targets.nan_to_num(9))


def test_unreadable_key_frames_are_left_out_of_validation(write, movies: Movies) -> None:
    frames = key_frames(write, movies)
    for file in (movies.folder / "a").iterdir():
        file.write_bytes(b"")
    transform = KeyFrameTransform((8, 8), Sampling(frames=2, stride=1), 2)
    batches = list(make_loader(frames, transform, EvalBatchSampler(2, 1), seed=0))
    assert [len(batch.images) for batch in batches] == [0, 1]
    assert batches[0].skipped[0].path.endswith("a at 902 s") and batches[1].index.tolist() == [1]


def test_video_files_are_found_by_their_id_and_tell_their_rate(tmp_path: Path, write) -> None:
    pytest.importorskip("av")
    from generated_videos import numbers as numbers_of
    from generated_videos import write_video

    write_video(tmp_path / "-a.b_1.mp4", count=60, rate=10, size=(96, 64))
    numbers: Numbers = {}
    rows = read_truth(write("-a.b_1,0903,0,0,1,1,3,0\n"), numbers)
    frames = KeyFrames(rows, list(numbers), Movies(tmp_path, start=900), IDS, annotated=True)
    frame = frames.load(0)[0]
    assert frame.number == 30
    clip, _ = KeyFrameTransform((64, 96), Sampling(frames=4, stride=2), 1)(frame)
    assert numbers_of(clip.permute(1, 2, 3, 0).numpy()) == [26, 28, 30, 32]


# --- all files together --------------------------------------------------------------------------------------------


def test_detections_are_tested_where_the_annotated_videos_are(write, movies: Movies) -> None:
    val = write(TRUTH, "val.csv")
    found = write("a,902,0,0,1,1,,0.9\na,902,0,0,1,1,,0.95\na,901,0,0,1,1,,0.9\nelsewhere,902,0,0,1,1,,0.9\n", "d.csv")
    data = open_actions(movies.folder, ActionFiles(val=str(val), detections=str(found), **TIMES))
    assert [data.names[frame] for frame in data.val.frame.tolist()] == [("a", 902), ("a", 901)]
    assert data.val.actions is None and len(data.val.boxes) == 2  # the same box twice is one
    assert len(data.truth) == 4 and data.evaluated == list(range(1, 18)) == list(data.labels)


def test_excluded_key_frames_count_nowhere(write, movies: Movies) -> None:
    val, excluded = write(TRUTH, "val.csv"), write("a,0902\n", "excluded.csv")
    data = open_actions(movies.folder, ActionFiles(val=str(val), train=str(val), excluded=str(excluded), **TIMES))
    assert data.train is not None and len(data.train) == len(data.val) == len(data.truth) == 1
    with pytest.raises(UserError, match=r"val.csv must have at least one box in a key frame that counts; got none"):
        open_actions(
            movies.folder, ActionFiles(val=str(val), excluded=str(write("a,902\nb,904\n", "all.csv")), **TIMES)
        )


def test_actions_that_count_must_be_known(write, movies: Movies) -> None:
    labels, evaluated = write("3,x\n12,y\n17,z", "l.csv"), write("3,x\n18,w", "e.csv")
    files: Any = {"val": str(write(TRUTH, "val.csv")), "labels": str(labels), **TIMES}
    assert open_actions(movies.folder, ActionFiles(**files)).labels == {3: "x", 12: "y", 17: "z"}
    with pytest.raises(UserError, match=r"must be among those of the label map; got id 18 of .*e.csv"):
        open_actions(movies.folder, ActionFiles(**files, evaluated=str(evaluated)))
