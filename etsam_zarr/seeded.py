"""A small untrained model whose weights come from a seed.

Plain random weights make degenerate masks (all or nothing) that hardly depend on the memory. A few gains make the
logits cross zero in both directions and follow the memory, so that tests and benchmarks on it mean something.
"""

from __future__ import annotations

from typing import Any

import torch

# Chosen by measurement; tests/test_seeded.py asserts what they are for.
_CROSS_ATTENTION_GAIN = 10.0
_MEMORY_GAIN = 3.0
_MASK_GAIN = 20.0
_UPSCALING_GAIN = 5.0
_OBJECT_SCORE_BIAS = 5.0


def make_sensitive(model: Any) -> None:  # noqa: ANN401 - a SAM 2 model; sam2 has no type information
    """Scale a freshly initialised SAM 2 model's weights, in place, so that its output depends on its memory.

    The object-score bias keeps the gate that replaces masks by "no object" open.
    """
    decoder = model.sam_mask_decoder
    with torch.no_grad():
        for layer in model.memory_attention.layers:
            layer.cross_attn_image.out_proj.weight.mul_(_CROSS_ATTENTION_GAIN)
        model.memory_encoder.out_proj.weight.mul_(_MEMORY_GAIN)
        for network in decoder.output_hypernetworks_mlps:
            network.layers[-1].weight.mul_(_MASK_GAIN)
        decoder.output_upscaling[3].weight.mul_(_UPSCALING_GAIN)
        decoder.pred_obj_score_head.layers[-1].bias.add_(_OBJECT_SCORE_BIAS)
