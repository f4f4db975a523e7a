"""Chip classes: how a kind of device is run. Pure."""

from forebay.chips.chip_class import ChipClass, NumberFormat, chip_class_named

__all__ = ["ChipClass", "NumberFormat", "chip_class_named"]
