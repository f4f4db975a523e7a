"""From a model on disk to an engine over the arena that the KV-cache service lends. Imports torch."""

import logging

from forebay.chips import ChipClass
from forebay.chips.kv_layout import layout_for
from forebay.engine.arena import KvArena
from forebay.engine.load import load_engine
from forebay.engine.types import Engine
from forebay.errors import StartError
from forebay.kv.tier import Tier
from forebay.models.default_model import resolve_model
from forebay.models.model_file import open_model
from forebay.worker.arena_map import map_segment
from forebay.worker.attachment import Attachment
from forebay.worker.request_check import ServedModel

_log = logging.getLogger(__name__)


class EngineLoader:
    """Opens the model once; makes an engine for each attachment, since the memory may be other memory."""

    def __init__(self, model: str | None, chip_class: ChipClass) -> None:
        """Args: model: path; None: the default model. Raises StartError when there is none or it is damaged."""
        self._file = open_model(resolve_model(model))
        self._chip_class = chip_class
        config = self._file.config
        self.served_model = ServedModel(
            name=self._file.name,
            digest=self._file.digest,
            layout=layout_for(config, chip_class),
            vocabulary_size=config.vocabulary_size,
            context_tokens=config.context_tokens,
            eos_token_ids=config.eos_token_ids,
        )

    def make_engine(self, attachment: Attachment) -> Engine:
        """An engine over the attachment's DEVICE tier. Raises StartError when that cannot be mapped or used."""
        segments = [one for one in attachment.segments if one.tier is Tier.DEVICE]
        if len(segments) != 1:
            raise StartError(f"the KV-cache service offers {len(segments)} DEVICE segments; this worker needs one")
        layout = self.served_model.layout
        arena = KvArena(
            memoryview(map_segment(segments[0], layout.block_bytes)),
            layout,
            segments[0].block_count,
            segments[0].block_stride_bytes,
        )
        return load_engine(self._file, self._chip_class, arena, PackingLog(self._file.name))


class PackingLog:
    """Says in the log how far packing the weights is: it happens once per model and may take minutes."""

    def __init__(self, model_name: str) -> None:
        self._model_name = model_name
        self._logged_tenths = -1

    def __call__(self, done_count: int, total_count: int) -> None:
        """One line for each tenth."""
        tenths = 10 * done_count // total_count
        if tenths > self._logged_tenths:
            self._logged_tenths = tenths
            _log.info("packing the weights of %s, only this once: %d %%", self._model_name, 10 * tenths)
