"""Images with known prompts that are part of the package, for data without pairs: emoji, 64 x 64 pixels (NOTICE)."""

from pathlib import Path
from typing import Final

from srpo_core.scorers.canaries import Example

_DIRECTORY: Final = Path(__file__).with_name("emoji")


def drawn_examples() -> list[Example]:
    """Read the images, sorted by prompt; none has a rejected image."""
    from PIL import Image
    from torchvision.transforms import functional

    examples = []
    for path in sorted(_DIRECTORY.glob("*.webp")):
        with Image.open(path) as image:
            preferred = functional.to_tensor(image.convert("RGB"))[None]
        examples.append(Example(path.stem.replace("_", " "), preferred))
    return examples
