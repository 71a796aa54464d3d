"""The text encoder: a small byte-level BPE in CLIP's layout, and CLIP's text transformer."""

from __future__ import annotations

import os
import tempfile

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .captions import random_caption
from .render import random_scene

START, END = "<|startoftext|>", "<|endoftext|>"
LENGTH = 24  # tokens, start and end included
# Words of ordinary prompts that the world's captions lack, so that they cost few tokens.
EXTRA = (
    "man woman person dog cat horse rabbit bear tiger astronaut hiking skiing walking running turning eating "
    "watermelon mountain forest river desert sky street snowy sunny day night morning photo picture painting drawing "
    "white black pink brown golden bright dark small big two with and under near through "
).split()


def build_tokenizer(vocabulary: int = 900, seed: int = 0) -> CLIPTokenizer:
    """Trained on captions of the world; any text tokenises, unknown words in pieces down to bytes."""
    rng = np.random.default_rng([seed, 4])
    corpus = [random_caption(random_scene(rng), rng) for _ in range(4000)] + 30 * [" ".join(EXTRA)]
    bpe = Tokenizer(models.BPE(unk_token=END, end_of_word_suffix="</w>"))
    template = CLIPTokenizer()
    bpe.normalizer = template.backend_tokenizer.normalizer
    bpe.pre_tokenizer = template.backend_tokenizer.pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False,
        special_tokens=[START, END, *alphabet, *(a + "</w>" for a in alphabet)],
    )  # fmt: skip
    bpe.train_from_iterator(corpus, trainer)
    with tempfile.TemporaryDirectory() as folder:
        bpe.model.save(folder)
        return CLIPTokenizer(
            vocab=os.path.join(folder, "vocab.json"), merges=os.path.join(folder, "merges.txt"),
            model_max_length=LENGTH,
        )  # fmt: skip


def build_text_encoder(tokenizer: CLIPTokenizer, *, width: int = 128, layers: int = 2) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, projection_dim=width,
            num_hidden_layers=layers, num_attention_heads=4, max_position_embeddings=LENGTH, hidden_act="gelu",
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id, attn_implementation="eager",
        )
    )  # fmt: skip


def tokens(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """(n, LENGTH) int64, padded with the end token."""
    out = tokenizer(texts, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt")
    return out.input_ids.to(torch.int64)
