import csv

import numpy as np
import pytest

from onedva.generation.scenes import CLASSES, PALETTES, make_scene, write_scenes
from onedva_runtime.video_io import open_reader


@pytest.mark.parametrize("kind", CLASSES)
def test_a_scene_depends_on_its_class_and_seed_alone(kind):
    scene = make_scene(kind, seed=5, frames=9, size=32)
    assert scene.shape == (9, 32, 32, 3) and scene.dtype == np.uint8
    np.testing.assert_array_equal(scene, make_scene(kind, seed=5, frames=9, size=32))
    assert (scene != make_scene(kind, seed=6, frames=9, size=32)).any()


def test_a_longer_scene_begins_as_the_shorter_one():
    np.testing.assert_array_equal(make_scene("orbit", seed=1, frames=17)[:9], make_scene("orbit", seed=1, frames=9))


@pytest.mark.parametrize("kind", CLASSES)
def test_classes_move_as_their_names_say(kind):
    changes = [np.abs(np.diff(make_scene(kind, seed=seed).astype(float), axis=0)).mean() for seed in range(4)]
    assert min(changes) > 0.5 or kind in ("ring", "cross"), changes
    assert max(changes) == 0 or kind not in ("ring", "cross")


def test_classes_share_their_palettes():
    def hues(kind):
        return {tuple(make_scene(kind, seed=seed, frames=1)[0, 0, 0] // 64) for seed in range(60)}

    shared = set.intersection(*map(hues, CLASSES))
    assert len(shared) >= 4 and len(PALETTES) == 6


def test_what_is_no_scene_is_refused():
    with pytest.raises(ValueError, match="unknown class 'jump'; choose from cross, orbit"):
        make_scene("jump", seed=0)
    with pytest.raises(ValueError, match="at least 1 frame and 16 pixels"):
        make_scene("spin", seed=0, size=8)


def test_a_written_set_has_splits_classes_and_the_scenes(tmp_path):
    done = []
    count = write_scenes(tmp_path, per_class=1, dev_per_class=1, frames=5, size=32, advance=done.append)
    with (tmp_path / "MANIFEST.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert count == len(rows) == sum(done) == 2 * len(CLASSES)
    assert {(row["split"], row["class"]) for row in rows} == {(s, c) for s in ("train", "dev") for c in CLASSES}
    with open_reader(tmp_path / "spin" / "00001.mp4") as reader:
        frames = np.concatenate([part for part, _ in reader])
    assert np.abs(frames.astype(float) - make_scene("spin", seed=1, frames=5, size=32)).mean() < 4  # 4:2:0 and codec
    with pytest.raises(FileExistsError, match="holds a set already"):
        write_scenes(tmp_path, per_class=1)
