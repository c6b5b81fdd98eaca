"""Predicts a kernel's time from its machine code, without a device: docs/performance/static-model.md."""
