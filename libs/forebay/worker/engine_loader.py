"""From a model on disk to an engine over the memory that the KV-cache service lends."""

import logging

from forebay.chips import ChipClass
from forebay.chips.kv_layout import layout_for
from forebay.engine.kv_memory import KvMemory
from forebay.engine.load import load_engine
from forebay.engine.types import Engine
from forebay.errors import StartError
from forebay.kv.tier import Tier
from forebay.models.default_model import resolve_model
from forebay.models.model_file import open_model
from forebay.worker.arena_map import open_segment
from forebay.worker.attachment import Attachment
from forebay.worker.request_check import ServedModel

_log = logging.getLogger(__name__)


class EngineLoader:
    """Opens the model once; makes an engine for each attachment, since the memory may be other memory."""

    def __init__(self, model: str | None, chip_class: ChipClass, threads: int = 1) -> None:
        """Opens the model.

        Args:
            model: path; None: the default model.
            threads: most cores that a step may use.

        Raises StartError when there is no model or it is damaged.
        """
        self._file = open_model(resolve_model(model))
        self._chip_class = chip_class
        self._threads = threads
        config = self._file.config
        self.served_model = ServedModel(
            name=self._file.name,
            digest=self._file.digest,
            layout=layout_for(config, chip_class),
            arithmetic=chip_class.arithmetic,
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
        memory = KvMemory(
            open_segment(segments[0], layout.block_bytes, self._chip_class.device),
            layout,
            segments[0].block_count,
            segments[0].block_stride_bytes,
        )
        return load_engine(self._file, self._chip_class, memory, self._threads, _log.info)
