"""HD-Painter: prompt-aware attention (PAIntA) and guidance by attention scores (RASG) around an inpainting model.

Manukyan et al., ICLR 2025 (arXiv 2312.14091), sec. 3.3 and 3.4; Picsart-AI-Research/HD-Painter d452186. Needs no
training: any Stable Diffusion inpainting U-Net of nine channels will do.
"""

from baselines.hd_painter.adapter import HdPainter
from baselines.hd_painter.inputs import condition, hole_masks, token_indices
from baselines.hd_painter.painta import coefficients, painta_block
from baselines.hd_painter.rasg import denoise

__all__ = ["HdPainter", "coefficients", "condition", "denoise", "hole_masks", "painta_block", "token_indices"]
