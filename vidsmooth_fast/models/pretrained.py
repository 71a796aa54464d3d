"""Networks and tokenizers that transformers and diffusers read: whole, or one line that says what is wrong."""

from __future__ import annotations

from pathlib import Path


def read_pretrained(kind: type, place: str | Path, **options):
    """`kind.from_pretrained(place, **options)`, which alone would fill weights that are missing with random numbers.

    Raises: ValueError, one line, for anything that cannot be read, and for missing or wrongly shaped weights.
    """
    try:
        network, said = kind.from_pretrained(place, output_loading_info=True, **options)
    except Exception as error:  # a missing repository, file and key, a damaged file: all different classes
        raise ValueError(first_line(error)) from error
    missing = sorted(name for name in said["missing_keys"] if not name.endswith("position_ids"))
    if missing:
        raise ValueError(f"missing weights {some(missing)}")
    if said["mismatched_keys"]:
        raise ValueError(f"wrongly shaped weights {some([entry[0] for entry in said['mismatched_keys']])}")
    return network


def read_tokenizer(place: str | Path, vocabulary: int, **options):
    """The CLIPTokenizer in a directory, or of a Hub id. vocabulary: tokens that its text encoder knows.

    Raises: ValueError, one line, for anything that cannot be read, a directory without its files (of which transformers
    would make an empty tokenizer) and more tokens than the encoder knows.
    """
    from transformers import CLIPTokenizer

    folder = Path(place)
    if folder.is_dir() and not (folder / "tokenizer.json").is_file():
        absent = [name for name in ("vocab.json", "merges.txt") if not (folder / name).is_file()]
        if absent:
            raise ValueError(f"expected tokenizer.json, or vocab.json and merges.txt, in {folder}")
    try:
        tokenizer = CLIPTokenizer.from_pretrained(place, **options)
    except Exception as error:  # as above
        raise ValueError(first_line(error)) from error
    if len(tokenizer) > vocabulary:
        raise ValueError(f"a tokenizer of {len(tokenizer)} tokens, for a text encoder of {vocabulary}")
    return tokenizer


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def some(names: list[str]) -> str:
    """The first three names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
