"""Chip classes: how a kind of device is run. Pure."""

from forebay.chips.chip_class import ChipClass, KernelSet, NumberFormat, chip_class_named

__all__ = ["ChipClass", "KernelSet", "NumberFormat", "chip_class_named"]
