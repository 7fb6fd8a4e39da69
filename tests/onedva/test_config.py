"""Configurations: what is refused and in which words, and what the stages change."""

import dataclasses
import json
from typing import Any

import pytest

from onedva.config import PRESETS, OneDVAConfig, preset
from onedva.train_config import STAGES, TrainConfig


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_called_by_its_name_and_survives_json(name: str) -> None:
    assert preset(name).preset == name
    assert OneDVAConfig.from_json(preset(name).to_json()) == preset(name)


def test_an_unknown_preset_lists_the_others() -> None:
    with pytest.raises(ValueError, match="unknown preset 'huge'; choose from nano, tiny, small, base, large, paper"):
        preset("huge")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": 100}, "multiple of 64, got 100"),
        ({"prediction": "noise"}, "prediction must be one of video, velocity; got 'noise'"),
        ({"clip_frames": 16}, "1 \\+ 4n, got 16"),
        ({"components": 90}, "components must hold both latents"),
        ({"components": 130}, "components must be a multiple of 4 where mirrored, got 130"),
        ({"prediction": "velocity"}, "set pca=False"),
        ({"conditioning": "in_context"}, "set stem_depth=0"),
    ],
)
def test_a_model_that_cannot_be_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        OneDVAConfig(**changes)


def test_a_file_from_before_there_were_mirrors_has_none() -> None:
    values = json.loads(OneDVAConfig().to_json())
    assert OneDVAConfig.from_json(json.dumps(values)).choices == 16
    del values["mirrored"]
    assert OneDVAConfig.from_json(json.dumps(values)).choices == 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stage": "last"}, "stage must be one of encoder, joint, distill, post; got 'last'"),
        ({"short_side": 100}, "short_side is a multiple of 16, got 100"),
        ({"post_noise": 0.0}, "post_noise is above 0 and at most 1"),
        ({"post_own": 1.5}, "post_own is a share from 0 to 1"),
        ({"optimizer": "sgd"}, "optimizer must be one of muon, adamw; got 'sgd'"),
        ({"sharded": True}, 'sharded=True needs optimizer="adamw"'),
        ({"steps": 0}, "at least 1"),
        ({"workers": -1}, "workers at least 0"),
        ({"frames": ((17, 0.5), (16, 0.5))}, "frames are 1 \\+ 4n each"),
        ({"frames": ()}, "frames are 1 \\+ 4n each"),
        ({"sizes": ((128, 100, 1.0),)}, "sizes are multiples of 16"),
        ({"sizes": ((128, 128, 0.0),)}, "share of frames and sizes must be above 0"),
        ({"p_full": 1.5}, "shares from 0 to 1"),
        ({"p_policy_latents": 0.9}, "those of latents together at most 1"),
        ({"compile": True, "siglip": "folder"}, "compile and siglip exclude each other"),
    ],
)
def test_a_run_that_cannot_be_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TrainConfig(**changes)


def test_every_stage_changes_fields_that_there_are_and_says_its_name() -> None:
    for name, changes in STAGES.items():
        assert TrainConfig(**changes).stage == name
    assert TrainConfig(**STAGES["joint"]) == TrainConfig()


def test_shares_that_add_up_to_one_are_allowed() -> None:
    assert TrainConfig(p_no_latents=0.6, p_all_latents=0.3, p_policy_latents=0.1).p_full == TrainConfig().p_full


def test_a_run_must_fit_its_model() -> None:
    cases: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        ({}, {"clip_frames": 9}, "clips have up to 9 frames, training asks for 17"),
        ({"stage": "encoder"}, {"pca": False}, "stage encoder trains the preview"),
    ]
    for changes, model, words in cases:
        with pytest.raises(ValueError, match=words):
            TrainConfig(**changes).check(dataclasses.replace(preset("tiny"), **model))
    for name in PRESETS:
        TrainConfig().check(preset(name))
