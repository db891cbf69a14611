"""The BrushNet branch: a copy of the base U-Net without text that reads noisy latents, masked-image latents and mask.

::

    noisy latents 4 ─┐                       ┌─> zero conv ─> residual of the base U-Net's same layer, x scale
    masked image  4 ─┼─> conv_in_condition ──┤
    keep mask     1 ─┘        │              ├─> … one for every resnet (+ attention) and every sampler, down and up
                              └─> down ─> mid ─> up        and one for the mid block

BrushNet (Ju et al., ECCV 2024), sec. 3.2 and fig. 3. State-dict keys, configuration and numbers are those of the
published implementation (TencentARC/BrushNet, commit 0f9d9e5); the blocks are stock diffusers blocks.
"""
# ruff: noqa: ARG002 - the constructor's arguments are the published configuration, and some of its fields have no effect

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import ConfigMixin, ModelMixin, UNet2DConditionModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention import AttentionMixin
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.unets.unet_2d_blocks import (
    CrossAttnUpBlock2D,
    UNetMidBlock2D,
    UNetMidBlock2DCrossAttn,
    UpBlock2D,
    get_down_block,
)
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from brushnet.checks import check_config, check_keys, check_weights, not_ours
from brushnet.files import check_dtypes, find_files, read_config

__all__ = ["BrushNetModel", "BrushNetOutput"]


@dataclass
class BrushNetOutput(BaseOutput):
    """The residuals for the base U-Net, scaled, in the order in which its layers run.

    Attributes:
        down_block_res_samples: one (B, C, h, w) tensor for ``conv_in`` and each resnet (+ attention) and downsampler.
        mid_block_res_sample: (B, C, h, w), for the mid block.
        up_block_res_samples: one (B, C, h, w) tensor for each resnet (+ attention) and upsampler.
    """

    down_block_res_samples: tuple[Tensor, ...]
    mid_block_res_sample: Tensor
    up_block_res_samples: tuple[Tensor, ...]


class BrushNetModel(ModelMixin, AttentionMixin, ConfigMixin):
    """The BrushNet branch.

    The released checkpoints use the defaults (SD 1.5: 618,830,080 parameters) or, for SDXL, three blocks and
    ``addition_embed_type="text_time"`` (373,332,480). The branch of PowerPaint v2 is the same network with
    ``CrossAttnDownBlock2D`` x 3 + ``DownBlock2D``, ``UNetMidBlock2DCrossAttn`` and ``UpBlock2D`` +
    ``CrossAttnUpBlock2D`` x 3. Fields without effect on a text-free branch (``cross_attention_dim``,
    ``attention_head_dim``, ``encoder_hid_dim``, ``conditioning_embedding_out_channels`` …) are kept because the
    published ``config.json`` carries them.

    Args:
        in_channels: channels of the noisy latents.
        conditioning_channels: channels of the conditioning: masked-image latents, then the keep mask.
        flip_sin_to_cos: order of the sinusoidal timestep embedding.
        freq_shift: frequency shift of the sinusoidal timestep embedding.
        down_block_types: ``DownBlock2D`` or ``CrossAttnDownBlock2D``, one per resolution.
        mid_block_type: ``MidBlock2D`` (two resnets) or ``UNetMidBlock2DCrossAttn``.
        up_block_types: ``UpBlock2D`` or ``CrossAttnUpBlock2D``, one per resolution.
        only_cross_attention: of the cross-attention blocks.
        block_out_channels: width of each resolution.
        layers_per_block: resnets in each down block; an up block has one more.
        downsample_padding: padding of the downsampling convolutions.
        mid_block_scale_factor: the mid block's resnets divide their sum by it.
        act_fn: activation function.
        norm_num_groups: groups of the group normalisation.
        norm_eps: epsilon of the group normalisation.
        cross_attention_dim: width of the text embeddings (cross-attention blocks only).
        transformer_layers_per_block: depth of each attention (cross-attention blocks only).
        encoder_hid_dim: no effect.
        encoder_hid_dim_type: no effect.
        attention_head_dim: number of heads, in spite of its name, as in the base U-Net (cross-attention blocks only).
        num_attention_heads: overrides ``attention_head_dim`` (cross-attention blocks only).
        use_linear_projection: of the attentions (cross-attention blocks only).
        class_embed_type: must be None.
        addition_embed_type: None (SD 1.5) or ``"text_time"`` (SDXL).
        addition_time_embed_dim: width of the embedding of each of SDXL's size numbers.
        num_class_embeds: must be None.
        upcast_attention: of the attentions (cross-attention blocks only).
        resnet_time_scale_shift: how the resnets take the time embedding.
        projection_class_embeddings_input_dim: width of SDXL's added embedding before projection.
        brushnet_conditioning_channel_order: ``"rgb"``, or ``"bgr"``, which flips all conditioning channels, the mask
            among them: a published bug, kept for checkpoints that were trained with it; no released one was.
        conditioning_embedding_out_channels: no effect.
        global_pool_conditions: average every residual over height and width.
        addition_embed_type_num_heads: no effect.

    Raises:
        ValueError: a configuration that this network does not have.
    """

    _supports_gradient_checkpointing = True
    _skip_layerwise_casting_patterns = ("norm",)

    @register_to_config  # type: ignore[misc, untyped-decorator, unused-ignore]
    def __init__(
        self,
        in_channels: int = 4,
        conditioning_channels: int = 5,
        flip_sin_to_cos: bool = True,
        freq_shift: int = 0,
        down_block_types: tuple[str, ...] = ("DownBlock2D",) * 4,
        mid_block_type: str = "MidBlock2D",
        up_block_types: tuple[str, ...] = ("UpBlock2D",) * 4,
        only_cross_attention: bool | tuple[bool, ...] = False,
        block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280),
        layers_per_block: int = 2,
        downsample_padding: int = 1,
        mid_block_scale_factor: float = 1,
        act_fn: str = "silu",
        norm_num_groups: int = 32,
        norm_eps: float = 1e-5,
        cross_attention_dim: int = 768,
        transformer_layers_per_block: int | tuple[int, ...] = 1,
        encoder_hid_dim: int | None = None,
        encoder_hid_dim_type: str | None = None,
        attention_head_dim: int | tuple[int, ...] = 8,
        num_attention_heads: int | tuple[int, ...] | None = None,
        use_linear_projection: bool = False,
        class_embed_type: str | None = None,
        addition_embed_type: str | None = None,
        addition_time_embed_dim: int | None = None,
        num_class_embeds: int | None = None,
        upcast_attention: bool = False,
        resnet_time_scale_shift: str = "default",
        projection_class_embeddings_input_dim: int | None = None,
        brushnet_conditioning_channel_order: str = "rgb",
        conditioning_embedding_out_channels: tuple[int, ...] | None = (16, 32, 96, 256),
        global_pool_conditions: bool = False,
        addition_embed_type_num_heads: int = 64,
    ) -> None:
        super().__init__()
        check_config(self.config)
        widths, layers, last = block_out_channels, layers_per_block, len(block_out_channels) - 1
        time_width = 4 * widths[0]
        options = _block_options(self.config, time_width)

        # What is read: noisy latents, masked-image latents and mask (sec. 3.2); the timestep; for SDXL text and sizes.
        self.conv_in_condition = nn.Conv2d(in_channels + conditioning_channels, widths[0], kernel_size=3, padding=1)
        self.time_proj = Timesteps(widths[0], flip_sin_to_cos, freq_shift)
        self.time_embedding = TimestepEmbedding(widths[0], time_width, act_fn=act_fn)
        if addition_embed_type == "text_time":
            self.add_time_proj = Timesteps(addition_time_embed_dim, flip_sin_to_cos, freq_shift)
            self.add_embedding = TimestepEmbedding(projection_class_embeddings_input_dim, time_width)

        # Way down, per resolution: the resnets and, but for the last, a downsampler. A tap on each, and on conv_in.
        self.down_blocks = nn.ModuleList(
            get_down_block(
                down_block_types[i],
                num_layers=layers,
                in_channels=widths[max(i - 1, 0)],
                out_channels=width,
                add_downsample=i < last,
                downsample_padding=downsample_padding,
                attention_head_dim=options[i]["num_attention_heads"],
                **options[i],
            )
            for i, width in enumerate(widths)
        )
        taps = [widths[0]] + [width for i, width in enumerate(widths) for _ in range(layers + (i < last))]
        self.brushnet_down_blocks = nn.ModuleList(map(zero_conv, taps))

        # Middle: two resnets. One tap.
        self.brushnet_mid_block = zero_conv(widths[-1])
        self.mid_block = _mid_block(mid_block_type, widths[-1], mid_block_scale_factor, options[-1])

        # Way up, per resolution coarse to fine: one resnet more and, but for the last, an upsampler. A tap on each.
        rising = widths[::-1]
        self.up_blocks = nn.ModuleList(
            _up_block(
                up_block_types[i],
                options[last - i],
                num_layers=layers + 1,
                in_channels=rising[min(i + 1, last)],
                out_channels=width,
                prev_output_channel=rising[max(i - 1, 0)],
                resolution_idx=i,
                add_upsample=i < last,
            )
            for i, width in enumerate(rising)
        )
        taps = [width for i, width in enumerate(rising) for _ in range(layers + 1 + (i < last))]
        self.brushnet_up_blocks = nn.ModuleList(map(zero_conv, taps))

    @property
    def uses_text(self) -> bool:
        """Does the branch read ``encoder_hidden_states``? True for PowerPaint v2's, False for BrushNet's."""
        config = self.config
        return any(
            "CrossAttn" in kind for kind in (*config.down_block_types, config.mid_block_type, *config.up_block_types)
        )

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        brushnet_cond: Tensor,
        encoder_hidden_states: Tensor | None = None,
        conditioning_scale: float = 1.0,
        added_cond_kwargs: Mapping[str, Tensor] | None = None,
        guess_mode: bool = False,
        return_dict: bool = True,
    ) -> BrushNetOutput | tuple[tuple[Tensor, ...], Tensor, tuple[Tensor, ...]]:
        """Compute the residuals for one denoising step.

        Args:
            sample: (B, 4, h, w) noisy latents, as the base U-Net gets them (after ``scheduler.scale_model_input``).
            timestep: a number, or a tensor of shape () or (B,).
            brushnet_cond: (B, 5, h, w): scaled latents of the masked image, then keep (1 = keep, 0 = repaint).
            encoder_hidden_states: (B, tokens, width) text embeddings; no effect unless the branch has cross-attention.
            conditioning_scale: every residual is multiplied by it.
            added_cond_kwargs: SDXL only: ``text_embeds`` (B, width) and ``time_ids`` (B, 6), as for the base U-Net.
            guess_mode: weaken the early residuals: factors from 0.1 (first) to 1 (last), in logarithmic steps.
            return_dict: return a :class:`BrushNetOutput` rather than its tuple.

        Returns:
            The residuals, in the order of the base U-Net's layers; see :class:`BrushNetOutput`.

        Raises:
            ValueError: an SDXL branch without ``added_cond_kwargs``, or a branch with cross-attention without text.
        """
        if self.uses_text and encoder_hidden_states is None:
            raise ValueError("This branch has cross-attention, so it needs encoder_hidden_states; got None.")
        emb = self._embed(sample, timestep, added_cond_kwargs)

        # Sec. 3.2: the noisy latents, the masked image's latents and the mask enter together.
        if self.config.brushnet_conditioning_channel_order == "bgr":
            brushnet_cond = brushnet_cond.flip(1)
        hidden = self.conv_in_condition(torch.cat([sample, brushnet_cond], dim=1))

        # Down: what a stock block returns for the skips is what the base U-Net gets.
        skips: tuple[Tensor, ...] = (hidden,)
        for block in self.down_blocks:
            hidden, outputs = block(hidden, emb, **_text(block, encoder_hidden_states))
            skips += outputs
        down = tuple(conv(skip) for conv, skip in zip(self.brushnet_down_blocks, skips, strict=True))

        hidden = self.mid_block(hidden, emb, **_text(self.mid_block, encoder_hidden_states))
        mid = self.brushnet_mid_block(hidden)

        # Up: the branch feeds on its own skips, before the zero convolutions.
        taps: tuple[Tensor, ...] = ()
        for block in self.up_blocks:
            count = len(cast("nn.ModuleList", block.resnets))
            own, skips = skips[-count:], skips[:-count]
            size = skips[-1].shape[-2:] if skips else None
            hidden, outputs = block(hidden, own, emb, encoder_hidden_states, size)
            taps += outputs
        up = tuple(conv(tap) for conv, tap in zip(self.brushnet_up_blocks, taps, strict=True))

        output = self._scaled(down, mid, up, conditioning_scale, guess_mode)
        return output if return_dict else output.to_tuple()

    def _embed(self, sample: Tensor, timestep: Tensor | float, added: Mapping[str, Tensor] | None) -> Tensor:
        """Return the time embedding (B, 4 C); for SDXL plus that of the pooled text and the picture's sizes."""
        steps = torch.as_tensor(timestep, device=sample.device).reshape(-1).expand(sample.shape[0])
        emb: Tensor = self.time_embedding(self.time_proj(steps).to(sample.dtype))
        if self.config.addition_embed_type is None:
            return emb
        if added is None or not {"text_embeds", "time_ids"} <= set(added):
            got = "None" if added is None else f"the keys {sorted(added)}"
            raise ValueError(f"An SDXL branch needs added_cond_kwargs with text_embeds and time_ids; got {got}.")
        pooled = added["text_embeds"]
        sizes = self.add_time_proj(added["time_ids"].flatten()).reshape(pooled.shape[0], -1)
        added_emb: Tensor = self.add_embedding(torch.cat([pooled, sizes], dim=-1).to(emb.dtype))
        return emb + added_emb

    def _scaled(
        self, down: tuple[Tensor, ...], mid: Tensor, up: tuple[Tensor, ...], scale: float, guess_mode: bool
    ) -> BrushNetOutput:
        """Multiply the residuals by the scale, or by the rising scales of guess mode; pool them if so configured."""
        residuals = [*down, mid, *up]
        if guess_mode and not self.config.global_pool_conditions:
            scales = torch.logspace(-1, 0, len(residuals), device=mid.device) * scale
            residuals = [residual * factor for residual, factor in zip(residuals, scales, strict=True)]
        else:
            residuals = [residual * scale for residual in residuals]
        if self.config.global_pool_conditions:
            residuals = [residual.mean(dim=(2, 3), keepdim=True) for residual in residuals]
        return BrushNetOutput(
            down_block_res_samples=tuple(residuals[: len(down)]),
            mid_block_res_sample=residuals[len(down)],
            up_block_res_samples=tuple(residuals[len(down) + 1 :]),
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path | None, **kwargs: Any) -> Any:
        """Load a saved or published branch, as every diffusers model; see :func:`brushnet.checkpoints.load_brushnet`.

        Args:
            pretrained_model_name_or_path: a folder or a hub id.
            **kwargs: those of :meth:`diffusers.ModelMixin.from_pretrained`.

        Returns:
            The branch, in evaluation mode; with ``output_loading_info=True`` a tuple of it and the loading report.

        Raises:
            OSError: nothing there.
            ValueError: keys are missing, unexpected or of another shape (stock diffusers would leave such weights
                random), weights are quantised or hold NaN or infinity, or a configuration that is no branch's.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        what = str(pretrained_model_name_or_path)
        _check_folder(Path(what) / (kwargs.get("subfolder") or ""), kwargs.get("variant"))
        try:
            brushnet, info = super().from_pretrained(pretrained_model_name_or_path, output_loading_info=True, **kwargs)
        except (ValueError, RuntimeError) as error:
            if "shape" not in str(error):
                raise
            # Stock advice, to leave such weights at random values, is not passed on.
            raise not_ours(what, str(error).partition(". If you want")[0]) from error
        mismatched = [key for key, *_ in info["mismatched_keys"]]
        check_keys(what, info["missing_keys"], info["unexpected_keys"], mismatched)
        check_weights(brushnet, what)
        return (brushnet, info) if wants_info else brushnet

    @classmethod
    def from_unet(
        cls,
        unet: UNet2DConditionModel,
        brushnet_conditioning_channel_order: str = "rgb",
        conditioning_channels: int = 5,
        load_weights_from_unet: bool = True,
        cross_attention: bool = False,
    ) -> BrushNetModel:
        """Make the branch of a base U-Net, ready to be trained: its residuals are exactly zero.

        BrushNet, sec. 3.2: the branch is a clone of the pre-trained U-Net without its cross-attention, joined to it by
        zero convolutions. Every resnet, sampler and time embedding is a copy of the U-Net's. The noisy latents and the
        masked image's latents both get the weights of ``conv_in``, the mask gets zeros. The branch is float32, whatever
        the U-Net's dtype (it is made to be trained), and on the U-Net's device.

        Source: TencentARC/BrushNet 0f9d9e5, ``models/brushnet.py``, ``BrushNetModel.from_unet``; two differences. There
        ``conv_in_condition.bias`` *is* the U-Net's parameter, so freezing or casting the U-Net freezes or casts it;
        here it is a copy. There ``add_embedding`` (SDXL) stays random; here it is the U-Net's.

        Args:
            unet: the base U-Net, with 4 input channels.
            brushnet_conditioning_channel_order: ``"rgb"`` or ``"bgr"``; see :class:`BrushNetModel`.
            conditioning_channels: 5: the latents of the masked image, and the mask.
            load_weights_from_unet: copy the U-Net's weights; False leaves all but the zero convolutions random.
            cross_attention: keep the U-Net's cross-attention, as PowerPaint v2 does.

        Returns:
            The branch, in training mode.

        Raises:
            ValueError: a U-Net that has no such branch: other blocks, class embeddings, other input channels.
        """
        fields = {name: unet.config[name] for name in _FIELDS_OF_THE_UNET}
        fields.update(
            brushnet_conditioning_channel_order=brushnet_conditioning_channel_order,
            conditioning_channels=conditioning_channels,
        )
        if cross_attention:
            names = ("down_block_types", "mid_block_type", "up_block_types")
            fields.update({name: unet.config[name] for name in names})
        else:
            count = len(unet.config.block_out_channels)
            fields.update(down_block_types=("DownBlock2D",) * count, up_block_types=("UpBlock2D",) * count)

        if not load_weights_from_unet:
            with torch.device(unet.device):
                return cast("BrushNetModel", cls(**fields))
        with torch.device("meta"):
            brushnet: BrushNetModel = cls(**fields)
        brushnet.load_state_dict(_weights_from_unet(brushnet, unet), assign=True)
        return brushnet


def zero_conv(channels: int) -> nn.Conv2d:
    """Return a 1x1 convolution whose weights and bias are zero: a residual that starts as nothing (sec. 3.2)."""
    conv = nn.Conv2d(channels, channels, kernel_size=1)
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(cast("nn.Parameter", conv.bias))
    return conv


class TappedUpBlock2D(UpBlock2D):
    """``UpBlock2D`` that also returns the output of each layer, as the stock down blocks do."""

    def forward(
        self,
        hidden_states: Tensor,
        res_hidden_states_tuple: Sequence[Tensor],
        temb: Tensor,
        encoder_hidden_states: Tensor | None = None,
        upsample_size: Sequence[int] | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the block's output, and the outputs of every resnet (+ attention) and of the upsampler."""
        taps: tuple[Tensor, ...] = ()
        attentions = getattr(self, "attentions", [None] * len(self.resnets))
        for resnet, attention, skip in zip(self.resnets, attentions, reversed(res_hidden_states_tuple), strict=True):
            hidden_states = torch.cat([hidden_states, skip], dim=1)
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                hidden_states = self._gradient_checkpointing_func(resnet, hidden_states, temb)
            else:
                hidden_states = resnet(hidden_states, temb)
            if attention is not None:
                (hidden_states,) = attention(
                    hidden_states, encoder_hidden_states=encoder_hidden_states, return_dict=False
                )
            taps += (hidden_states,)
        for upsampler in self.upsamplers or ():
            hidden_states = upsampler(hidden_states, upsample_size)
            taps += (hidden_states,)
        return hidden_states, taps


class TappedCrossAttnUpBlock2D(CrossAttnUpBlock2D):
    """``CrossAttnUpBlock2D`` that also returns the output of each layer."""

    forward = TappedUpBlock2D.forward


_FIELDS_OF_THE_UNET = (
    "in_channels",
    "flip_sin_to_cos",
    "freq_shift",
    "only_cross_attention",
    "block_out_channels",
    "layers_per_block",
    "downsample_padding",
    "mid_block_scale_factor",
    "act_fn",
    "norm_num_groups",
    "norm_eps",
    "cross_attention_dim",
    "transformer_layers_per_block",
    "attention_head_dim",
    "num_attention_heads",
    "use_linear_projection",
    "class_embed_type",
    "addition_embed_type",
    "addition_time_embed_dim",
    "num_class_embeds",
    "upcast_attention",
    "resnet_time_scale_shift",
    "projection_class_embeddings_input_dim",
)


def _text(block: nn.Module, encoder_hidden_states: Tensor | None) -> dict[str, Any]:
    """Return the text as keyword argument for a stock block, if it reads text."""
    return {"encoder_hidden_states": encoder_hidden_states} if getattr(block, "has_cross_attention", False) else {}


def _block_options(config: Any, time_width: int) -> list[dict[str, Any]]:
    """Return the options of the stock blocks' resnets and attentions, per resolution from fine to coarse."""
    depth = len(config.block_out_channels)
    heads = _each(config.num_attention_heads or config.attention_head_dim, depth)
    layers = _each(config.transformer_layers_per_block, depth)
    only_cross = _each(config.only_cross_attention, depth)
    return [
        {
            "temb_channels": time_width,
            "resnet_eps": config.norm_eps,
            "resnet_act_fn": config.act_fn,
            "resnet_groups": config.norm_num_groups,
            "resnet_time_scale_shift": config.resnet_time_scale_shift,
            "num_attention_heads": heads[i],
            "cross_attention_dim": config.cross_attention_dim,
            "transformer_layers_per_block": layers[i],
            "use_linear_projection": config.use_linear_projection,
            "only_cross_attention": only_cross[i],
            "upcast_attention": config.upcast_attention,
        }
        for i in range(depth)
    ]


def _each(value: Any, depth: int) -> Sequence[Any]:
    return value if isinstance(value, Sequence) else [value] * depth


_OF_RESNETS = ("temb_channels", "resnet_eps", "resnet_act_fn", "resnet_groups", "resnet_time_scale_shift")


def _mid_block(kind: str, width: int, scale_factor: float, options: Mapping[str, Any]) -> nn.Module:
    shape = {"in_channels": width, "output_scale_factor": scale_factor}
    if kind == "UNetMidBlock2DCrossAttn":
        known = {name: value for name, value in options.items() if name != "only_cross_attention"}
        return cast("nn.Module", UNetMidBlock2DCrossAttn(**shape, **known))
    # The published MidBlock2D: two resnets. (The stock "UNetMidBlock2D" by name has a single one.)
    resnets = {name: options[name] for name in _OF_RESNETS}
    return cast("nn.Module", UNetMidBlock2D(num_layers=1, add_attention=False, **shape, **resnets))


def _up_block(kind: str, options: Mapping[str, Any], **shape: Any) -> nn.Module:
    if kind == "CrossAttnUpBlock2D":
        return TappedCrossAttnUpBlock2D(**shape, **options)
    return TappedUpBlock2D(**shape, **{name: options[name] for name in _OF_RESNETS})


def _check_folder(folder: Path, variant: str | None) -> None:
    """Refuse files that stock diffusers would read in silence, or with an exception of any kind."""
    if folder.is_dir():
        files = find_files(folder, variant)
        if files.config is not None:
            read_config(files.config)
        check_dtypes(files.weights)


def _weights_from_unet(brushnet: BrushNetModel, unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """Return the branch's whole state dict: copies of the U-Net's weights, and zeros."""
    source = {name: tensor.detach().to(torch.float32, copy=True) for name, tensor in unet.state_dict().items()}
    conv_in = source["conv_in.weight"]
    if (conv_in.shape[1], brushnet.config.conditioning_channels) != (4, 5):
        raise ValueError(
            f"The U-Net reads {conv_in.shape[1]} channels and the branch {brushnet.config.conditioning_channels} "
            "conditioning channels; expected 4 and 5. Pass the base text-to-image U-Net, not an inpainting one."
        )
    mask = torch.zeros_like(conv_in[:, :1])
    weights = {
        "conv_in_condition.weight": torch.cat([conv_in, conv_in, mask], dim=1),
        "conv_in_condition.bias": source["conv_in.bias"],
    }
    for name, tensor in brushnet.state_dict().items():
        if name.startswith("brushnet_"):
            weights[name] = torch.zeros(tensor.shape, device=conv_in.device)
        elif name in source and source[name].shape == tensor.shape:
            weights[name] = source[name]
    lacking = sorted(set(brushnet.state_dict()) - set(weights))
    if lacking:
        raise ValueError(
            f"The U-Net lacks {len(lacking)} weights that its branch needs, the first is {lacking[0]}. Give it the "
            "base model's own U-Net, without adapters."
        )
    return weights
