"""Keeps notes off the terminal that optional packages write as transformers and accelerate import them on the way."""

import logging

NOTES = {
    "torchao": "Failed to load ",  # kernels for GPUs, on a machine without
    "torch.utils._pytree": "is an Enum subclass",  # torchao's own registrations, to torchao's authors
    "DeepSpeed": "Setting accelerator to CPU",
}
"""Logger and what its note says. Nothing else of these loggers is held back."""


def quiet_imports() -> None:
    """Hold the notes back in this process; calling it again changes nothing."""
    for name, text in NOTES.items():
        logger = logging.getLogger(name)
        if not any(isinstance(known, _WithoutNote) for known in logger.filters):
            logger.addFilter(_WithoutNote(text))


class _WithoutNote(logging.Filter):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def filter(self, record: logging.LogRecord) -> bool:
        return self.text not in record.getMessage()
