"""From a model on disk to an engine over the arena that the KV-cache service lends. Imports torch."""

from forebay.chips import ChipClass
from forebay.engine.arena import KvArena
from forebay.engine.load import layout_for, load_engine
from forebay.engine.types import Engine
from forebay.errors import StartError
from forebay.models.default_model import resolve_model
from forebay.models.model_file import open_model
from forebay.v1 import common_pb2
from forebay.worker.arena_map import map_segment
from forebay.worker.attachment import Attachment
from forebay.worker.request_check import ServedModel


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
        segments = [one for one in attachment.segments if one.tier == common_pb2.KV_TIER_DEVICE]
        if len(segments) != 1:
            raise StartError(f"the KV-cache service offers {len(segments)} DEVICE segments; this worker needs one")
        layout = self.served_model.layout
        arena = KvArena(
            memoryview(map_segment(segments[0], layout.block_bytes)),
            layout,
            segments[0].block_count,
            segments[0].block_stride_bytes,
        )
        return load_engine(self._file, self._chip_class, arena)
