"""Prompts over time: which embedding holds where."""

import pytest
import torch

from vidsmooth_fast.conditioning.prompts import encode_prompt, prompt_keys


def encode(texts):
    """An encoder whose embedding is the text's number, so that interpolation can be read off."""
    return torch.tensor([[[float(text)]] for text in texts])


def values(track, frames):
    rows, index = track.at(frames)
    return rows[index].flatten().tolist()


def test_one_text_is_one_row_for_any_number_of_windows():
    rows, index = encode_prompt("7", 100, encode).at([7.5, 15.5, 92.0])
    assert rows.shape == (1, 1, 1) and index.tolist() == [0, 0, 0]


def test_list_is_spread_from_the_first_to_the_last_frame():
    assert prompt_keys(["0", "1", "2"], 101) == {0: "0", 50: "1", 100: "2"}
    assert values(encode_prompt(["0", "1", "2"], 101, encode), [0, 25, 50, 100]) == [0.0, 0.5, 1.0, 2.0]


def test_between_keys_interpolated_and_held_outside():
    track = encode_prompt({10: "0", 20: "4"}, 40, encode)
    assert values(track, [0, 10, 12.5, 20, 39]) == [0.0, 0.0, 1.0, 4.0, 4.0]


def test_list_in_a_loop_leaves_the_same_way_back():
    assert prompt_keys(["0", "1"], 16, loop=True) == {0: "0", 8: "1"}


def test_loop_interpolates_through_the_seam():
    track = encode_prompt({0: "0", 8: "4"}, 16, encode, loop=True)
    assert values(track, [4, 8, 12, 15, 16]) == [2.0, 4.0, 2.0, 0.5, 0.0]


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ([], "at least one"),
        ({5: "a", 40: "b"}, "0..39"),
        ({1.5: "a"}, "integers"),
        (["a"] * 50, "do not fit"),
        (3, "expected a string"),
        ([1], "must be strings"),
    ],
)
def test_bad_prompts_say_what_is_wrong(prompt, says):
    with pytest.raises(ValueError, match=says):
        prompt_keys(prompt, 40)
