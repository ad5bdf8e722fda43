"""Prints the first WordNet name of each ImageNet-1k class, in class order, from timm's lists.

pip download --no-deps timm==1.0.20 && unzip timm-1.0.20-py3-none-any.whl 'timm/data/_info/*'
python -m tools.imagenet_names timm/data/_info > ddpo/assets/prompts/imagenet_classes.txt
"""

from __future__ import annotations

import sys
from pathlib import Path


def class_names(folder: Path) -> list[str]:
    """The 1,000 names: the order of timm's `imagenet_synsets.txt`, names from its lemma table."""
    synsets = (folder / "imagenet_synsets.txt").read_text(encoding="utf-8").split()
    table = (folder / "imagenet_synset_to_lemma.txt").read_text(encoding="utf-8")
    lemmas = dict(line.split("\t", 1) for line in table.splitlines())
    return [lemmas[synset].split(",")[0].strip() for synset in synsets]


if __name__ == "__main__":
    sys.stdout.write("\n".join(class_names(Path(sys.argv[1]))) + "\n")
