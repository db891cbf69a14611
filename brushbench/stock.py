"""Stock models of transformers, from a weight file and the ``config.json`` beside it."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from brushbench.errors import WeightsError, printable, reason_of
from brushbench.weights import materialise, read_json, read_shapes, read_tensors

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Tensor

    from brushbench.features import Features
    from brushbench.weights import WeightFile

__all__ = ["StockModel", "loading"]


@contextmanager
def loading(place: Path, what: str, remedy: str = "Save it again with save_pretrained") -> Iterator[None]:
    """Load from saved files: without the bars of diffusers and transformers, and with one sentence for what fails.

    Args:
        place: the folder or file.
        what: what it is loaded as, for the message.
        remedy: what to do, for the message.

    Raises:
        WeightsError: it does not load.
    """
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    shown = [log for log in (of_diffusers, of_transformers) if log.is_progress_bar_enabled()]
    for log in shown:
        log.disable_progress_bar()
    try:
        yield
    except Exception as error:  # readers of weights, the hub and its transport each raise kinds of their own
        text = printable(str(error)) or type(error).__name__
        raise WeightsError(f"{place} does not load as {what}: {text}. {remedy}.") from error
    finally:
        for log in shown:
            log.enable_progress_bar()


class StockModel(ABC):
    """One model of transformers in a :class:`Features`: checked when made, loaded when first used.

    The keys of published files are renamed by transformers itself, as ``from_pretrained`` does; nothing that a
    ``config.json`` names is imported or downloaded.

    Attributes:
        config: transformers' config.
        key: names the model: weights, sizes, device and dtype. Metrics with the same key share it and its features.
    """

    kind: ClassVar[str]  # model_type of the config

    def __init__(self, weights: WeightFile, what: str, device: torch.device, dtype: torch.dtype) -> None:
        """Read the config and check every key and shape.

        Args:
            weights: ``model.safetensors`` or ``pytorch_model.bin`` of a folder in transformers' format.
            what: the model, in words, for messages.
            device: where it computes.
            dtype: what it computes in.

        Raises:
            WeightsError: no config, one of another model, or weights that do not fit it.
        """
        self.weights, self.what, self.device, self.dtype = weights, what, device, dtype
        self.config = self._read_config()
        self.key = f"{self.kind} {weights.sha256} {self.config.to_json_string()} {device} {dtype}"
        self._filled(read_shapes(weights.path), device_map="meta")

    @abstractmethod
    def classes(self) -> tuple[Any, Any]:
        """Return transformers' classes of the config and the model."""

    def model(self, store: Features) -> Any:
        """Return the loaded model."""
        return store.model(self.key, self._load)

    def _read_config(self) -> Any:
        file = self.weights.beside("config.json")
        if file is None:
            raise WeightsError(
                f"{self.weights.path.parent} holds no config.json. Put the one of {self.what} beside the weights."
            )
        given = read_json(file)
        if given.get("model_type") != self.kind:
            got = printable(repr(given.get("model_type")), 60)
            raise WeightsError(f"{file} has the model_type {got}, expected {self.kind!r} for {self.what}.")
        try:
            return self.classes()[0].from_dict(given)
        except Exception as error:  # transformers checks types and values in ways of its own
            raise WeightsError(f"{file} is no config of {self.what}: {reason_of(error)}.") from error

    def _filled(self, tensors: Mapping[str, Tensor], **options: Any) -> Any:
        """Return the model with these tensors as its parameters.

        Raises:
            WeightsError: keys missing, keys left over or shapes that do not fit; names them.
        """
        from transformers.utils import logging

        verbosity = logging.get_verbosity()
        with loading(self.weights.path, self.what, "Give the original file and its config.json"):
            logging.set_verbosity_error()  # a report on the keys that do not fit: said below
            try:
                model, report = self.classes()[1].from_pretrained(
                    None,
                    config=copy.deepcopy(self.config),
                    state_dict=dict(tensors),
                    dtype=self.dtype,
                    attn_implementation="sdpa",  # a config may name one that would be downloaded
                    ignore_mismatched_sizes=True,
                    output_loading_info=True,
                    **options,
                )
            finally:
                logging.set_verbosity(verbosity)
        if problems := {kind: sorted(map(str, keys)) for kind, keys in report.items() if keys}:
            found = "; ".join(f"{len(keys)} {kind} (such as {keys[0]})" for kind, keys in problems.items())
            raise WeightsError(
                f"{self.weights.path} does not hold the weights of {self.what}: {found}. "
                "Give the original file and its config.json."
            )
        return model

    def _load(self) -> Any:
        model = self._filled(read_tensors(self.weights.path))
        materialise(model, model.state_dict(), what=self.what, device=self.device, dtype=self.dtype)
        return model
