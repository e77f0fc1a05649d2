"""Tiny text encoders with real tokenizers, whose words are those they are given; other texts are spelled in letters.

All are built without a download, of the classes that published pipelines have, with random weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

SPECIAL = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
CHAT = (
    "{%- for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}"
)
WIDTH = 64  # of an embedded token
CLIP_WIDTH = 24  # of each of two


def trained(tokenizer: Tokenizer, texts: Iterable[str], **options: object) -> tuple[dict[str, int], list]:
    """Vocabulary and merges by which every word of the texts is one token."""
    trainer = trainers.BpeTrainer(vocab_size=100_000, min_frequency=1, show_progress=False, **options)
    tokenizer.train_from_iterator(texts, trainer)
    found = json.loads(tokenizer.to_str())["model"]
    return found["vocab"], [tuple(pair) for pair in found["merges"]]


def qwen_tokenizer(texts: Iterable[str], chat: str | None = None) -> Qwen2Tokenizer:
    training = Tokenizer(models.BPE())
    training.pre_tokenizer = Qwen2Tokenizer().backend_tokenizer.pre_tokenizer
    vocab, merges = trained(training, texts, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=merges, additional_special_tokens=list(SPECIAL))
    tokenizer.chat_template = chat
    return tokenizer


def clip_tokenizer(texts: Iterable[str]) -> CLIPTokenizer:
    plain, end = CLIPTokenizer().backend_tokenizer, "</w>"
    training = Tokenizer(models.BPE(end_of_word_suffix=end))
    training.normalizer, training.pre_tokenizer = plain.normalizer, plain.pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab, merges = trained(training, texts, initial_alphabet=alphabet, end_of_word_suffix=end)
    for token in (*(letter + end for letter in alphabet), "<|startoftext|>", "<|endoftext|>"):
        vocab.setdefault(token, len(vocab))
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)


def t5_tokenizer(texts: Iterable[str]) -> T5Tokenizer:
    words = sorted({f"▁{word}" for text in texts for word in text.split()})
    letters = sorted({"▁", *(chr(code) for code in range(33, 127))} - set(words))
    scores = [*((word, -1.0) for word in words), *((letter, -10.0) for letter in letters)]
    return T5Tokenizer(vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *scores], extra_ids=0)


def gemma_tokenizer(texts: Iterable[str]) -> GemmaTokenizer:
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))]
    training = Tokenizer(models.BPE())
    training.pre_tokenizer = pre_tokenizers.Split("▁", behavior="merged_with_next")
    vocab, merges = trained(training, [text.replace(" ", "▁") for text in texts], special_tokens=special)
    return GemmaTokenizer(vocab=vocab, merges=merges, add_bos_token=True)


def clip(tokenizer: CLIPTokenizer, *, projected: bool, width: int = CLIP_WIDTH) -> nn.Module:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=77, projection_dim=width, initializer_factor=3.0,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def t5(tokenizer: T5Tokenizer) -> T5EncoderModel:
    return T5EncoderModel(T5Config(
        vocab_size=len(tokenizer), d_model=WIDTH, d_kv=16, d_ff=2 * WIDTH, num_layers=2, num_heads=4,
        feed_forward_proj="gated-gelu", initializer_factor=1.0, dropout_rate=0.0,
    )).eval()


def gemma(tokenizer: GemmaTokenizer) -> Gemma2Model:
    return Gemma2Model(Gemma2Config(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, query_pre_attn_scalar=16,
        max_position_embeddings=2048, sliding_window=1024, initializer_range=0.2,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )).eval()


def qwen3(tokenizer: Qwen2Tokenizer) -> Qwen3Model:
    return Qwen3Model(Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=2048, initializer_range=0.2,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )).eval()
