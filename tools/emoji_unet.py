"""The denoiser and the text encoder of the embedded model, trained together on fixed latents."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from tokenizers import pre_tokenizers
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from tools import emoji_data
from tools.emoji_training import Budget, TrainingRun, channels_last

CONTEXT_LENGTH = 16
WIDTH = 96
START, END = "<|startoftext|>", "<|endoftext|>"

# The bare word comes twice, because the prompt sets use it.
TEMPLATES = ("{}", "{}", "a {}", "a picture of a {}", "an emoji of a {}", "a photo of a {}")
OTHER_WORDS = "a an the of and with on in picture photo image emoji drawing small big animal"

EMPTY_FRACTION = 0.1  # of captions are left out, for classifier-free guidance
SNR_LIMIT = 5.0


def learn_merges(words: list[str]) -> list[tuple[str, str]]:
    """Returns byte-pair merges, in order, that make each word one token.

    The commonest pair of neighbours is merged first. Ties are broken alphabetically; the tokenizers
    library breaks them differently from run to run.

    Example:
        >>> learn_merges(["bat", "cat"])
        [('a', 't</w>'), ('b', 'at</w>'), ('c', 'at</w>')]
    """
    pieces = [[*word[:-1], word[-1] + "</w>"] for word in words]
    merges = []
    while counts := Counter(pair for word in pieces for pair in itertools.pairwise(word)):
        left, right = best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        for word in pieces:
            index = 0
            while index < len(word) - 1:
                if (word[index], word[index + 1]) == best:
                    word[index : index + 2] = [left + right]
                index += 1
    return merges


def build_tokenizer() -> CLIPTokenizer:
    """Returns a CLIP tokenizer in which each caption is one token; other words have several.

    Every byte has a token, alone and at the end of a word, so any text can be encoded.
    """
    merges = learn_merges(sorted({*emoji_data.CAPTIONS, *OTHER_WORDS.split()}))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(f"{letter}</w>" for letter in alphabet)]
    tokens = list(dict.fromkeys([*tokens, *("".join(pair) for pair in merges), START, END]))
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=merges,
        unk_token=END,
        bos_token=START,
        eos_token=END,
        pad_token=END,
        model_max_length=CONTEXT_LENGTH,
    )


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    """Returns token ids (texts, CONTEXT_LENGTH)."""
    tokens = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
    return torch.as_tensor(tokens.input_ids)


def prompt_table(tokenizer: CLIPTokenizer) -> torch.Tensor:
    """Returns token ids (captions, templates, length) for every caption in every template."""
    texts = []
    for caption in emoji_data.CAPTIONS:
        phrases = [template.format(caption) for template in TEMPLATES]
        if caption[0] in "aeiou" and caption != "unicorn":
            phrases = [phrase.replace(f"a {caption}", f"an {caption}") for phrase in phrases]
        texts += phrases
    return tokenize(tokenizer, texts).view(-1, len(TEMPLATES), CONTEXT_LENGTH)


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Returns an untrained text encoder (0.25 M parameters)."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT_LENGTH,
        projection_dim=WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def build_unet() -> UNet2DConditionModel:
    """Returns an untrained denoiser (4.0 M parameters)."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        cross_attention_dim=WIDTH,
        block_out_channels=(64, 128),
        layers_per_block=1,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=16,
    )


def build_scheduler() -> DDIMScheduler:
    """Returns a DDIM scheduler with the settings of Stable Diffusion 1.5."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon",
    )


def snr_weight(alphas_cumprod: torch.Tensor) -> torch.Tensor:
    """Returns min(SNR, 5) / SNR, the weight of a squared noise error (Hang et al. 2023).

    Example:
        >>> snr_weight(torch.tensor([0.5, 10 / 11]))
        tensor([1.0000, 0.5000])
    """
    ratio = alphas_cumprod / (1 - alphas_cumprod)
    return ratio.clamp(max=SNR_LIMIT) / ratio


def train_unet(
    latents: torch.Tensor,
    captions: torch.Tensor,
    tokenizer: CLIPTokenizer,
    path: Path,
    budget: Budget,
    *,
    seed: int,
    batch: int,
) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """Trains denoiser and text encoder; returns their averaged weights.

    Args:
        latents: (rows, 4, 8, 8) with unit standard deviation.
        captions: (rows,) indices into the captions.
        tokenizer: From `build_tokenizer`.
        path: State file.
        budget: When training ends.
        seed: Of weights, batches and noise.
        batch: Latents per step.
    """
    torch.manual_seed(seed)
    unet = channels_last(build_unet())
    encoder = build_text_encoder(tokenizer)
    both = nn.ModuleList([unet, encoder]).train()
    table = prompt_table(tokenizer)
    empty = tokenize(tokenizer, [""])
    alphas = build_scheduler().alphas_cumprod
    run = TrainingRun("unet", both, path, budget, peak=1.5e-3, seed=seed, warmup=300)
    for generator in run:

        def uniform(generator: torch.Generator = generator) -> torch.Tensor:
            return torch.rand(batch, generator=generator)

        rows = torch.randint(len(latents), (batch,), generator=generator)
        # One timestep from each of `batch` equal parts of the schedule, for a steadier loss.
        timesteps = ((torch.arange(batch) + uniform()) / batch * len(alphas)).long()
        alpha = alphas[timesteps].view(-1, 1, 1, 1)
        noise = torch.randn(latents[rows].shape, generator=generator)
        noisy = alpha.sqrt() * latents[rows] + (1 - alpha).sqrt() * noise
        phrase = (uniform() * len(TEMPLATES)).long()
        tokens = table[captions[rows], phrase]
        tokens = torch.where((uniform() < EMPTY_FRACTION)[:, None], empty, tokens)
        states = encoder(tokens).last_hidden_state
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        predicted = unet(noisy, timesteps, encoder_hidden_states=states).sample
        errors = (predicted - noise).square().mean((1, 2, 3))
        run.update((snr_weight(alphas[timesteps]) * errors).mean())
    both.load_state_dict(run.averaged())
    return unet, encoder
